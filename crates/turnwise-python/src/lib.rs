//! The native half of the Python package `turnwise`.
//!
#![doc = include_str!("../README.md")]
//!
//! Python calls the functions of this module with plain values: numbers as the bytes of `NumPy` arrays, and everything else as
//! JSON or text. What a user of the package sees, its types and their documentation, is written in Python, in
//! `python/turnwise`.

// The README is that of the Python package, and writes names as Python's documents do.
#![allow(clippy::doc_markdown)]
// pyo3 passes arguments by value, and turns a returned error into an exception.
#![allow(clippy::needless_pass_by_value, clippy::too_many_arguments)]

mod advantage;
mod columns;
mod contract;
mod environment;
mod episodes;
mod failure;
mod interrupt;
mod learner;
mod loss;
mod observer;
mod player;
mod policy;
mod run;
mod settings;
mod suite;
mod tokenizer;

use turnwise_candle::allocator::Allocator;

/// The allocator of the command, for what Rust allocates: Python's own memory is not its concern.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// The module `turnwise._native`.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use crate::advantage::{
        anchor_state, broadcast, leave_one_out, mean_only, mean_std, minus_mean_return,
        minus_mean_return_at_turn, minus_mean_return_of_others, mix, reward_to_go,
        spread_over_tokens,
    };
    #[pymodule_export]
    use crate::contract::check;
    #[pymodule_export]
    use crate::episodes::{RunReader, read_episodes};
    #[pymodule_export]
    use crate::learner::PythonLearner;
    #[pymodule_export]
    use crate::loss::{objective_names, step_loss};
    #[pymodule_export]
    use crate::policy::PythonPolicy;
    #[pymodule_export]
    use crate::run::{evaluate, resume, train};
    #[pymodule_export]
    use crate::settings::PythonSettings;
    #[pymodule_export]
    use crate::tokenizer::PythonTokenizer;
    use pyo3::prelude::*;
    use turnwise_candle::allocator::commit_as_used;

    /// Called when the module is imported.
    #[pymodule_init]
    #[expect(clippy::unnecessary_wraps, reason = "the form that pyo3 calls")]
    fn init(_module: &Bound<'_, PyModule>) -> PyResult<()> {
        commit_as_used();
        Ok(())
    }

    /// Returns the version of the package.
    #[pyfunction]
    fn version() -> &'static str {
        env!("CARGO_PKG_VERSION")
    }
}
