//! The second engine against the first, against its contract, and against the traps it works around.

mod export;
mod followers;
mod parity;
mod policies;
mod support;
mod traps;
