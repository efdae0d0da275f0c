//! A second inference engine, of another make and another precision than the trainer.
//!
//! It is `candle-transformers` on GGUF files: other code for every operation than `turnwise-candle`, and weights in 32, 16 or
//! about 8, 6, 5, 4, 3 or 2 bits. There are three uses for it:
//!
//! - **An engine that differs on purpose.** [`GgufPolicy`] follows a learner, and draws with weights that are rounded at each
//!   publication. Trainer and engine are then apart by more than rounding, as a trainer and a server in half precision are:
//!   importance weights and the `engine/mismatch_*` metrics have something to show.
//! - **An independent check.** With [`Quantization::F32`] the engine has the trainer's weights to the bit, and must come to the
//!   same log-probabilities.
//! - **Files for others.** [`save_gguf`] writes trained weights under the names and keys of `llama.cpp`.
//!
//! # What is not supported
//!
//! | | written to a file | run here |
//! |---|---|---|
//! | Qwen3, Llama, Qwen2 | yes | yes |
//! | experts (Qwen3-MoE) | if all layers have them and their weights are renormalised | no: those kernels exist for CUDA alone |
//! | biases of Llama | yes | no |
//! | biases of Qwen3 | no | no |
//! | Llama 3's and linear scaling of positions, standard `YaRN` | yes | no |
//! | heads wider or narrower than `hidden_size / n_heads` | yes | Qwen3 |
//! | more than 4096 positions | yes | not Llama, whose requests end there |
//! | a tokenizer | no: `tokenizer.ggml.model` is `none` | tokens are numbers here |
//!
//! What cannot be done is refused as [`GgufError::Unsupported`] before anything runs.
//!
//! # What is worked around
//!
//! The quantised models of `candle-transformers` 0.11 have traps. Tokens are computed one at a time here, prompts included,
//! which avoids most of them and makes every result a function of the tokens alone, to the last bit, however a conversation
//! was cut into requests and whatever was kept of it.
//!
//! - Several tokens in one pass after one that was computed alone read a cache without it, and are wrong without an error
//!   (Qwen3).
//! - A batch of two panics on a processor (Qwen3).
//! - Without the key `general.dtype` positions are turned in half precision, which is 0.2 nats at 2500 tokens (Qwen3). It is
//!   written, and added to files that lack it.
//! - Each length of a prompt leaves an attention mask in memory for good (Llama, Qwen2). One token needs none.
//! - Products of the types `Q4_1`, `Q5_0` and `Q5_1` fail on rows of an odd number of blocks, where assertions are on, and with
//!   them every later product of the process. Such rows get another type, and files that have them are refused.
//! - Scaling of positions and biases are passed over in silence (Llama). They are refused.

mod caches;
mod error;
mod export;
mod metadata;
mod model;
mod names;
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
