//! The objective alone: turn advantages in, the gradient of each token out.
fn main() {}
