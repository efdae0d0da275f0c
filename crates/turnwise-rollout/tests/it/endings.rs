//! The five outcomes: which rewards count, which do not, and what no clock can change.

use std::time::Duration;

use async_trait::async_trait;
use proptest::prelude::*;
use turnwise_environment::{Action, Ending, Environment, EnvironmentError, Observation, Step};
use turnwise_rollout::{
    Allowance, Episode, Limits, Policy, PolicyError, Progress, Sample, SampleRequest, stop_signal,
};
use turnwise_testkit::{Echo, Fault, FaultyTasks};
use turnwise_trajectory::{
    AgentFault, CancelReason, InfraReason, Limit, Outcome, PolicyVersion, Trajectory,
};

use crate::support::{Cuts, RecordingPolicy, agents, block_on, identity, limits, play};

/// Answers with steps that were written down, one after the other.
#[derive(Clone, Debug)]
struct Scripted {
    steps: Vec<Step>,
    range: (f64, f64),
    fault_reward: Option<f64>,
    /// How long a step takes.
    seconds: u64,
}

impl Scripted {
    fn new(steps: Vec<Step>) -> Self {
        Self { steps, range: (f64::MIN, f64::MAX), fault_reward: None, seconds: 0 }
    }
}

#[async_trait]
impl Environment for Scripted {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        self.steps.reverse();
        Ok("Begin.".into())
    }

    async fn step(&mut self, _action: Action) -> Result<Step, EnvironmentError> {
        tokio::time::sleep(Duration::from_secs(self.seconds)).await;
        self.steps.pop().ok_or_else(|| EnvironmentError::new("a step was taken after the end"))
    }

    fn reward_range(&self) -> std::ops::RangeInclusive<f64> {
        self.range.0..=self.range.1
    }

    fn fault_reward(&self) -> Option<f64> {
        self.fault_reward
    }
}

/// An engine that takes its time for each request.
struct Slow {
    inner: RecordingPolicy,
    seconds: u64,
}

#[async_trait]
impl Policy for Slow {
    fn version(&self) -> PolicyVersion {
        self.inner.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        tokio::time::sleep(Duration::from_secs(self.seconds)).await;
        self.inner.sample(request).await
    }
}

fn played_with(script: Scripted, policy: &dyn Policy, limits: &Limits) -> Trajectory {
    let tasks = vec![script];
    block_on(play(&tasks, identity(&tasks, 0, 4), &agents(), policy, limits, &Cuts::default())).0
}

fn played(script: Scripted) -> Trajectory {
    played_with(script, &RecordingPolicy::new(4), &limits())
}

fn reason(trajectory: &Trajectory) -> Option<InfraReason> {
    match &trajectory.outcome {
        Outcome::InfraFault(fault) => Some(fault.reason),
        _ => None,
    }
}

fn is_bad_reward(trajectory: &Trajectory) -> bool {
    reason(trajectory) == Some(InfraReason::BadReward)
        && trajectory.reward().is_none()
        && !trajectory.solved
}

/// Rollouts 13.9
#[test]
fn a_reward_that_is_no_number_is_never_a_reward() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let first = Step::next("Go on.").reward(1.0);
        let at_the_end = Scripted::new(vec![first.clone(), Step::terminated(bad).solved(true)]);
        assert!(is_bad_reward(&played(at_the_end)), "{bad} at the end");
        let steps = vec![first, Step::next("On.").reward(bad), Step::terminated(1.0)];
        assert!(is_bad_reward(&played(Scripted::new(steps))), "{bad} on the way");
    }
}

/// Rollouts 13.9: however the episode ends.
#[test]
fn a_sum_outside_the_declared_range_is_never_a_reward() {
    let go_on = || Step::next("Go on.").reward(0.75);
    let endings: [(&str, Vec<Step>, u32); 4] = [
        ("terminated", vec![go_on(), Step::terminated(0.75)], 8),
        ("truncated", vec![go_on(), Step::truncated().reward(0.75)], 8),
        ("turns", vec![go_on(), go_on(), go_on()], 8),
        ("faults", vec![go_on(), go_on().faults(3), go_on()], 2),
    ];
    for (name, steps, max_faults) in endings {
        let script = Scripted { range: (0.0, 1.0), ..Scripted::new(steps) };
        let limits = Limits { max_turns: 2, max_faults, ..limits() };
        let trajectory = played_with(script.clone(), &RecordingPolicy::new(4), &limits);
        assert!(is_bad_reward(&trajectory), "{name}: {:?}", trajectory.outcome);
        let wide = Scripted { range: (0.0, 2.0), ..script };
        let trajectory = played_with(wide, &RecordingPolicy::new(4), &limits);
        assert_eq!(trajectory.reward(), Some(1.5), "{name}: {:?}", trajectory.outcome);
    }
}

