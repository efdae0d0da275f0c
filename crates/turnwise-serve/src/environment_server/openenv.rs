//! OpenEnv: episodes on a WebSocket, and MCP.

mod fault;
mod hosted_games;
mod json_rpc;
mod play;
mod routes;
mod schema;
mod socket;

pub(super) use routes::router;
