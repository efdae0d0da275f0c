//! A recorded episode can be played again without an engine, and scored again without being played.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use proptest::prelude::*;
use turnwise_environment::{EnvironmentError, Rubric, Seat, TaskSet, Transcript};
use turnwise_rollout::{
    Allowance, ChatAgents, Compaction, Divergence, Episode, Limits, Policy, PolicyError,
    PoolSettings, Progress, RecordedPolicy, ReplayError, RolloutPool, StopSignal, replay, rescore,
};
use turnwise_testkit::{AlphabetRenderer, Echo, Fault, FaultyTasks};
use turnwise_trajectory::{
    CancelReason, GroupId, MaskReason, Outcome, Trajectory, read_line, write_line,
};

use crate::pitfalls::{Respelling, speaking};
use crate::support::{
    Cuts, LETTERS, RecordedExchange, RecordingPolicy, agents, agents_with, block_on, echoes,
    identity, limits, play, pool_settings,
};

/// Through the file and back.
fn stored(trajectory: &Trajectory) -> Trajectory {
    let mut bytes = Vec::new();
    write_line(&mut bytes, trajectory).expect("memory takes what is written");
    read_line(std::str::from_utf8(&bytes).expect("JSON is text")).expect("just written")
}

/// An episode under weights that change, cut anywhere, as it is stored after it was trained.
fn recorded(seed: u64, limits: &Limits, allowances: Vec<u64>) -> Trajectory {
    let tasks = echoes(5, true);
    let engine = RecordingPolicy::swapping(4, vec![3, 8]);
    let task = identity(&tasks, seed as usize % 5, seed);
    let cuts = Cuts { allowances, through_json: false };
    let (mut trajectory, _) = block_on(play(&tasks, task, &agents(), &engine, limits, &cuts));
    for id in trajectory.graph.ids().collect::<Vec<_>>() {
        for tokens in trajectory.graph.node_mut(id).sampled_mut() {
            tokens.set_advantage(Some(0.5));
        }
    }
    trajectory.mask_turns(MaskReason::Stale, |turn| turn.node.0 < 4);
    stored(&trajectory)
}

/// Without what was decided about its tokens later, and without the time it took.
fn as_played(mut trajectory: Trajectory) -> Trajectory {
    trajectory.turns.iter_mut().for_each(|turn| turn.seconds = 0.0);
    for id in trajectory.graph.ids().collect::<Vec<_>>() {
        for tokens in trajectory.graph.node_mut(id).sampled_mut() {
            let plain =
                |token| turnwise_trajectory::SampledToken { mask: None, advantage: None, ..token };
            *tokens = tokens.iter().map(plain).collect();
        }
    }
    trajectory
}

proptest! {
    // Rollouts 13.27: tokens, log-probabilities, versions, messages, rewards and outcome, under any limit.
    #[test]
    fn a_replay_without_an_engine_is_the_recorded_episode(
        seed in any::<u64>(),
        allowances in prop::collection::vec(1_u64..9, 0..3),
        max_turns in 1_usize..6,
        max_sampled_tokens in 1_usize..40,
    ) {
        let limits = Limits { max_turns, max_sampled_tokens, ..limits() };
        let recorded = recorded(seed, &limits, allowances);
        let tasks = echoes(5, true);
        let again = block_on(replay(&recorded, &tasks, &agents(), limits)).expect("it is the same");
        prop_assert_eq!(as_played(again), as_played(recorded));
    }

    // Rollouts 13.27: the policy alone, asked in other pieces than it was recorded in.
    #[test]
    fn a_recorded_policy_answers_in_any_pieces(
        seed in any::<u64>(),
        allowances in prop::collection::vec(1_u64..9, 1..3),
    ) {
        let recorded = recorded(seed, &limits(), Vec::new());
        let tasks = echoes(5, true);
        let policy = RecordedPolicy::new(recorded.clone());
        let cuts = Cuts { allowances, through_json: true };
        let identity = recorded.identity.clone();
        let (again, _) = block_on(play(&tasks, identity, &agents(), &policy, &limits(), &cuts));
        prop_assert_eq!(as_played(again), as_played(recorded));
    }

    // Rollouts 13.27: up to where it broke or was cancelled, be that in the middle of a turn.
    #[test]
    fn an_episode_that_did_not_end_replays_as_far_as_it_came(seed in any::<u64>(), tokens in 1_u64..20) {
        let tasks = vec![Echo::new(9, true)];
        let engine = RecordingPolicy::new(4);
        let begun = Episode::new(identity(&tasks, 0, seed), tasks.environment(0), &agents(), limits());
        let cancelled = match block_on(begun.advance(&engine, &Allowance::tokens(tokens))) {
            Progress::Suspended(episode) => stored(&episode.cancel(CancelReason::Stale, &engine)),
            Progress::Finished(_) => return Ok(()),
        };
        let again = block_on(replay(&cancelled, &tasks, &agents(), limits())).expect("so far");
        prop_assert!(again.sampled().eq(cancelled.sampled()));
        prop_assert_eq!(again.reward(), None);
    }
}

