//! What the laboratory says, and that it can be believed.

mod credit;
mod exactness;
mod problems;
