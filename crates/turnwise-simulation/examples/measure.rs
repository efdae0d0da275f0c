//! Simulates some seeds and measures the orchestration, without the command line: `measure SEEDS EPISODES`.

#![expect(clippy::print_stdout, reason = "an example that prints what it measured")]

use turnwise_simulation::{
    ManySettings, OrchestrationSettings, measure_orchestration, simulate_many,
};

fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let [seeds, episodes] = numbers[..] else {
        println!("usage: measure SEEDS EPISODES");
        return;
    };
    if seeds > 0 {
        let summary = simulate_many(&ManySettings::new(0..seeds), |_| {});
        println!("{summary:#?}");
    }
    if episodes > 0 {
        let settings = OrchestrationSettings { episodes: episodes as usize, ..Default::default() };
        println!("{:#?}", measure_orchestration(settings));
    }
}
