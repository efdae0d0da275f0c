//! An interrupted rollout is the uninterrupted one, however it was cut and through whatever it was stored.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use turnwise_calculator::CalculatorSettings;
use turnwise_environment::{Action, Message, Split, TaskSet, ToolSpec};
use turnwise_guess::GuessSettings;
use turnwise_rollout::{
    Allowance, Bridged, ChatAgents, Compaction, EndedTurn, Episode, Group, Limits, Policy,
    PoolSettings, PoolSnapshot, Progress, RenderError, Rendered, Renderer, RolloutPool, Said,
    StopSignal,
};
use turnwise_testkit::{AlphabetRenderer, Echo, Interrupting, Replayed};
use turnwise_trajectory::{GroupId, Sampling, TokenId, Trajectory};

use crate::support::{
    Cuts, RecordingPolicy, agents, agents_with, block_on, echoes, identity, limits, play,
    pool_settings,
};

/// Reads letters as text, and `c12` as a call of the calculator.
struct CallingRenderer {
    inner: AlphabetRenderer,
}

impl CallingRenderer {
    const LETTERS: &str = "0123456789c";

    fn agents() -> ChatAgents {
        let renderer = Arc::new(Self { inner: AlphabetRenderer::new(Self::LETTERS) });
        ChatAgents::new(renderer)
    }
}

