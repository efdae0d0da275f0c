//! OpenAI's chat completions and responses.

mod request;
mod response;
mod responses;

pub(crate) use request::ChatRequest;
pub(crate) use response::{ChatStream, completion};
pub(crate) use responses::{ResponsesRequest, responded, response_events};
