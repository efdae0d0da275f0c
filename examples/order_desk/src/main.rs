//! Every command of `turnwise`, with the order desk.

use order_desk::OrderDesk;
use turnwise::Registry;

fn main() -> std::process::ExitCode {
    turnwise::main(Registry::builtin().with(OrderDesk::suite()))
}