// Rollouts 13.27: also where the conversation forks, and where a summary takes the place of what was said.
#[test]
fn a_replay_follows_forks_and_summaries() {
    let tasks = vec![Echo::new(7, true)];
    let compaction = Some(Compaction { at_tokens: 40, prompt: "Sum up.".to_owned() });
    let forking = speaking(Arc::new(Respelling(AlphabetRenderer::new(LETTERS))));
    for agents in [forking, ChatAgents { compaction, ..agents() }] {
        let mut n_branches = 0;
        for seed in 0..20 {
            let engine = RecordingPolicy::swapping(4, vec![5]);
            let task = identity(&tasks, 0, seed);
            let (played, _) =
                block_on(play(&tasks, task, &agents, &engine, &limits(), &Cuts::default()));
            assert!(played.outcome.is_scored(), "{:?}", played.outcome);
            n_branches = n_branches.max(played.graph.leaves().len());
            let again = block_on(replay(&stored(&played), &tasks, &agents, limits()));
            assert_eq!(as_played(again.expect("it is the same")), as_played(played));
        }
        assert!(n_branches > 2, "{n_branches}");
    }
}

// Rollouts 13.27: what is asked for otherwise than it was recorded is refused by a typed error that says where.
#[test]
fn a_request_that_was_not_recorded_is_refused() {
    let tasks = vec![Echo::new(4, true)];
    let engine = RecordingPolicy::new(4);
    let task = identity(&tasks, 0, 3);
    let (trajectory, _) =
        block_on(play(&tasks, task, &agents(), &engine, &limits(), &Cuts::default()));
    let policy = RecordedPolicy::new(trajectory.clone());
    let asked = |change: &dyn Fn(&mut turnwise_rollout::SampleRequest)| {
        let RecordedExchange { mut request, .. } = engine.exchanges().swap_remove(1);
        change(&mut request);
        block_on(policy.sample(request)).map(|sample| sample.tokens.len())
    };
    let RecordedExchange { request, sample } = engine.exchanges().swap_remove(1);
    let (index, n) = (request.first_index, sample.tokens.len());
    assert_eq!(asked(&|_| {}), Ok(n));
    let refused = |divergence| Err(PolicyError::Diverged(divergence));
    let prompt = Divergence::Prompt { index, position: 2 };
    assert_eq!(asked(&|request| request.prompt[2] += 1), refused(prompt));
    let position = request.prompt.len() - 1;
    let shorter = Divergence::Prompt { index, position };
    assert_eq!(asked(&|request| request.prompt.truncate(position)), refused(shorter));
    let seed = Divergence::Seed { asked: 5, recorded: trajectory.identity.sampling_seed };
    assert_eq!(asked(&|request| request.seed = 5), refused(seed));
    let warmer = |request: &mut turnwise_rollout::SampleRequest| request.sampling.temperature = 2.0;
    assert_eq!(asked(&warmer), refused(Divergence::Sampling { index }));
    let n_drawn = trajectory.n_sampled() as u64;
    let over = Divergence::Over { index: n_drawn, n_drawn };
    assert_eq!(asked(&|request| request.first_index = n_drawn), refused(over));
}

