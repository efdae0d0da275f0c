//! The Open Reward Standard.

mod routes;

pub(super) use routes::router;
