//! Chat formats and tokenizers: text in, token ids out.
//!
#![doc = include_str!("../README.md")]
//!
//! A [`Tokenizer`] encodes text in two ways that never mix: content is encoded without any control token, whatever it
//! contains; the text of a *template* may contain control tokens. [`ChatMl`] is a renderer on top of it, [`parse_turn`]
//! parses what a model wrote, and [`train_tokenizer`] trains a small tokenizer for a new model.
//!
//! [`Llama3`] is the format of Llama 3, and [`TemplateRenderer`] runs a model's own Jinja template within bounds.
//! [`Thinking`] selects the treatment of thinking in past turns. [`Grammar`] constrains what a model may write.

mod added;
mod call_bodies;
mod call_notation;
mod canvas;
mod chatml;
mod demonstrated;
mod encoder;
mod error;
mod fingerprint;
mod gguf;
mod grammar;
mod hygiene;
mod jinja;
mod llama;
mod llama_calls;
mod marks;
mod python_json;
mod quiet;
mod schema;
mod spelling;
mod strict_json;
mod template;
mod text_tools;
mod thinking;
mod tokenizer;
mod tool_calls;
mod tool_prompt;
mod train;
mod truncate;
mod turn;
mod turn_shape;

pub use chatml::{ChatMl, ChatMlSettings};
pub use error::ChatError;
pub use grammar::Grammar;
pub use hygiene::clean;
pub use llama::{Llama3, Llama3Settings};
pub use llama_calls::parse_llama_turn;
pub use template::{
    CallForm, TemplateRenderer, TemplateSettings, Trust, template_hash, with_moment, without_moment,
};
pub use text_tools::{TextTools, shows_system};
pub use thinking::Thinking;
pub use tokenizer::Tokenizer;
pub use tool_calls::{MAX_CALL_BYTES, parse_turn};
pub use tool_prompt::ToolPrompt;
pub use train::{MIN_IDS, train_tokenizer};
pub use turn_shape::{TurnShape, TurnShapeSettings};
