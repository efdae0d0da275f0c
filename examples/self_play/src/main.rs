//! Every command of `turnwise`, with Nim.

use self_play::Nim;
use turnwise::Registry;

fn main() -> std::process::ExitCode {
    turnwise::main(Registry::builtin().with(Nim::suite()))
}