// Rollouts 13.27: another environment, task, renderer or limit is found, and not replayed into something else.
#[test]
fn a_replay_that_comes_out_otherwise_is_an_error() {
    let tasks = echoes(5, true);
    let recorded = recorded(4, &limits(), Vec::new());
    assert_eq!(recorded.outcome, Outcome::Done);
    let of = |tasks: &dyn TaskSet, agents: &ChatAgents, limits: Limits| {
        block_on(replay(&recorded, tasks, agents, limits)).expect_err("something is different")
    };
    let fewer = of(&echoes(2, true), &agents(), limits());
    assert!(matches!(fewer, ReplayError::Task { found: None, .. }), "{fewer}");
    let others = of(&vec![Echo::new(9, true); 5], &agents(), limits());
    assert!(matches!(others, ReplayError::Task { found: Some(_), .. }), "{others}");
    let renderer =
        of(&tasks, &agents_with("xyz", turnwise_trajectory::Sampling::default()), limits());
    assert!(matches!(renderer, ReplayError::Renderer { .. }), "{renderer}");
    let shorter = of(&tasks, &agents(), Limits { max_turns: 2, ..limits() });
    assert!(matches!(shorter, ReplayError::Different { what: "tokens", .. }), "{shorter}");
    let mut lucky = recorded.clone();
    lucky.turns[0].reward = Some(7.0);
    let lucky = block_on(replay(&lucky, &tasks, &agents(), limits())).expect_err("nobody gave it");
    assert!(matches!(lucky, ReplayError::Different { what: "rewards", .. }), "{lucky}");
    let mut elsewhere = recorded.clone();
    let first = elsewhere.graph.node_mut(turnwise_trajectory::NodeId(0));
    first.spans.push(turnwise_trajectory::Span::Context(vec![300]));
    let broken = block_on(replay(&elsewhere, &tasks, &agents(), limits())).expect_err("not said");
    let ReplayError::Broke(fault) = broken else { panic!("{broken}") };
    assert!(fault.message.contains("the prompt of token 0 differs"), "{fault}");
    let faulty = FaultyTasks::new(echoes(5, true), Fault::Error, 1);
    let broken = block_on(replay(&recorded, &faulty, &agents(), limits())).expect_err("it breaks");
    assert!(matches!(broken, ReplayError::Broke(_)), "{broken}");
}

/// Rubrics of every sort: by one episode alone, by comparison, leaving some unscored, by the environment's rewards.
#[derive(Clone, Copy, Debug)]
enum Judge {
    Length,
    Rank,
    Odd,
    Third,
}

#[async_trait]
impl Rubric for Judge {
    fn name(&self) -> &'static str {
        "judge"
    }

    async fn score(&self, group: &[Transcript]) -> Result<Vec<Option<f64>>, EnvironmentError> {
        let said =
            |one: &Transcript| one.messages.iter().map(|said| said.content.len()).sum::<usize>();
        let earned = |one: &Transcript| one.rewards.iter().flatten().sum::<f64>();
        let score = |(place, one): (usize, &Transcript)| match self {
            Self::Length => Some(said(one) as f64 / 7.0),
            Self::Rank => Some(group.iter().filter(|other| said(other) < said(one)).count() as f64),
            Self::Odd => (place % 2 == 1).then_some(0.1),
            Self::Third => Some(earned(one) / 3.0 - group.len() as f64),
        };
        Ok(group.iter().enumerate().map(score).collect())
    }
}

