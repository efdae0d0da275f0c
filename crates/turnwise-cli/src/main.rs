//! The `turnwise` binary.

use std::process::ExitCode;

use turnwise_run::Registry;

fn main() -> ExitCode {
    turnwise_cli::main(Registry::builtin())
}
