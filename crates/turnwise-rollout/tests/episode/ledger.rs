use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use turnwise_environment::{
    Environment, ErrorKind, Issued, LedgerFile, LedgerStore, TaskSet, ToolCall, ToolLedger,
    ToolReply, async_trait,
};
use turnwise_rollout::{
    Allowance, Episode, EpisodeSnapshot, Iteration, Policy, PolicyError, PoolSettings, Progress,
    RolloutPool, Sample, SampleRequest, StopSignal,
};
use turnwise_testkit::{Crash, Replayed, Shop, Till};
use turnwise_trajectory::{GroupId, Identity, InfraReason, Outcome, PolicyVersion, Trajectory};

use crate::support::{ENGINE, Made, agents, block_on, episode, finished, identity, limits, reason};

/// Counts how often each key was issued in a ledger file.
fn issued(path: &Path) -> BTreeMap<String, usize> {
    // The first entry creates the file.
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut issued = BTreeMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).expect("a line is JSON");
        if let Some(key) = line.pointer("/issued/key") {
            *issued.entry(key.as_str().expect("a key is text").to_owned()).or_default() += 1;
        }
    }
    issued
}

fn open(path: &Path) -> Arc<dyn LedgerStore> {
    Arc::new(LedgerFile::open(path).expect("the ledger can be read"))
}

/// Plays until the end, or until the process "dies": the tool never answers, and everything but disk and till is
/// dropped.
async fn until_death(
    tasks: &Made<impl Fn() -> Box<dyn Environment> + Send + Sync>,
    path: &Path,
    tokens: u64,
    saved: &mut Option<Vec<u8>>,
) -> Option<Trajectory> {
    let fresh = || episode(tasks, 3).with_ledger(open(path));
    let mut running = match saved {
        Some(bytes) => {
            let snapshot = EpisodeSnapshot::from_bytes(bytes).expect("it was written whole");
            let restored = Episode::restore(snapshot, tasks, &agents()).expect("it goes on");
            restored.with_ledger(open(path))
        }
        None => fresh(),
    };
    let allowance = Allowance::tokens(tokens);
    loop {
        let advance = running.advance(&ENGINE, &allowance);
        match tokio::time::timeout(Duration::from_secs(1), advance).await.ok()? {
            Progress::Finished(trajectory) => return Some(trajectory),
            Progress::Suspended(episode) => {
                *saved = Some(episode.snapshot().expect("it goes on elsewhere").to_bytes());
                running = episode;
            }
        }
    }
}

proptest! {
    // Rollouts 13.20: a crash at every call, before it and after it, then resume, then retry.
    #[test]
    fn a_call_is_made_at_most_once_across_crash_resume_and_retry(
        at in 0_u64..10,
        is_after in any::<bool>(),
        is_idempotent in any::<bool>(),
        is_replayed in any::<bool>(),
        tokens in 1_u64..9,
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ledger.jsonl");
        let crash = if is_after { Crash::After } else { Crash::Before };
        let till = Arc::new(Till::crashing(is_idempotent, at, crash));
        let tasks = Made(|| -> Box<dyn Environment> {
            let shop = Shop::new(&till, 3);
            if is_replayed { Box::new(Replayed(shop)) } else { Box::new(shop) }
        });
        let mut saved = None;
        let first = block_on(until_death(&tasks, &path, tokens, &mut saved));
        let n_at_crash = till.sold().len();
        let ended = match &first {
            Some(trajectory) => trajectory.clone(),
            None => block_on(until_death(&tasks, &path, tokens, &mut saved))
                .expect("it dies only once"),
        };
        let issued = issued(&path);
        if is_idempotent || first.is_some() {
            prop_assert_eq!(&ended.outcome, &Outcome::Done);
        } else {
            prop_assert_eq!(reason(&ended), Some(InfraReason::ToolInDoubt));
            prop_assert_eq!(till.sold().len(), n_at_crash, "nothing is sold while in doubt");
            let key = issued.keys().last().expect("a call was issued");
            let Outcome::InfraFault(fault) = &ended.outcome else { unreachable!() };
            prop_assert!(fault.message.contains("g5.m0.a0.t"), "{} of {key}", fault.message);
        }
        if !is_idempotent {
            prop_assert!(issued.values().all(|n| *n == 1), "{issued:?}");
            prop_assert!(till.sold().len() <= issued.len());
        }
        // A retry is another attempt, with its own ledger entries.
        let again = Identity { attempt: 1, ..identity(&tasks, 3) };
        let retry = Episode::new(again, tasks.0(), &agents(), limits()).with_ledger(open(&path));
        let n_before = till.sold().len();
        let retry = block_on(finished(retry, &ENGINE));
        prop_assert_eq!(&retry.outcome, &Outcome::Done);
        let of_retry = self::issued(&path).into_iter().filter(|(key, _)| key.contains(".a1."));
        // If the till breaks only now, a cancelled call sold nothing. Idempotent calls are not written down.
        let n_written = of_retry.map(|(_, n)| n).sum::<usize>();
        prop_assert!(is_idempotent || till.sold().len() - n_before <= n_written);
        prop_assert!(!is_idempotent || n_written == 0);
    }
}

