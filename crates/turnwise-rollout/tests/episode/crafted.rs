use proptest::prelude::*;
use serde_json::{Value, json};
use turnwise_environment::Environment;
use turnwise_rollout::{Allowance, Episode, EpisodeSnapshot};
use turnwise_testkit::{Echo, Replayed};

use crate::support::{ENGINE, Made, agents, block_on, episode, suspended};

/// Collects every place in a value that holds no other values.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, field)| leaves(field, &format!("{path}/{name}"), found));
        }
        Value::Array(items) if !items.is_empty() => {
            let items = items.iter().enumerate();
            items.for_each(|(at, item)| leaves(item, &format!("{path}/{at}"), found));
        }
        _ => found.push(path.to_owned()),
    }
}

fn hostile() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!(-1),
        json!(0),
        json!(-1.5),
        json!(1e300),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(4_294_967_295_u32),
        json!(65_536),
        json!("x"),
        json!(null),
        json!([]),
        json!({}),
        json!(true),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    // Rollouts 13.5: a crafted snapshot is refused or continues; it never panics.
    #[test]
    fn a_crafted_snapshot_never_panics(
        is_replayed in any::<bool>(),
        place in any::<prop::sample::Index>(),
        value in hostile(),
    ) {
        let tasks = Made(|| -> Box<dyn Environment> {
            let echo = Echo::new(6, true);
            if is_replayed { Box::new(Replayed(echo)) } else { Box::new(echo) }
        });
        let episode = block_on(suspended(episode(&tasks, 3), 6)).expect("six turns");
        let snapshot = episode.snapshot().expect("it goes on elsewhere");
        let mut json = serde_json::to_value(&snapshot).expect("plain data");
        let mut places = Vec::new();
        leaves(&json, "", &mut places);
        *json.pointer_mut(&places[place.index(places.len())]).expect("it was just found") = value;
        if let Ok(crafted) = serde_json::from_value::<EpisodeSnapshot>(json)
            && let Ok(episode) = Episode::restore(crafted, &tasks, &agents())
        {
            // Every result is an outcome.
            let _progress = block_on(episode.advance(&ENGINE, &Allowance::tokens(40)));
        }
    }
}

// Invalid durations are refused.
#[test]
fn times_that_cannot_be_are_refused() {
    let tasks = vec![Echo::new(6, true)];
    let suspended = block_on(suspended(episode(&tasks, 3), 6)).expect("six turns");
    let whole = serde_json::to_value(suspended.snapshot().expect("a snapshot")).expect("data");
    let places = [
        "/state/seconds",
        "/state/seats/0/turn_seconds",
        "/state/seats/0/turns/0/seconds",
        "/limits/episode_timeout_s",
    ];
    for place in places {
        let mut json = whole.clone();
        *json.pointer_mut(place).expect("a number is there") = json!(-0.5);
        let crafted: EpisodeSnapshot = serde_json::from_value(json).expect("it is a number");
        let refused = Episode::restore(crafted, &tasks, &agents());
        assert!(refused.is_err(), "{place}");
    }
    let mut json = whole;
    *json.pointer_mut("/state/seconds").expect("a number is there") = json!(1e300);
    let late: EpisodeSnapshot = serde_json::from_value(json).expect("it is a number");
    let late = Episode::restore(late, &tasks, &agents()).expect("so long a run is only strange");
    let ended = block_on(crate::support::finished(late, &ENGINE));
    let timeout = turnwise_trajectory::InfraReason::EpisodeTimeout;
    assert_eq!(crate::support::reason(&ended), Some(timeout));
}
