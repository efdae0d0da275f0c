//! Every command of `turnwise`, with this environment.

use turnwise::Registry;

fn main() -> std::process::ExitCode {
    turnwise::main(Registry::builtin().with_options("my-environment", my_environment::suite))
}