proptest! {
    // Every call waits for the disk.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 8, ..ProptestConfig::default() })]

    // A process that dies long after its last checkpoint starts again from it, and repeats what came after.
    #[test]
    fn a_pool_restored_from_an_older_snapshot_makes_no_call_again(
        n_before in 0_usize..4,
        tokens in 2_u64..20,
        is_replayed in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ledger.jsonl");
        let till = Arc::new(Till::new(false));
        let till_of_tasks = till.clone();
        let tasks: Arc<dyn TaskSet> = Arc::new(Made(move || -> Box<dyn Environment> {
            let shop = Shop::new(&till_of_tasks, 3);
            if is_replayed { Box::new(Replayed(shop)) } else { Box::new(shop) }
        }));
        let settings = PoolSettings {
            group_size: 3,
            limits: limits(),
            tokens_per_iteration: Some(tokens),
            ..PoolSettings::default()
        };
        let pool = || {
            RolloutPool::new(tasks.clone(), Arc::new(agents()), None, settings.clone(), 7)
                .with_ledger(open(&path))
        };
        block_on(async {
            let mut first = pool();
            first.start(GroupId(0), 0);
            first.start(GroupId(1), 0);
            for _ in 0..n_before {
                iterate(&mut first).await;
            }
            let saved = serde_json::to_string(&first.snapshot()).expect("a snapshot is data");
            let groups = all_groups(&mut first).await;
            let sold = till.sold();
            drop(first);
            let mut again = pool();
            again.restore(serde_json::from_str(&saved).expect("it was written whole")).expect("valid");
            let groups_again = all_groups(&mut again).await;
            prop_assert_eq!(till.sold(), sold);
            prop_assert!(groups_again <= groups);
            prop_assert!(issued(&path).values().all(|n| *n == 1));
            Ok(())
        })?;
    }
}

proptest! {
    // Rollouts 13.20: the last line may be torn anywhere.
    #[test]
    fn a_torn_last_line_is_cut_off_and_nothing_else(at in any::<prop::sample::Index>()) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ledger.jsonl");
        sell_three(&path);
        let bytes = std::fs::read(&path).expect("it was just written");
        let kept = at.index(bytes.len() + 1);
        std::fs::write(&path, &bytes[..kept]).expect("a file");
        let whole = bytes[..kept].split(|byte| *byte == b'\n').count() - 1;
        let ledger = ToolLedger::new(5, 0, 0);
        ledger.keep_in(open(&path));
        ledger.begin_turn(0);
        for place in 0..3 {
            let answer = ledger.issue(&sale(place), place, false);
            match (whole.saturating_sub(2 * place), answer) {
                (0, Ok(Issued::Call(_))) | (2.., Ok(Issued::Recorded(_))) => {}
                (1, Err(error)) => prop_assert_eq!(error.kind(), ErrorKind::ToolInDoubt),
                (n, other) => prop_assert!(false, "{n} lines left for {place}: {other:?}"),
            }
        }
        // New entries can be read again.
        drop(ledger);
        prop_assert!(LedgerFile::open(&path).is_ok());
    }
}

/// An engine that samples other tokens than [`ENGINE`], as one does after a crash where rollouts depend on speed.
#[derive(Debug)]
struct Reseeded;

#[async_trait]
impl Policy for Reseeded {
    fn version(&self) -> PolicyVersion {
        ENGINE.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        ENGINE.sample(SampleRequest { seed: !request.seed, ..request }).await
    }
}

