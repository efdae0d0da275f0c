//! What the chat formats and tokenizers promise.

mod bridge;
mod fixtures;
mod hostile;
mod parsing;
mod rendering;
mod support;
mod tokenizer;
mod training;
mod truncation;