/// Rollouts 13.9: the message names environment, task and value.
#[test]
fn a_bad_reward_says_where_it_came_from() {
    let trajectory = played(Scripted::new(vec![Step::terminated(f64::NAN)]));
    let Outcome::InfraFault(fault) = trajectory.outcome else { panic!("it is a fault") };
    for part in ["Scripted", "task 0", "NaN", "turn 1"] {
        assert!(fault.message.contains(part), "{part} is missing in {:?}", fault.message);
    }
}

proptest! {
    /// Rollouts 13.28
    #[test]
    fn a_finished_episode_keeps_its_reward_whatever_limit_it_reached(
        turns in 1_usize..5,
        max_turn_tokens in 1_usize..4,
        seed in any::<u64>(),
    ) {
        let tasks = vec![Echo::new(turns, true)];
        let run = |limits: &Limits| {
            let (agents, engine) = (agents(), RecordingPolicy::new(4));
            let identity = identity(&tasks, 0, seed);
            block_on(play(&tasks, identity, &agents, &engine, limits, &Cuts::default())).0
        };
        let free = Limits { max_turn_tokens, ..Limits::default() };
        let whole = run(&free);
        prop_assert_eq!(&whole.outcome, &Outcome::Done);
        // Every limit is now reached by the very token that ends the episode.
        let last = whole.graph.leaves()[0];
        let tight = Limits {
            max_turns: whole.turns.len(),
            max_sampled_tokens: whole.n_sampled(),
            max_context_tokens: whole.graph.ids_to(last).len(),
            ..free.clone()
        };
        prop_assert_eq!(&run(&tight), &whole);
        // One less, and it is truncated with the rewards it has received.
        if turns > 1 {
            let cut = run(&Limits { max_turns: turns - 1, ..free });
            prop_assert_eq!(&cut.outcome, &Outcome::Truncated(Limit::Turns));
            let received: f64 =
                whole.turns[..turns - 1].iter().filter_map(|turn| turn.reward).sum();
            prop_assert_eq!(cut.reward(), Some(received));
        }
    }
}

/// rollouts section 2: each limit of the policy says which it was.
#[test]
fn a_truncated_episode_says_what_it_ran_into() {
    let tasks = vec![Echo::new(9, true)];
    let cases = [
        (Limits { max_turns: 2, ..limits() }, Limit::Turns),
        (Limits { max_sampled_tokens: 5, ..limits() }, Limit::SampledTokens),
        (Limits { max_context_tokens: 14, ..limits() }, Limit::Context),
    ];
    for (limits, limit) in cases {
        let identity = identity(&tasks, 0, 4);
        let (agents, engine) = (agents(), RecordingPolicy::new(4));
        let (trajectory, _) =
            block_on(play(&tasks, identity, &agents, &engine, &limits, &Cuts::default()));
        assert_eq!(trajectory.outcome, Outcome::Truncated(limit));
        assert!(trajectory.reward().is_some());
    }
    let own_clock = Scripted::new(vec![Step::next("On.").reward(0.5), Step::truncated()]);
    let trajectory = played(own_clock);
    assert_eq!(trajectory.outcome, Outcome::Truncated(Limit::Environment));
    assert_eq!(trajectory.reward(), Some(0.5));
}

/// rollouts section 2: what a truncated episode has received stays and is counted, and nothing received is 0. Without that,
/// where rewards come at the end, never coming to an end would not be compared with anything.
#[test]
fn a_truncated_episode_that_earned_nothing_has_reward_0_and_is_counted() {
    let endless = Scripted::new(vec![Step::next("On."), Step::next("On."), Step::next("On.")]);
    let limits = Limits { max_turns: 2, ..limits() };
    let trajectory = played_with(endless, &RecordingPolicy::new(4), &limits);
    assert_eq!(trajectory.outcome, Outcome::Truncated(Limit::Turns));
    assert!(trajectory.turns.iter().all(|turn| turn.reward.is_none()));
    assert_eq!(trajectory.reward(), Some(0.0));
    // Ending without any reward is another thing: somebody forgot to give it.
    let unscored = played(Scripted::new(vec![Step::End {
        reward: None,
        ending: Ending::Terminated,
        solved: false,
        others: Vec::new(),
        late: Vec::new(),
    }]));
    assert_eq!(unscored.reward(), None);
}

/// A first prompt that does not fit is nobody's reward: neither the policy nor the environment ran into anything.
#[test]
fn a_first_prompt_beyond_the_context_says_so() {
    let limits = Limits { max_context_tokens: 2, ..limits() };
    let script = Scripted::new(vec![Step::terminated(1.0)]);
    let trajectory = played_with(script, &RecordingPolicy::new(4), &limits);
    let Outcome::InfraFault(fault) = &trajectory.outcome else { panic!("{trajectory:?}") };
    assert_eq!(fault.reason, InfraReason::Render);
    assert!(fault.message.contains("max_context_tokens is 2"), "{}", fault.message);
    assert_eq!(trajectory.reward(), None);
}