// Every episode that was under way has a call in doubt, which is no sign of a broken environment.
#[test]
fn a_pool_whose_episodes_take_another_course_after_a_crash_goes_on_with_new_attempts() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ledger.jsonl");
    let till = Arc::new(Till::new(false));
    let till_of_tasks = till.clone();
    let tasks: Arc<dyn TaskSet> =
        Arc::new(Made(move || -> Box<dyn Environment> { Box::new(Shop::new(&till_of_tasks, 3)) }));
    let settings = PoolSettings {
        group_size: 8,
        max_faults_in_row: 2,
        limits: limits(),
        ..PoolSettings::default()
    };
    let run = |policy: Arc<dyn Policy>| {
        let mut pool =
            RolloutPool::new(tasks.clone(), Arc::new(agents()), None, settings.clone(), 7)
                .with_ledger(open(&path));
        block_on(async {
            pool.start(GroupId(0), 0);
            let mut iterations = Vec::new();
            while pool.n_open() > 0 {
                iterations
                    .push(pool.iterate(&policy, &StopSignal::never()).await.expect("it goes on"));
            }
            iterations
        })
    };
    run(Arc::new(ENGINE));
    let again = run(Arc::new(Reseeded));
    let count = |iteration: &Iteration| iteration.outcomes.get("infra_tool_in_doubt").copied();
    let in_doubt: u64 = again.iter().filter_map(count).sum();
    assert!(in_doubt > 2, "{in_doubt}");
    assert!(again.iter().flat_map(|iteration| &iteration.groups).count() == 1);
    let issued = issued(&path);
    assert!(issued.values().all(|n| *n == 1) && till.sold().len() == issued.len());
}

async fn iterate(pool: &mut RolloutPool) -> usize {
    let policy: Arc<dyn Policy> = Arc::new(ENGINE);
    pool.iterate(&policy, &StopSignal::never()).await.expect("nothing breaks").groups.len()
}

/// Runs a pool until no group is open, and returns the number of finished groups.
async fn all_groups(pool: &mut RolloutPool) -> usize {
    let mut n_groups = 0;
    while pool.n_open() > 0 {
        n_groups += iterate(pool).await;
    }
    n_groups
}

fn sale(place: usize) -> ToolCall {
    let arguments = json!({"item": place});
    ToolCall { id: format!("call_{place}"), name: "sell".to_owned(), arguments }
}

fn sell_three(path: &Path) {
    let ledger = ToolLedger::new(5, 0, 0);
    ledger.keep_in(open(path));
    ledger.begin_turn(0);
    for place in 0..3 {
        let issued = ledger.issue(&sale(place), place, false).expect("it is new");
        assert!(matches!(issued, Issued::Call(_)));
        ledger.settle(place, &ToolReply::Result("sold".to_owned())).expect("the disk is there");
    }
}

// Rollouts 13.20: a file that is damaged in the middle is refused.
#[test]
fn a_ledger_with_a_wrong_line_is_refused_with_its_number() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ledger.jsonl");
    sell_three(&path);
    let text = std::fs::read_to_string(&path).expect("it was just written");
    std::fs::write(&path, text.replacen("settled", "sold", 1)).expect("a file");
    let refused = LedgerFile::open(&path).expect_err("nobody wrote that");
    assert!(refused.to_string().contains("line 2"), "{refused}");
}

// Rollouts 13.20: a different call in the place of an issued one is not simply made.
#[test]
fn another_call_in_the_place_of_one_that_was_made_is_in_doubt() {
    let ledger = ToolLedger::new(5, 0, 0);
    ledger.begin_turn(0);
    assert!(ledger.issue(&sale(0), 0, false).is_ok());
    ledger.settle(0, &ToolReply::Result("sold".to_owned())).expect("nothing is written");
    let other = ledger.issue(&sale(1), 0, false).expect_err("the world has moved on");
    assert_eq!(other.kind(), ErrorKind::ToolInDoubt);
    assert!(matches!(ledger.issue(&sale(1), 0, true), Ok(Issued::Call(_))));
}

// Rollouts 13.19: a result after the end of the attempt is dropped.
#[test]
fn a_late_result_reaches_nobody() {
    let (old, new) = (ToolLedger::new(5, 0, 0), ToolLedger::new(5, 0, 1));
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder.path().join("ledger.jsonl"));
    old.keep_in(store.clone());
    new.keep_in(store);
    let Ok(Issued::Call(key)) = old.issue(&sale(0), 0, false) else { panic!("it is new") };
    old.close();
    old.settle(0, &ToolReply::Result("late".to_owned())).expect("it is dropped");
    assert!(old.records()[0].reply.is_none());
    let Ok(Issued::Call(of_new)) = new.issue(&sale(0), 0, false) else {
        panic!("a new attempt has calls of its own")
    };
    assert_ne!(key, of_new);
    let refused = old.issue(&sale(1), 1, true).expect_err("the attempt is over");
    assert_eq!(refused.kind(), ErrorKind::Protocol);
}
