//! Measures grammars on a tokenizer: the time to compile one, and the time between two tokens of a turn.
//!
//! `cargo bench -p turnwise-chat --bench grammar -- path/to/tokenizer.json`; by default a small tokenizer of the tests.

// Benchmarks print, and a failed unwrap is a failed benchmark.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Instant;

use serde_json::json;
use turnwise_chat::{Grammar, Tokenizer};
use turnwise_rollout::TokenConstraint;
use turnwise_trajectory::TokenId;

const FIXTURE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/chat/tokenizer/tokenizer.json");

/// The longest measured turn, in tokens.
const N_TOKENS: usize = 1000;

fn main() {
    let path = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let tokenizer = Tokenizer::from_file(path.as_deref().unwrap_or(FIXTURE)).unwrap();
    println!("vocabulary of {}", tokenizer.n_ids());
    let stop = [tokenizer.n_ids() as TokenId];
    let object = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 200},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 3},
            "notes": {"type": "array", "items": {"type": "string"}, "minItems": 20},
        },
        "required": ["name", "age", "tags", "notes"],
        "additionalProperties": false,
    });
    time("integer", || Grammar::regex(&tokenizer, "-?[0-9]{1,3}", &stop).unwrap(), &stop);
    time("any text", || Grammar::regex(&tokenizer, "(.|\n){900,}", &stop).unwrap(), &stop);
    time("JSON object", || Grammar::json_schema(&tokenizer, &object, &stop).unwrap(), &stop);
    let json = json!({"type": "object"});
    time("any JSON", || Grammar::json_schema(&tokenizer, &json, &stop).unwrap(), &stop);
}

/// Prints the time to compile, and the times of one question each in a turn that is sampled twice: once with all states
/// of the lexer new, and once with those that the first turn computed.
fn time(label: &str, make: impl Fn() -> Grammar, stop: &[TokenId]) {
    let start = Instant::now();
    let grammar = make();
    println!("{label:<12} compiled in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    for (seed, which) in [(1, "first turn"), (2, "next turn")] {
        let (mut turn, mut times, mut n_allowed) = (Vec::new(), Vec::new(), 0);
        let mut random: u64 = seed;
        while turn.len() < N_TOKENS {
            let start = Instant::now();
            let allowed = grammar.allowed(&turn).unwrap();
            times.push(start.elapsed().as_secs_f64() * 1e6);
            n_allowed += allowed.len();
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let goes_on = allowed.iter().filter(|id| !stop.contains(id)).count();
            if goes_on == 0 {
                break;
            }
            turn.push(allowed[(random >> 33) as usize % goes_on]);
        }
        let n = times.len();
        let halves = [&times[..n / 2], &times[n / 2..]]
            .map(|half| half.iter().sum::<f64>() / half.len().max(1) as f64);
        times.sort_by(f64::total_cmp);
        println!(
            "  {which:<10} {n:>4} questions: mean {:6.0} µs (first half {:.0}, second half {:.0}), \
             median {:.0}, 99th percentile {:.0}, longest {:.0}; {:.0} ids allowed on average",
            times.iter().sum::<f64>() / n as f64,
            halves[0],
            halves[1],
            times[n / 2],
            times[n * 99 / 100],
            times[n - 1],
            n_allowed as f64 / n as f64
        );
    }
}
