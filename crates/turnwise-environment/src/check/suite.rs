use std::collections::BTreeSet;

use super::contract::Contract;
use super::guard::caught;
use super::measure::{Measured, Player, measure, subject};
use super::{Check, N_SEEDS};
use crate::{Split, Suite, TaskKey, TaskSet};

const NAMES: &str = "names and versions are usable";
const KEYS: &str = "task keys stable, unique and disjoint";
const EXPERT: &str = "the expert solves tasks of both splits";
const RANDOM: &str = "the random player earns little";

/// The number of tasks of each split whose environments are examined; the seeds are divided among them.
const N_TASKS: u64 = 8;

/// The number of tasks of each split whose keys are compared.
const N_KEYS: usize = 20_000;

/// The number of episodes of each split that measure a player.
const N_MEASURED: usize = 200;

/// The fraction of tasks that an expert must solve. An expert of a game of chance loses some.
const EXPERT_SOLVES: f64 = 0.8;

/// The fraction of tasks that a random player may solve; above it, little is left to learn.
const RANDOM_SOLVES: f64 = 0.5;

/// The same in an environment with several seats, where the random player meets others like it.
const RANDOM_WINS: f64 = 0.75;

/// Checks the contract of [`Suite`], and that of [`Environment`](crate::Environment) over tasks of both splits.
///
/// In addition to what [`check_environment`](super::check_environment) checks: usable names, keys that are stable,
/// unique and in one split only, an expert that solves at least 80 % of each split, and a random player that solves at
/// most half and earns less than the expert. In an environment with several seats, the player has the first seat and meets
/// random players; there, a random player may solve three quarters. The details contain the measured rates.
///
/// ```
/// use turnwise_environment::Suite;
/// use turnwise_environment::check::check_suite;
///
/// async fn wrong(suite: &Suite) -> Vec<String> {
///     let checks = check_suite(suite).await;
///     checks.into_iter().filter_map(|check| check.result.err()).collect()
/// }
/// ```
pub async fn check_suite(suite: &Suite) -> Vec<Check> {
    let names = caught(|| names(suite)).flatten();
    let keys = caught(|| keys(suite)).flatten();
    let mut checks =
        vec![Check { name: NAMES, result: names }, Check { name: KEYS, result: keys.clone() }];
    // Without tasks in both splits no episode can be played, and the check of the keys already gives the reason.
    if keys.is_ok() {
        checks.extend(contract(suite).await);
        checks.extend(players(suite).await);
    }
    checks
}

fn names(suite: &Suite) -> Result<String, String> {
    let (train, held_out) = (suite.tasks(Split::Train), suite.tasks(Split::HeldOut));
    for name in [suite.name(), train.name(), held_out.name()] {
        let allowed =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) {
            return Err(format!("the name {name:?} is not 1 to 64 of a-z, 0-9, '.', '_' and '-'"));
        }
    }
    if (train.name(), train.version()) != (held_out.name(), held_out.version()) {
        return Err("the splits differ in name or version".to_owned());
    }
    if suite.about().trim().is_empty() || suite.about().contains('\n') {
        return Err("the description is not one line".to_owned());
    }
    if suite.turn_limit() == Some(0) {
        return Err("an episode has no turns".to_owned());
    }
    Ok(format!("{} version {}", train.name(), train.version()))
}

fn keys(suite: &Suite) -> Result<String, String> {
    let train = keys_of(suite, Split::Train)?;
    let held_out = keys_of(suite, Split::HeldOut)?;
    if let Some(key) = train.intersection(&held_out).next() {
        return Err(format!("task {key} is in both splits"));
    }
    Ok(format!("{} for training, {} held out", train.len(), held_out.len()))
}

