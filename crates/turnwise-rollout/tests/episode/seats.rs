use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use turnwise_environment::{
    Action, Demonstrator, Environment, EnvironmentError, Observation, Role, Seat, Step, TaskSet,
    async_trait, derive_seed,
};
use turnwise_rollout::{
    Allowance, Episode, EpisodeSnapshot, Fork, Limits, Opponent, Policy, PoolSettings, Progress,
    RolloutPool, StopSignal,
};
use turnwise_testkit::{Duel, Hashed, Lying, Replayed, Sessions};
use turnwise_trajectory::{
    AgentFault, GroupId, Identity, InfraReason, Limit, MaskReason, Outcome, PolicyVersion,
    Trajectory,
};

use crate::support::{
    ENGINE, Made, agents, block_on, episode, finished, identity, limits, message, reason, timeless,
};

/// A scripted player whose words depend on everything that it has seen.
struct Speller(u64);

impl Demonstrator for Speller {
    fn act(&mut self, observation: &Observation) -> Action {
        for byte in observation.messages.iter().flat_map(|message| message.content.bytes()) {
            self.0 = derive_seed(self.0, u64::from(byte));
        }
        Action::text(format!("{:x}", self.0))
    }
}

/// The version of the frozen policy's tokens.
const FROZEN: PolicyVersion = PolicyVersion(7);

fn frozen() -> Opponent {
    let inner = Hashed { n_ids: 4 };
    let lie = |_: &_, mut sample: turnwise_rollout::Sample| {
        for token in &mut sample.tokens {
            (token.version, token.kv_version) = (FROZEN, FROZEN);
        }
        sample
    };
    Opponent::Frozen(Arc::new(Lying { inner, lie }))
}

fn scripted() -> Opponent {
    Opponent::Scripted(Arc::new(|seed| Box::new(Speller(seed))))
}

fn opponents() -> [Opponent; 3] {
    [Opponent::Itself, frozen(), scripted()]
}

fn of_group(tasks: &dyn TaskSet, seed: u64, group: u64) -> Episode {
    let identity = Identity { group: GroupId(group), ..identity(tasks, seed) };
    Episode::new(identity, tasks.environment(0), &agents(), limits())
}

/// Returns the trajectories of all seats that the trained policy played.
fn seats(trajectory: &Trajectory) -> Vec<&Trajectory> {
    std::iter::once(trajectory).chain(&trajectory.others).collect()
}

/// Returns the texts of a seat's turns.
fn said(seat: &Trajectory) -> Vec<&str> {
    seat.turn_nodes().map(|node| node.message.content.as_str()).collect()
}

// Every seat has its own conversation and trajectory. The rewards are those that the environment gives for the same
// actions without an episode.
#[test]
fn every_seat_has_its_own_conversation_and_rewards() {
    for (seed, n_seats) in [(3, 2), (4, 3), (5, 1)] {
        let tasks = vec![Duel::new(n_seats, 4)];
        let played = block_on(finished(episode(&tasks, seed), &ENGINE));
        assert_eq!(played.outcome, Outcome::Done);
        let seats = seats(&played);
        assert_eq!(seats.len(), n_seats as usize);
        let mut rewards = vec![0.0; seats.len()];
        let mut environment = tasks[0].clone();
        block_on(environment.reset(played.identity.environment_seed)).expect("it begins");
        for turn in 0..4 * seats.len() {
            let seat = turn % seats.len();
            let action = Action::text(said(seats[seat])[turn / seats.len()]);
            let step = block_on(environment.step(action)).expect("it answers");
            let (Step::Next { reward, others, .. } | Step::End { reward, others, .. }) = step;
            rewards[seat] += reward.expect("every turn is scored");
            for other in others {
                rewards[other.seat.0 as usize] += other.reward;
            }
        }
        for (index, seat) in seats.iter().enumerate() {
            assert_eq!((seat.seat, seat.turns.len()), (Seat(index as u32), 4));
            let reward = seat.reward().expect("it is scored");
            assert!((reward - rewards[index]).abs() < 1e-12, "{reward} {rewards:?}");
            let told = seat.messages().into_iter().filter(|message| message.role == Role::User);
            let told: Vec<String> = told.map(|message| message.content).collect();
            assert_eq!(told.len(), 4);
            assert!(told.iter().all(|text| text.ends_with(&index.to_string())), "{told:?}");
        }
    }
}

