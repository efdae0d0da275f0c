//! Anthropic's messages.

mod request;
mod response;

pub(crate) use request::MessagesRequest;
pub(crate) use response::{message, stream_events};