fn keys_of(suite: &Suite, split: Split) -> Result<BTreeSet<TaskKey>, String> {
    let (tasks, again) = (suite.tasks(split), suite.tasks(split));
    if tasks.is_empty() {
        return Err(format!("the split {split:?} has no tasks"));
    }
    let mut keys = BTreeSet::new();
    for index in spread(tasks.as_ref(), N_KEYS) {
        let key = tasks.key(index);
        if key != again.key(index) {
            return Err(format!("task {index} of {split:?} has another key the second time"));
        }
        if !keys.insert(key) {
            return Err(format!("task {index} of {split:?} has the key of an earlier one"));
        }
    }
    Ok(keys)
}

/// Returns at most `n` indices, spread evenly over the tasks.
fn spread(tasks: &dyn TaskSet, n: usize) -> impl Iterator<Item = usize> + use<> {
    let (len, n) = (tasks.len(), n.min(tasks.len()));
    (0..n).map(move |i| i * len / n)
}

async fn contract(suite: &Suite) -> Vec<Check> {
    let mut contract = Contract::default();
    let n_seeds_each = N_SEEDS / (2 * N_TASKS);
    let mut next_seed = 0;
    for split in [Split::Train, Split::HeldOut] {
        let n_tasks = suite.tasks(split).len();
        for i in 0..N_TASKS {
            // Small splits are traversed more than once, so that all seeds are played.
            let index = i as usize * n_tasks.max(N_TASKS as usize) / N_TASKS as usize % n_tasks;
            let both =
                |seed: u64| if seed.is_multiple_of(2) { Player::Expert } else { Player::Random };
            let subject = subject(suite, split, index, both);
            contract.examine(&subject, next_seed..next_seed + n_seeds_each).await;
            next_seed += n_seeds_each;
        }
    }
    contract.into_checks()
}

async fn players(suite: &Suite) -> [Check; 2] {
    let expert = both_splits(suite, Player::Expert).await;
    let random = both_splits(suite, Player::Random).await;
    let solves = expert.clone().and_then(|splits| {
        let Some(splits) = splits else { return Ok(NONE.to_owned()) };
        let text = told(&splits);
        if splits.iter().all(|split| split.solved_rate >= EXPERT_SOLVES) {
            Ok(text)
        } else {
            Err(text)
        }
    });
    let little = random.and_then(|splits| {
        let Some(splits) = splits else { return Ok(NONE.to_owned()) };
        let text = told(&splits);
        let most = if has_several_seats(suite) { RANDOM_WINS } else { RANDOM_SOLVES };
        if splits.iter().any(|split| split.solved_rate > most) {
            return Err(format!(
                "{text}: it already solves most tasks, so little is left to learn"
            ));
        }
        match expert {
            Ok(Some(expert)) if reward(&splits) >= reward(&expert) => {
                Err(format!("{text}: that is not below the expert"))
            }
            _ => Ok(text),
        }
    });
    [Check { name: EXPERT, result: solves }, Check { name: RANDOM, result: little }]
}

fn has_several_seats(suite: &Suite) -> bool {
    let tasks = suite.tasks(Split::Train);
    !tasks.is_empty() && tasks.environment(0).n_seats() > 1
}

/// The result for a player that the suite does not offer.
const NONE: &str = "the suite offers none";

async fn both_splits(suite: &Suite, player: Player) -> Result<Option<[Measured; 2]>, String> {
    let both = [
        measure(suite, Split::Train, player, N_MEASURED).await?,
        measure(suite, Split::HeldOut, player, N_MEASURED).await?,
    ];
    Ok(match both {
        [Some(train), Some(held_out)] => Some([train, held_out]),
        _ => None,
    })
}

fn reward(splits: &[Measured; 2]) -> f64 {
    splits.iter().map(|split| split.reward_mean).sum::<f64>() / 2.0
}

fn told([train, held_out]: &[Measured; 2]) -> String {
    let percent = |measured: &Measured| 100.0 * measured.solved_rate;
    format!(
        "solves {:.1} % of train (reward {:.3}) and {:.1} % of held-out (reward {:.3})",
        percent(train),
        train.reward_mean,
        percent(held_out),
        held_out.reward_mean,
    )
}