/// rollouts section 2: a real reward, declared by the environment or by the settings.
#[test]
fn a_used_up_fault_budget_is_the_agents_fault_with_a_reward() {
    let fault = || Step::next("No.").reward(0.25).faults(1);
    let script = Scripted::new(vec![fault(), fault(), fault(), fault()]);
    let limits = Limits { max_faults: 2, fault_reward: -1.0, ..limits() };
    let trajectory = played_with(script.clone(), &RecordingPolicy::new(4), &limits);
    assert_eq!(trajectory.outcome, Outcome::AgentFault(AgentFault::FaultBudget));
    assert_eq!(trajectory.turns.len(), 3, "the budget is two, and one more ends it");
    assert_eq!(trajectory.reward(), Some(0.75 - 1.0), "by the settings");
    let declared = Scripted { fault_reward: Some(-0.5), ..script };
    let trajectory = played_with(declared, &RecordingPolicy::new(4), &limits);
    assert_eq!(trajectory.reward(), Some(0.75 - 0.5), "by the environment");
}

/// rollouts section 2: saying nothing is a mistake of form, whatever the environment thinks of it.
#[test]
fn empty_answers_use_up_the_fault_budget() {
    /// Draws the stop token and nothing else.
    struct Silent;

    #[async_trait]
    impl Policy for Silent {
        fn version(&self) -> PolicyVersion {
            PolicyVersion(0)
        }

        async fn sample(&self, _request: SampleRequest) -> Result<Sample, PolicyError> {
            let token = turnwise_trajectory::SampledToken::new(0, -0.1, PolicyVersion(0));
            let stop = turnwise_trajectory::StopReason::EndOfTurn;
            Ok(Sample { tokens: vec![token], stop, ..Sample::new("silent") })
        }
    }

    let limits = Limits { max_faults: 1, ..limits() };
    let script = Scripted::new(vec![Step::next("Well?"); 4]);
    let trajectory = played_with(script, &Silent, &limits);
    assert_eq!(trajectory.outcome, Outcome::AgentFault(AgentFault::Empty));
    assert_eq!((trajectory.turns.len(), trajectory.reward()), (2, Some(0.0)));
    // An environment for which silence is an answer may end the episode with it.
    let content = played_with(Scripted::new(vec![Step::terminated(1.0)]), &Silent, &limits);
    assert_eq!((content.outcome.clone(), content.reward()), (Outcome::Done, Some(1.0)));
}

/// rollouts section 2: environments that break, in every way there is.
#[test]
fn an_environment_that_breaks_ends_its_episode_and_nothing_else() {
    let expected = [
        (Fault::Error, InfraReason::EnvError),
        (Fault::Panic, InfraReason::EnvPanic),
        (Fault::Hang, InfraReason::EnvTimeout),
        (Fault::NanReward, InfraReason::BadReward),
        (Fault::WildReward, InfraReason::BadReward),
        (Fault::Failed, InfraReason::EnvError),
    ];
    for (fault, expected) in expected {
        let tasks = FaultyTasks::new(vec![Echo::new(4, true)], fault, 1);
        let identity = identity(&tasks, 0, 4);
        let (agents, engine) = (agents(), RecordingPolicy::new(4));
        let (trajectory, _) =
            block_on(play(&tasks, identity, &agents, &engine, &limits(), &Cuts::default()));
        assert_eq!(reason(&trajectory), Some(expected), "{fault:?}");
        assert_eq!(trajectory.reward(), None, "{fault:?}");
        assert_eq!(trajectory.turns.len(), 2, "{fault:?}: the turn that broke is in the record");
    }
}

/// Rollouts 13.24: each wait has a deadline, and which one passed can be read.
#[test]
fn nothing_outlives_its_deadline() {
    let limits = Limits {
        environment_timeout_s: 10.0,
        engine_timeout_s: 20.0,
        episode_timeout_s: 45.0,
        ..limits()
    };
    let five = || Scripted::new(vec![Step::next("On."); 5]);
    let cases = [
        ("environment", Scripted { seconds: 11, ..five() }, 0, InfraReason::EnvTimeout, 10),
        ("engine", five(), 21, InfraReason::EngineTimeout, 20),
        ("episode", Scripted { seconds: 9, ..five() }, 19, InfraReason::EpisodeTimeout, 45),
    ];
    for (name, script, seconds, expected, deadline) in cases {
        let engine = Slow { inner: RecordingPolicy::new(4), seconds };
        let tasks = vec![script];
        let identity = identity(&tasks, 0, 4);
        block_on(async {
            let started = tokio::time::Instant::now();
            let agents = agents();
            let (trajectory, _) =
                play(&tasks, identity, &agents, &engine, &limits, &Cuts::default()).await;
            assert_eq!(reason(&trajectory), Some(expected), "{name}");
            let took = started.elapsed();
            assert!(took >= Duration::from_secs(deadline), "{name}: {took:?}");
            assert!(took <= Duration::from_secs(deadline + 1), "{name}: {took:?}");
        });
    }
}