// Only the trained policy's tokens are in trajectories. It plays the same seat in all members of a group, and every seat
// in some group.
#[test]
fn an_opponent_plays_the_seats_that_the_policy_leaves() {
    for opponent in [frozen(), scripted()] {
        let tasks = vec![Duel::new(2, 3)];
        let mut met = BTreeSet::new();
        for group in 0..20 {
            let of_member = |seed| {
                let episode = of_group(&tasks, seed, group).against(&opponent);
                block_on(finished(episode, &ENGINE))
            };
            let members = [of_member(1), of_member(2)];
            for member in &members {
                assert_eq!(member.outcome, Outcome::Done);
                assert!(member.others.is_empty());
                assert_eq!(member.turns.len(), 3);
                assert!(member.sampled().all(|token| token.version == PolicyVersion(0)));
            }
            assert_eq!(members[0].seat, members[1].seat);
            met.insert(members[0].seat);
        }
        assert_eq!(met, BTreeSet::from([Seat(0), Seat(1)]), "{opponent:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 2, ..ProptestConfig::default() })]

    // Rollouts 13.4: an episode with several seats that is suspended anywhere, and taken to another process there, equals
    // one that is not.
    #[test]
    fn a_suspended_duel_equals_an_uninterrupted_one(
        seed in any::<u64>(),
        group in 0_u64..4,
        kind in 0_usize..3,
        is_replayed in any::<bool>(),
        allowances in prop::collection::vec(1_u64..7, 1..4),
    ) {
        let opponent = &opponents()[kind];
        let tasks = Made(|| -> Box<dyn Environment> {
            let duel = Duel::new(2, 4);
            if is_replayed { Box::new(Replayed(duel)) } else { Box::new(duel) }
        });
        let at_once = block_on(finished(of_group(&tasks, seed, group).against(opponent), &ENGINE));
        let mut episode = of_group(&tasks, seed, group).against(opponent);
        let mut n_sampled = 0;
        let in_pieces = 'played: {
            for tokens in allowances.iter().cycle() {
                match block_on(episode.advance(&ENGINE, &Allowance::tokens(*tokens))) {
                    Progress::Finished(trajectory) => break 'played timeless(trajectory),
                    Progress::Suspended(suspended) => {
                        let now = suspended.n_drawn() as u64;
                        prop_assert!(now - n_sampled <= *tokens);
                        n_sampled = now;
                        let bytes = suspended.snapshot().expect("it goes on elsewhere").to_bytes();
                        drop(suspended);
                        let snapshot = EpisodeSnapshot::from_bytes(&bytes).expect("as written");
                        let restored =
                            Episode::restore_against(snapshot, &tasks, &agents(), opponent);
                        episode = restored.expect("what was suspended goes on");
                    }
                }
            }
            unreachable!("an episode ends")
        };
        prop_assert_eq!(at_once, in_pieces);
    }

    // Rollouts 13.13: a fork masks the shared prefix of every seat.
    #[test]
    fn forks_of_a_duel_train_a_shared_prefix_once(seed in any::<u64>(), tokens in 4_u64..12) {
        let tasks = vec![Duel::new(2, 5)];
        let advanced = block_on(episode(&tasks, seed).advance(&ENGINE, &Allowance::tokens(tokens)));
        let Progress::Suspended(trunk) = advanced else { return Ok(()) };
        let n_shared = trunk.n_drawn();
        let forks = [0, 1].map(|member| Fork { member, sampling_seed: seed ^ u64::from(member) });
        let branches = trunk.fork(&forks, &tasks, &agents()).expect("it can be forked");
        for (member, branch) in branches.into_iter().enumerate() {
            let played = block_on(finished(branch, &ENGINE));
            let tokens = || seats(&played).into_iter().flat_map(Trajectory::sampled);
            let masked = tokens().filter(|token| token.mask == Some(MaskReason::SharedPrefix));
            prop_assert_eq!(masked.count(), if member == 0 { 0 } else { n_shared });
        }
    }
}

// Snapshots name who plays each seat.
#[test]
fn another_kind_of_opponent_is_refused() {
    let tasks = vec![Duel::new(2, 4)];
    for (at, before) in opponents().iter().enumerate() {
        let begun = episode(&tasks, 9).against(before);
        let advanced = block_on(begun.advance(&ENGINE, &Allowance::tokens(2)));
        let Progress::Suspended(suspended) = advanced else { panic!("four rounds are longer") };
        let snapshot = suspended.snapshot().expect("it goes on elsewhere");
        for (other, now) in opponents().iter().enumerate() {
            let restored = Episode::restore_against(snapshot.clone(), &tasks, &agents(), now);
            match restored {
                Ok(_) => assert_eq!(at, other),
                Err(error) => {
                    assert_ne!(at, other);
                    assert!(error.to_string().contains("was played by"), "{error}");
                }
            }
        }
    }
}

// A limit or a fault of one seat ends the episode for all; the others count as truncated by their environment.
#[test]
fn a_fault_of_one_seat_truncates_the_others() {
    let tasks = vec![Duel::new(2, 40)];
    let of = |limits: Limits| {
        let episode = Episode::new(identity(&tasks, 3), tasks.environment(0), &agents(), limits);
        block_on(finished(episode, &ENGINE))
    };
    let played = of(Limits { max_turns: 5, ..limits() });
    assert_eq!(played.outcome, Outcome::Truncated(Limit::Turns));
    assert_eq!(played.others[0].outcome, Outcome::Truncated(Limit::OtherSeat));
    assert_eq!((played.turns.len(), played.others[0].turns.len()), (5, 5));
    assert!(played.reward().is_some() && played.others[0].reward().is_some());
    let faulty = of(Limits { max_faults: 0, ..limits() });
    let outcomes = [&faulty.outcome, &faulty.others[0].outcome];
    let empty = Outcome::AgentFault(AgentFault::Empty);
    assert!(outcomes.contains(&&empty), "{outcomes:?}");
    assert!(outcomes.contains(&&Outcome::Truncated(Limit::OtherSeat)), "{outcomes:?}");
}

/// A duel that says something false about its seats.
struct Wrong {
    duel: Duel,
    n_seats: usize,
    rewarded: Seat,
}

#[async_trait]
impl Environment for Wrong {
    async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError> {
        self.duel.reset(seed).await
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        Ok(self.duel.step(action).await?.reward_of(self.rewarded, 0.0))
    }

    fn n_seats(&self) -> usize {
        self.n_seats
    }
}

// A seat that does not exist is the environment's mistake, and a typed outcome of every seat.
#[test]
fn a_seat_that_does_not_exist_is_the_environments_fault() {
    for (n_seats, rewarded) in [(0, 0), (1, 0), (2, 2)] {
        let tasks = Made(|| -> Box<dyn Environment> {
            Box::new(Wrong { duel: Duel::new(2, 3), n_seats, rewarded: Seat(rewarded) })
        });
        let played = block_on(finished(episode(&tasks, 3), &ENGINE));
        if n_seats == 0 {
            assert_eq!(reason(&played), Some(InfraReason::Protocol));
            continue;
        }
        for seat in seats(&played) {
            assert_eq!(reason(seat), Some(InfraReason::EnvError));
            assert!(message(seat).contains("n_seats is"), "{}", message(seat));
            assert_eq!(seat.reward(), None);
        }
    }
}

// Every seat has a session at the engine, which is released with the episode.
#[test]
fn every_seat_has_a_session_that_is_released() {
    let tasks = vec![Duel::new(2, 4)];
    let engine = Sessions::new(ENGINE);
    block_on(async {
        let mut n_most = 0;
        let mut episode = episode(&tasks, 5);
        loop {
            match episode.advance(&engine, &Allowance::tokens(3)).await {
                Progress::Finished(_) => break,
                Progress::Suspended(suspended) => episode = suspended,
            }
            n_most = n_most.max(engine.open().len());
        }
        assert_eq!(n_most, 2);
        assert!(engine.open().is_empty());
    });
}

// A pool in self-play delivers groups that divide by seat, and accounts for every episode once.
#[test]
fn a_pool_divides_its_groups_by_seat() {
    for (kind, opponent) in opponents().into_iter().enumerate() {
        let settings = PoolSettings { group_size: 3, limits: limits(), ..PoolSettings::default() };
        let tasks = Arc::new(vec![Duel::new(2, 3)]);
        let mut pool =
            RolloutPool::new(tasks, Arc::new(agents()), None, settings, 7).against(opponent);
        (0..4).for_each(|group| pool.start(GroupId(group), 0));
        let policy: Arc<dyn Policy> = Arc::new(ENGINE);
        let iteration = block_on(pool.iterate(&policy, &StopSignal::never())).expect("it runs");
        assert_eq!((iteration.groups.len(), pool.ledger().open()), (4, 0));
        let n_seats = if kind == 0 { 2 } else { 1 };
        let mut n_sampled = 0;
        for group in iteration.groups {
            let id = group.id;
            let by_seat = group.into_seats();
            assert_eq!(by_seat.len(), n_seats);
            for group in by_seat {
                assert_eq!((group.id, group.members.len()), (id, 3));
                let seat = group.members[0].seat;
                assert!(group.members.iter().all(|one| one.seat == seat && one.others.is_empty()));
                let sampled = group.members.iter().map(Trajectory::n_sampled);
                n_sampled += sampled.sum::<usize>() as u64;
            }
        }
        assert_eq!(iteration.n_sampled, n_sampled, "every token of the trained policy is counted");
    }
}

// A pool that is dropped releases the sessions of its suspended episodes, those at a frozen opponent's engine too.
#[test]
fn a_dropped_pool_releases_the_sessions_of_every_seat() {
    let (own, frozen) = (Arc::new(Sessions::new(ENGINE)), Arc::new(Sessions::new(ENGINE)));
    let settings = PoolSettings {
        group_size: 3,
        tokens_per_iteration: Some(9),
        limits: limits(),
        ..PoolSettings::default()
    };
    let tasks = Arc::new(vec![Duel::new(2, 9)]);
    let mut pool = RolloutPool::new(tasks, Arc::new(agents()), None, settings, 7)
        .against(Opponent::Frozen(frozen.clone()));
    pool.start(GroupId(0), 0);
    let policy: Arc<dyn Policy> = own.clone();
    block_on(async {
        for _ in 0..2 {
            pool.iterate(&policy, &StopSignal::never()).await.expect("it runs");
        }
        assert!(!own.open().is_empty() && !frozen.open().is_empty());
        drop(pool);
    });
    assert!(own.open().is_empty() && frozen.open().is_empty());
}
