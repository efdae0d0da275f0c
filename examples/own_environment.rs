//! Every command of `turnwise` for the thermostat: `-- train examples/thermostat.toml`, `-- play thermostat`, `-- env check thermostat`.

use turnwise::Registry;
use turnwise::environment::{Action, Demonstrator, Observation, Random, Suite};
use turnwise_examples::Thermostat;

/// Knows the form of an answer and nothing else: what a new model imitates before it is trained.
struct AnyDigit(Random);

impl Demonstrator for AnyDigit {
    fn act(&mut self, _observation: &Observation) -> Action {
        Action::text(self.0.below(10).to_string())
    }
}

fn main() -> std::process::ExitCode {
    let rooms: Vec<Thermostat> = (0..10).map(Thermostat::new).collect();
    let suite = Suite::divided("thermostat", rooms, 0.3)
        .description("find the setting that makes a room comfortable")
        .expert(|seed| AnyDigit(Random::new(seed)));
    turnwise::main(Registry::builtin().with(suite))
}