/// Finished groups, as they are stored.
fn played(seed: u64, rubric: Option<Judge>, unscored: bool, breaks: bool) -> Vec<Trajectory> {
    let fault = if unscored { Fault::NoReward } else { Fault::Error };
    let every = if unscored {
        1
    } else if breaks {
        5
    } else {
        u64::MAX
    };
    let tasks = Arc::new(FaultyTasks::new(echoes(4, true), fault, every));
    let rubric = rubric.map(|judge| Arc::new(judge) as Arc<dyn Rubric>);
    let settings = PoolSettings { min_group_size: 1, max_retries: 0, ..pool_settings() };
    let mut pool = RolloutPool::new(tasks, Arc::new(agents()), rubric, settings, seed);
    (0..3).for_each(|group| pool.start(GroupId(group), group as usize));
    let policy: Arc<dyn Policy> = Arc::new(RecordingPolicy::new(4));
    let iteration = block_on(pool.iterate(&policy, &StopSignal::never())).expect("it goes on");
    iteration.groups.iter().flat_map(|group| &group.members).map(stored).collect()
}

fn rescored(rubric: &dyn Rubric, mut trajectories: Vec<Trajectory>) -> Vec<Trajectory> {
    block_on(rescore(rubric, Duration::from_mins(1), &mut trajectories)).expect("it scores");
    trajectories
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    // Rollouts 13.27: by the same rubric the same rewards to the bit, in any order, twice as well as once.
    #[test]
    fn rescoring_with_the_same_rubric_reproduces_the_rewards(
        seed in any::<u64>(),
        judge in prop::sample::select(vec![Judge::Length, Judge::Rank, Judge::Odd, Judge::Third]),
        unscored in any::<bool>(),
        breaks in any::<bool>(),
    ) {
        let mut stored = played(seed, Some(judge), unscored, breaks);
        prop_assert!(!stored.is_empty());
        prop_assert_eq!(&rescored(&judge, stored.clone()), &stored);
        stored.reverse();
        prop_assert_eq!(&rescored(&judge, rescored(&judge, stored.clone())), &stored);
    }

    // Rollouts 13.27: another rubric takes the place of the first, and leaves nothing of it.
    #[test]
    fn another_rubric_takes_the_place_of_the_first(seed in any::<u64>()) {
        let plain = played(seed, None, false, true);
        let first = rescored(&Judge::Length, plain.clone());
        prop_assert!(first.iter().zip(&plain).any(|(a, b)| a.reward() != b.reward()));
        let at_once = rescored(&Judge::Third, plain);
        prop_assert_eq!(rescored(&Judge::Third, first), at_once);
    }
}

// Rollouts 13.27: seats are compared with the same seat of other members, never with one another.
#[test]
fn several_seats_are_rescored_apart() {
    let firsts: Vec<Trajectory> =
        played(3, None, false, false).into_iter().filter(|one| one.identity.group.0 == 2).collect();
    let mut seconds = firsts.clone();
    for second in &mut seconds {
        second.seat = Seat(1);
    }
    let alone = rescored(&Judge::Third, firsts.clone());
    let together = rescored(&Judge::Third, [seconds, firsts].concat());
    let (seconds, firsts) = together.split_at(alone.len());
    assert_eq!(firsts, alone);
    let rewards = |of: &[Trajectory]| of.iter().map(Trajectory::reward).collect::<Vec<_>>();
    assert_eq!(rewards(seconds), rewards(&alone));
}

// Rollouts 13.27: a rubric that breaks while scoring again says where, and takes nothing away.
#[test]
fn a_rubric_that_breaks_leaves_what_is_stored() {
    struct Broken;

    #[async_trait]
    impl Rubric for Broken {
        fn name(&self) -> &'static str {
            "broken"
        }

        async fn score(&self, _: &[Transcript]) -> Result<Vec<Option<f64>>, EnvironmentError> {
            Err(EnvironmentError::new("cannot judge"))
        }
    }

    let stored = played(3, Some(Judge::Rank), false, false);
    let mut again = stored.clone();
    let error = block_on(rescore(&Broken, Duration::from_secs(1), &mut again)).expect_err("broken");
    assert_eq!((error.group, error.seat.0, error.rubric.as_str()), (0, 0, "broken"));
    assert_eq!(again, stored);
}
