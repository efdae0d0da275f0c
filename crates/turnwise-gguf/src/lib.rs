//! A second inference engine, with other code and other precision than the trainer.
//!
#![doc = include_str!("../README.md")]
//!
//! The engine is `candle-transformers` on GGUF files: other code for every operation than `turnwise-candle`, and
//! weights in 32, 16 or about 8, 6, 5, 4, 3 or 2 bits. It has three uses:
//!
//! - **An engine that differs on purpose.** [`GgufPolicy`] follows a learner, and samples with weights that are rounded
//!   at each publication. Trainer and engine then differ by more than rounding errors, like a trainer and a server in
//!   half precision, so that importance weights and the `engine/mismatch_*` metrics can be tested.
//! - **An independent check.** With [`Quantization::F32`] the engine has the trainer's weights to the bit, and must
//!   compute the same log-probabilities.
//! - **Export.** [`save_gguf`] writes trained weights under the names and keys of `llama.cpp`.
//!
//! # What is not supported
//!
//! | | written to a file | run here |
//! |---|---|---|
//! | Qwen3, Llama, Qwen2 | yes | yes |
//! | experts (Qwen3-MoE) | if all layers have them and their weights are renormalised | no: those kernels exist for CUDA alone |
//! | biases of Llama | yes | no |
//! | biases of Qwen3 | no | no |
//! | Llama 3's and linear RoPE scaling, standard `YaRN` | yes | no |
//! | heads wider or narrower than `hidden_size / n_heads` | yes | Qwen3 |
//! | more than 4096 positions | yes | not Llama, whose requests end there |
//! | a tokenizer | no: `tokenizer.ggml.model` is `none` | tokens are numbers here |
//!
//! Unsupported models are refused with [`GgufError::Unsupported`] before anything runs.
//!
//! # Workarounds
//!
//! The quantised models of `candle-transformers` 0.11 have defects. This crate computes tokens one at a time, prompts
//! included, which avoids most of them and makes every result a function of the tokens alone, to the last bit,
//! independent of requests and caches.
//!
//! - Several tokens in one pass after a token that was computed alone read a cache without it, and are wrong without an
//!   error (Qwen3).
//! - A batch of two panics on a processor (Qwen3).
//! - Without the key `general.dtype`, RoPE is computed in half precision, which is 0.2 nats at 2500 tokens (Qwen3).
//!   This crate writes the key, and adds it to files that lack it.
//! - Each prompt length leaves an attention mask in memory forever (Llama, Qwen2). One token needs none.
//! - Products of the types `Q4_1`, `Q5_0` and `Q5_1` fail on rows of an odd number of blocks in builds with assertions,
//!   and with them every later product of the process. Such rows get another type, and files that have them are
//!   refused.
//! - RoPE scaling and biases are silently ignored (Llama). This crate refuses them.

mod caches;
mod error;
mod export;
mod metadata;
mod model;
mod network;
mod policy;
mod published;
mod quantization;
mod refusals;
mod worker;

pub use error::GgufError;
pub use export::{gguf_bytes, save_gguf};
pub use model::GgufModel;
pub use policy::{GgufPolicy, GgufSettings};
pub use quantization::Quantization;
