//! Tests of chat formats and tokenizers.

mod bridge;
mod calls;
mod cases;
mod fixtures;
mod follow;
mod forks;
mod forms;
mod grammar;
mod hostile;
mod kinds;
mod llama;
mod parsing;
mod python;
mod rendering;
mod saved;
mod shapes;
mod support;
mod templates;
mod thoughts;
mod tokenizer;
mod totality;
mod training;
mod truncation;