/// rollouts section 2: slow is not late, and a clock never lowers a reward.
#[test]
fn an_episode_within_its_deadlines_has_the_reward_of_a_fast_one() {
    let script = Scripted::new(vec![Step::next("On.").reward(0.5), Step::terminated(0.5)]);
    let fast = played(script.clone());
    let engine = Slow { inner: RecordingPolicy::new(4), seconds: 9 };
    let slow = played_with(Scripted { seconds: 9, ..script }, &engine, &limits());
    assert_eq!((slow.reward(), &slow.outcome), (fast.reward(), &fast.outcome));
    assert!(slow.sampled().eq(fast.sampled()));
    let seconds: Vec<f64> = slow.turns.iter().map(|turn| turn.seconds).collect();
    assert_eq!(seconds, [18.0, 18.0], "wall time of a turn: engine and environment");
}

/// rollouts section 9: time spent suspended is nobody's.
#[test]
fn the_deadline_of_an_episode_runs_only_while_it_runs() {
    let tasks = vec![Echo::new(3, true)];
    let limits = Limits { episode_timeout_s: 10.0, ..limits() };
    block_on(async {
        let agents = agents();
        let environment = Box::new(Echo::new(3, true));
        let mut episode = Episode::new(identity(&tasks, 0, 4), environment, &agents, limits);
        let engine = RecordingPolicy::new(4);
        let trajectory = loop {
            episode = match episode.advance(&engine, &Allowance::tokens(1)).await {
                Progress::Finished(trajectory) => break trajectory,
                Progress::Suspended(episode) => episode,
            };
            tokio::time::sleep(Duration::from_mins(1)).await;
        };
        assert_eq!(trajectory.outcome, Outcome::Done);
    });
}

/// rollouts section 6: a stop gives up the request and loses nothing; the episode goes on as if it had not been asked.
#[test]
fn continuing_after_a_stop_equals_never_having_stopped() {
    let tasks = vec![Echo::new(5, true)];
    let engine = || Slow { inner: RecordingPolicy::new(4), seconds: 10 };
    let run = |stop_after: Option<u64>| {
        block_on(async {
            let agents = agents();
            let episode =
                Episode::new(identity(&tasks, 0, 6), tasks_environment(&tasks), &agents, limits());
            let (handle, signal) = stop_signal();
            let allowance = Allowance { tokens: u64::MAX, stop: signal };
            let asks = async {
                if let Some(seconds) = stop_after {
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                    handle.stop();
                }
            };
            let engine = engine();
            let (progress, ()) = tokio::join!(episode.advance(&engine, &allowance), asks);
            let mut trajectory = match progress {
                Progress::Finished(trajectory) => trajectory,
                Progress::Suspended(episode) => {
                    match episode.advance(&engine, &Allowance::unlimited()).await {
                        Progress::Finished(trajectory) => trajectory,
                        Progress::Suspended(_) => panic!("nobody asks a second time"),
                    }
                }
            };
            trajectory.turns.iter_mut().for_each(|turn| turn.seconds = 0.0);
            trajectory
        })
    };
    let whole = run(None);
    for seconds in [0, 5, 10, 15, 25, 48] {
        assert_eq!(run(Some(seconds)), whole, "stopped after {seconds} s");
    }
}

fn tasks_environment(tasks: &[Echo]) -> Box<dyn Environment> {
    Box::new(tasks[0].clone())
}

/// rollouts section 2: no reward, and the tokens stay in the record.
#[test]
fn a_cancelled_episode_has_no_reward() {
    let tasks = vec![Echo::new(5, true)];
    let agents = agents();
    let episode =
        Episode::new(identity(&tasks, 0, 6), tasks_environment(&tasks), &agents, limits());
    block_on(async {
        let Progress::Suspended(episode) =
            episode.advance(&RecordingPolicy::new(4), &Allowance::tokens(7)).await
        else {
            panic!("seven tokens do not end it");
        };
        let trajectory = episode.cancel(CancelReason::Stale, &RecordingPolicy::new(4));
        assert_eq!(trajectory.outcome, Outcome::Cancelled(CancelReason::Stale));
        assert_eq!((trajectory.reward(), trajectory.n_sampled()), (None, 7));
        trajectory.graph.validate().expect("a graph that can be written");
    });
}
