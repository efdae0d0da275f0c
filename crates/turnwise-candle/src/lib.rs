//! A language model in this process: policy and learner on candle.

mod adamw;
mod architecture;
mod balance;
mod batch;
mod checkpoint;
mod config;
mod decoder;
mod engine;
mod error;
mod followers;
mod forward;
mod fused;
mod gradient;
mod hub;
mod initial;
mod layout;
mod learner;
mod math;
mod matrix;
mod numbers;
mod plain;
mod policy;
mod published;
mod rope;
mod routing;
#[cfg(test)]
mod tests;
mod trainer;
mod weights;

pub use adamw::AdamW;
pub use architecture::{Architecture, Experts};
pub use config::DecoderConfig;
pub use decoder::Decoder;
pub use engine::{EngineSettings, EngineStats, KvOnUpdate};
pub use error::ModelError;
pub use forward::Kernels;
pub use gradient::LikelihoodGradient;
pub use hub::locate;
pub use learner::CandleLearner;
pub use policy::CandlePolicy;
pub use rope::RopeScaling;