impl Renderer for CallingRenderer {
    fn fingerprint(&self) -> &'static str {
        "calling"
    }

    fn render(
        &self,
        conversation: &[Said<'_>],
        tools: &[ToolSpec],
    ) -> Result<Rendered, RenderError> {
        assert_eq!(tools.len(), 1, "the agent is told about the calculator");
        self.inner.render(conversation, tools)
    }

    fn bridge(
        &self,
        ended: EndedTurn<'_>,
        history: &[Said<'_>],
        new: &[Message],
    ) -> Result<Bridged, RenderError> {
        self.inner.bridge(ended, history, new)
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        self.inner.write(action)
    }

    fn parse(&self, turn: &[TokenId], tools: &[ToolSpec]) -> Action {
        let said = self.inner.parse(turn, tools);
        match said.text.split_once('c') {
            Some((a, b)) => {
                let arguments = json!({"a": a.parse::<i64>().ok(), "op": "+", "b": b.len()});
                Action::call("calc", arguments)
            }
            None => said,
        }
    }

    fn shortens(&self, message: &Message, tools: &[ToolSpec]) -> bool {
        self.inner.shortens(message, tools)
    }

    fn stop_tokens(&self) -> &[TokenId] {
        self.inner.stop_tokens()
    }

    fn text(&self, ids: &[TokenId]) -> String {
        self.inner.text(ids)
    }
}

/// One environment with what speaks to it.
struct Setting {
    tasks: Arc<dyn TaskSet>,
    agents: ChatAgents,
    n_ids: usize,
}

fn every_setting() -> Vec<Setting> {
    let guess = turnwise_guess::suite(GuessSettings::default()).expect("valid settings");
    let calculator =
        turnwise_calculator::suite(CalculatorSettings::default()).expect("valid settings");
    let digits = agents_with("0123456789", Sampling::default());
    let replayed: Vec<_> = echoes(6, false).into_iter().map(Replayed).collect();
    let compaction = Some(Compaction { at_tokens: 40, prompt: "Sum up.".to_owned() });
    let summing = || ChatAgents { compaction: compaction.clone(), ..agents() };
    vec![
        Setting { tasks: Arc::new(echoes(6, true)), agents: agents(), n_ids: 4 },
        Setting { tasks: Arc::new(echoes(6, true)), agents: summing(), n_ids: 4 },
        Setting { tasks: Arc::new(replayed), agents: summing(), n_ids: 4 },
        Setting { tasks: guess.tasks(Split::Train), agents: digits, n_ids: 11 },
        Setting {
            tasks: calculator.tasks(Split::HeldOut),
            agents: CallingRenderer::agents(),
            n_ids: 12,
        },
    ]
}

fn played(setting: &Setting, seed: u64, policy: &dyn Policy, cuts: &Cuts) -> (Trajectory, u32) {
    let index = (seed % setting.tasks.len() as u64) as usize;
    let identity = identity(&*setting.tasks, index, seed);
    block_on(play(&*setting.tasks, identity, &setting.agents, policy, &limits(), cuts))
}

proptest! {
    /// Rollouts 13.4 and 13.5: tokens, log-probabilities, rewards, outcome, everything.
    #[test]
    fn an_interrupted_rollout_equals_an_uninterrupted_one(
        seed in any::<u64>(),
        allowances in prop::collection::vec(1_u64..8, 1..4),
        after in 1_usize..8,
        through_json in any::<bool>(),
    ) {
        for setting in every_setting() {
            let engine = || RecordingPolicy::new(setting.n_ids);
            let (whole, _) = played(&setting, seed, &engine(), &Cuts::default());
            let cuts = Cuts { allowances: allowances.clone(), through_json };
            let (cut, _) = played(&setting, seed, &engine(), &cuts);
            prop_assert_eq!(&cut, &whole);
            let interrupting = Interrupting { inner: engine(), after };
            let unlimited = Cuts { allowances: Vec::new(), through_json };
            let (interrupted, _) = played(&setting, seed, &interrupting, &unlimited);
            prop_assert_eq!(&interrupted, &whole);
            let (both, _) = played(&setting, seed, &interrupting, &cuts);
            prop_assert_eq!(&both, &whole);
        }
    }

    /// Rollouts 13.4 under every limit the policy can run into.
    #[test]
    fn limits_do_not_depend_on_where_an_episode_was_cut(
        seed in any::<u64>(),
        max_turns in 1_usize..6,
        max_turn_tokens in 1_usize..6,
        max_sampled_tokens in 1_usize..20,
        max_context_tokens in 8_usize..60,
        tokens in 1_u64..5,
    ) {
        let tasks = vec![Echo::new(5, true)];
        let limits = Limits {
            max_turns,
            max_turn_tokens,
            max_sampled_tokens,
            max_context_tokens,
            ..Limits::default()
        };
        let identity = identity(&tasks, 0, seed);
        let run = |cuts: Cuts| {
            let (identity, engine) = (identity.clone(), RecordingPolicy::new(4));
            let (agents, tasks, limits) = (agents(), &tasks, &limits);
            block_on(async move { play(tasks, identity, &agents, &engine, limits, &cuts).await }).0
        };
        let whole = run(Cuts::default());
        let cut = run(Cuts { allowances: vec![tokens], through_json: true });
        prop_assert_eq!(&cut, &whole);
        prop_assert!(whole.n_sampled() <= max_sampled_tokens);
        prop_assert!(whole.turns.len() <= max_turns);
        prop_assert!(whole.turn_nodes().all(|node| node.sampled().count() <= max_turn_tokens));
    }
}

/// Rollouts 13.4: one token at a time is the worst there is.
#[test]
fn an_episode_can_be_suspended_after_every_token() {
    for setting in every_setting() {
        let (whole, _) =
            played(&setting, 11, &RecordingPolicy::new(setting.n_ids), &Cuts::default());
        let cuts = Cuts { allowances: vec![1], through_json: true };
        let (cut, suspensions) = played(&setting, 11, &RecordingPolicy::new(setting.n_ids), &cuts);
        assert_eq!(cut, whole);
        assert!(suspensions as usize + 1 >= whole.n_sampled());
    }
}

/// Rollouts 13.4: an allowance of nothing draws nothing and loses nothing.
#[test]
fn an_allowance_of_nothing_changes_nothing() {
    let tasks = echoes(3, true);
    let (engine, plain) = (RecordingPolicy::new(4), RecordingPolicy::new(4));
    block_on(async {
        let make = || {
            let identity = identity(&tasks, 2, 5);
            Episode::new(identity, tasks.environment(2), &agents(), limits())
        };
        let Progress::Suspended(episode) = make().advance(&engine, &Allowance::tokens(0)).await
        else {
            panic!("it has not drawn a token");
        };
        assert_eq!((episode.n_drawn(), engine.exchanges().len()), (0, 0));
        let Progress::Finished(later) = episode.advance(&engine, &Allowance::unlimited()).await
        else {
            panic!("nothing stops it");
        };
        let Progress::Finished(at_once) = make().advance(&plain, &Allowance::unlimited()).await
        else {
            panic!("nothing stops it");
        };
        assert_eq!(later, at_once);
    });
}

/// Rollouts 13.5, 13.29 and 11.28: a snapshot goes on only where its tokens mean the same.
#[test]
fn a_snapshot_is_refused_by_another_renderer_task_or_sampling() {
    let tasks = echoes(3, true);
    block_on(async {
        let episode =
            Episode::new(identity(&tasks, 2, 5), tasks.environment(2), &agents(), limits());
        let Progress::Suspended(episode) =
            episode.advance(&RecordingPolicy::new(4), &Allowance::tokens(2)).await
        else {
            panic!("two tokens do not end it");
        };
        let snapshot = episode.snapshot().expect("echoes take snapshots");
        assert!(Episode::restore(snapshot.clone(), &tasks, &agents()).is_ok());
        let others = [
            agents_with("xyz", Sampling::default()),
            agents_with("abc", Sampling { temperature: 0.5, ..Sampling::default() }),
        ];
        for other in others {
            assert!(Episode::restore(snapshot.clone(), &tasks, &other).is_err());
        }
        let other_tasks = vec![Echo::new(9, true); 3];
        assert!(Episode::restore(snapshot.clone(), &other_tasks, &agents()).is_err());
        assert!(Episode::restore(snapshot, &echoes(2, true), &agents()).is_err());
    });
}

fn pool(settings: PoolSettings, has_snapshots: bool) -> RolloutPool {
    RolloutPool::new(Arc::new(echoes(4, has_snapshots)), Arc::new(agents()), None, settings, 21)
}

/// Runs a pool of three groups until nothing waits; `between` may put another in its place after each iteration.
fn drained(
    settings: &PoolSettings,
    has_snapshots: bool,
    between: impl Fn(RolloutPool) -> RolloutPool,
) -> Vec<Group> {
    let policy: Arc<dyn Policy> = Arc::new(RecordingPolicy::new(4));
    let mut pool = pool(settings.clone(), has_snapshots);
    (0..3).for_each(|group| pool.start(GroupId(group), group as usize + 1));
    let mut groups = Vec::new();
    block_on(async {
        while pool.n_waiting() > 0 {
            let iteration = pool.iterate(&policy, &StopSignal::never()).await;
            groups.extend(iteration.expect("nothing breaks").groups);
            pool = between(pool);
        }
    });
    groups.sort_by_key(|group| group.id);
    groups
}

fn pool_reborn(old: &RolloutPool, settings: &PoolSettings, has_snapshots: bool) -> RolloutPool {
    let json = serde_json::to_string(&old.snapshot()).expect("a snapshot is plain data");
    let snapshot: PoolSnapshot = serde_json::from_str(&json).expect("what was written is read");
    let mut new = pool(settings.clone(), has_snapshots);
    new.restore(snapshot).expect("what was suspended goes on");
    assert_eq!(new.ledger(), old.ledger());
    assert_eq!((new.n_open(), new.n_waiting()), (old.n_open(), old.n_waiting()));
    new
}

/// Rollouts 13.5 for a whole pool, after every iteration.
#[test]
fn a_pool_goes_on_from_its_snapshot() {
    let settings = PoolSettings { tokens_per_iteration: Some(24), ..pool_settings() };
    let whole = drained(&settings, true, |pool| pool);
    assert_eq!(whole.len(), 3);
    assert_eq!(drained(&settings, true, |pool| pool_reborn(&pool, &settings, true)), whole);
    let at_once = PoolSettings { tokens_per_iteration: None, ..settings };
    assert_eq!(drained(&at_once, true, |pool| pool), whole);
}

/// rollouts section 6: without snapshots an episode is parked while the process lives, and starts anew after it.
#[test]
fn an_episode_without_snapshots_starts_anew_as_another_attempt() {
    let settings = PoolSettings { tokens_per_iteration: Some(60), ..pool_settings() };
    let whole = drained(&settings, true, |pool| pool);
    assert!(drained(&settings, false, |pool| pool).iter().zip(&whole).all(same_tokens));
    let restarted = std::cell::Cell::new(0);
    let again = drained(&settings, false, |old| {
        if restarted.get() > 0 {
            return old;
        }
        restarted.set(old.snapshot().n_restarting());
        pool_reborn(&old, &settings, false)
    });
    assert!(restarted.get() > 0, "the budget suspends somebody");
    assert!(again.iter().zip(&whole).all(same_tokens));
    let attempts = again.iter().flat_map(|group| &group.members);
    assert_eq!(attempts.filter(|one| one.identity.attempt == 1).count(), restarted.get());
}

/// Attempt numbers enter names, never seeds.
fn same_tokens((a, b): (&Group, &Group)) -> bool {
    let tokens = |group: &Group| -> Vec<_> {
        let members = group.members.iter();
        members.map(|one| (one.sampled().collect::<Vec<_>>(), one.reward())).collect()
    };
    tokens(a) == tokens(b)
}
