//! A language model in this process: policy and learner on candle.
//!
#![doc = include_str!("../README.md")]
//!
//! On CPUs with Intel's matrix unit (AMX), training computes on it: log-probabilities have the precision of f32, and
//! the terms of gradients are accurate to three parts in 2^16 or better. With `TURNWISE_AMX=off` in the environment,
//! everything is f32 on vector units.

mod accumulated;
mod adamw;
mod architecture;
mod balance;
mod batch;
mod checkpoint;
mod config;
mod decoder;
mod device;
mod dimensions;
mod engine;
mod error;
mod finite;
mod followers;
mod forms;
mod forward;
mod fused;
mod gguf;
mod gradient;
mod hub;
mod initial;
mod layout;
mod learner;
mod loading;
mod lora;
mod memory;
mod numbers;
mod ops;
mod pass;
mod plain;
mod policy;
mod precision;
mod published;
mod rope;
mod routing;
mod shares;
mod sizes;
mod slots;
mod snapshot;
mod tape;
#[cfg(test)]
mod tests;
mod threads;
mod trainer;
mod weights;

pub use adamw::{AdamW, MomentPrecision};
pub use architecture::{Architecture, Experts, Multipliers};
pub use config::{DecoderConfig, LoraSettings, LoraTarget, SlidingWindow};
pub use decoder::Decoder;
pub use device::Device;
pub use engine::{EngineCompute, EngineSeconds, EngineSettings, EngineStats, KvOnUpdate};
pub use error::ModelError;
pub use forward::Kernels;
pub use gguf::{GgufFile, GgufPlace, gguf_place};
pub use gradient::LikelihoodGradient;
pub use hub::{locate, locate_base};
pub use learner::CandleLearner;
pub use memory::{TrainingMemory, TrainingPlan};
pub use policy::CandlePolicy;
pub use precision::{ComputePrecision, EngineWeights};
pub use rope::RopeScaling;
pub use shares::{PassPart, Shares};
pub use trainer::LearnerSettings;
#[cfg(feature = "allocator")]
pub use turnwise_kernels::allocator;
pub use turnwise_kernels::matrix::has_fast_bf16;
pub use turnwise_kernels::{bf16_peak, gemm_peak, int8_peak, matrix_unit_peak, read_bandwidth};
