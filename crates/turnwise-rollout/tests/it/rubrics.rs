//! A rubric scores beside the environment; what it does not score is not scored.

use std::sync::Arc;

use async_trait::async_trait;
use turnwise_environment::{EnvironmentError, Rubric, Transcript};
use turnwise_rollout::{Iteration, PoolSettings, RolloutError, RolloutPool, StopSignal};
use turnwise_testkit::{Echo, Fault, FaultyTasks, TabularModel};
use turnwise_trajectory::{GroupId, Outcome};

use crate::support::{agents, block_on, echoes, pool_settings};

type Score = fn(&[Transcript]) -> Result<Vec<Option<f64>>, EnvironmentError>;

struct By(Score);

#[async_trait]
impl Rubric for By {
    fn name(&self) -> &'static str {
        "by"
    }

    async fn score(&self, group: &[Transcript]) -> Result<Vec<Option<f64>>, EnvironmentError> {
        (self.0)(group)
    }
}

/// One group of four; without a reward from the environment where `unscored`.
fn scored_by(score: Option<Score>, unscored: bool) -> (Iteration, RolloutPool) {
    let settings = PoolSettings { min_group_size: 1, ..pool_settings() };
    let (iteration, pool) = scored_in(settings, score, unscored);
    (iteration.expect("it goes on"), pool)
}

fn scored_in(
    settings: PoolSettings,
    score: Option<Score>,
    unscored: bool,
) -> (Result<Iteration, RolloutError>, RolloutPool) {
    let tasks: Arc<dyn turnwise_environment::TaskSet> = if unscored {
        Arc::new(FaultyTasks::new(vec![Echo::new(3, true)], Fault::NoReward, 1))
    } else {
        Arc::new(vec![Echo::new(3, true)])
    };
    let rubric = score.map(|score| Arc::new(By(score)) as Arc<dyn Rubric>);
    let mut pool = RolloutPool::new(tasks, Arc::new(agents()), rubric, settings, 3);
    pool.start(GroupId(0), 0);
    let policy: Arc<dyn turnwise_rollout::Policy> = Arc::new(TabularModel::new(4));
    (block_on(pool.iterate(&policy, &StopSignal::never())), pool)
}

fn rewards(iteration: &Iteration) -> Vec<Option<f64>> {
    let members = iteration.groups.iter().flat_map(|group| &group.members);
    members.map(turnwise_trajectory::Trajectory::reward).collect()
}

/// rollouts section 2 and the contract of rubrics: scores are added to the last turn.
#[test]
fn a_score_is_added_to_what_the_environment_gave() {
    let (plain, _) = scored_by(None, false);
    let (with, _) = scored_by(Some(|group| Ok(vec![Some(1.0); group.len()])), false);
    let (plain, with) = (&plain.groups[0].members, &with.groups[0].members);
    for (plain, with) in plain.iter().zip(with) {
        let n = plain.turns.len();
        assert_eq!(plain.turns[..n - 1], with.turns[..n - 1]);
        let (plain, with) = (&plain.turns[n - 1], &with.turns[n - 1]);
        assert_eq!(with.reward, plain.reward);
        assert_eq!(with.total_reward(), plain.reward.map(|reward| reward + 1.0));
    }
}

/// Rollouts 13.9: not scored is not 0.
#[test]
fn what_nobody_scored_has_no_reward() {
    let first_only: Score =
        |group| Ok((0..group.len()).map(|place| (place == 0).then_some(0.0)).collect());
    let (iteration, pool) = scored_by(Some(first_only), true);
    assert_eq!(rewards(&iteration), [Some(0.0), None, None, None]);
    assert_eq!(pool.ledger().dropped["infra_bad_reward"], 3);
    let (iteration, pool) = scored_by(None, true);
    assert!(rewards(&iteration).is_empty());
    assert_eq!(pool.ledger().dropped["infra_bad_reward"], 4);
}

/// rollouts section 2: verdicts that grading takes back are counted like any other bad reward, and stop the run like them.
#[test]
fn episodes_that_nobody_scores_stop_the_run() {
    let (iteration, _) = scored_by(None, true);
    assert_eq!(iteration.outcomes["infra_bad_reward"], 4);
    let strict = PoolSettings { max_bad_rewards: 0.01, ..pool_settings() };
    let (stopped, _) = scored_in(strict, None, true);
    let said = stopped.expect_err("four of four are too many").to_string();
    assert!(said.contains("had a bad reward"), "{said}");
}

/// Rollouts 13.9: a rubric is held to the same rule as an environment.
#[test]
fn a_score_that_is_no_number_is_an_infrastructure_fault() {
    let scores: [Score; 3] = [
        |group| Ok(vec![Some(f64::NAN); group.len()]),
        |group| Ok(vec![Some(f64::INFINITY); group.len()]),
        |group| Ok(vec![Some(1.0); group.len() + 1]),
    ];
    for score in scores {
        let (iteration, pool) = scored_by(Some(score), false);
        assert!(iteration.groups.is_empty());
        assert_eq!(pool.ledger().dropped["infra_bad_reward"], 4);
    }
    let one: Score = |group| {
        Ok((0..group.len()).map(|place| Some(if place == 1 { f64::NAN } else { 1.0 })).collect())
    };
    let (iteration, _) = scored_by(Some(one), false);
    let group = &iteration.groups[0];
    assert_eq!(group.scored().count(), 3);
    let broken = &group.members[1];
    assert!(matches!(&broken.outcome, Outcome::InfraFault(fault) if fault.message.contains("NaN")));
    assert!(!broken.solved);
}

/// The contract of rubrics: a broken one drops the group, and the books say so.
#[test]
fn a_rubric_that_breaks_drops_the_group() {
    let (iteration, pool) = scored_by(Some(|_| Err(EnvironmentError::new("cannot judge"))), false);
    assert!(iteration.groups.is_empty());
    assert_eq!(pool.ledger().dropped["infra_rubric_error"], 4);
    assert_eq!(pool.ledger().open(), 0);
}

/// The contract of rubrics: one that always breaks stops the run, as an environment that always breaks does.
#[test]
fn a_rubric_that_always_breaks_stops_the_run() {
    let rubric = Arc::new(By(|_| Err(EnvironmentError::new("cannot judge"))));
    let settings = PoolSettings { max_faults_in_row: 6, ..pool_settings() };
    let tasks = Arc::new(echoes(3, true));
    let mut pool = RolloutPool::new(tasks, Arc::new(agents()), Some(rubric), settings, 3);
    pool.start(GroupId(0), 0);
    pool.start(GroupId(1), 1);
    let policy: Arc<dyn turnwise_rollout::Policy> = Arc::new(TabularModel::new(4));
    let error = block_on(pool.iterate(&policy, &StopSignal::never())).expect_err("six in a row");
    assert!(error.to_string().contains("rubric_error"), "{error}");
}

/// The contract of rubrics: only episodes that can be scored are shown, in member order.
#[test]
fn a_rubric_sees_only_what_can_be_scored() {
    let tasks = FaultyTasks::new(echoes(3, true), Fault::Error, 3);
    let rubric =
        Arc::new(By(|group| Ok(group.iter().map(|one| Some(one.rewards.len() as f64)).collect())));
    let settings = PoolSettings { max_retries: 0, ..pool_settings() };
    let mut pool = RolloutPool::new(Arc::new(tasks), Arc::new(agents()), Some(rubric), settings, 3);
    pool.start(GroupId(0), 2);
    let policy: Arc<dyn turnwise_rollout::Policy> = Arc::new(TabularModel::new(4));
    let iteration = block_on(pool.iterate(&policy, &StopSignal::never())).expect("it goes on");
    let group = &iteration.groups[0];
    assert_eq!(group.scored().count(), 3);
    assert!(group.scored().all(|member| member.reward() > Some(3.0)), "three turns each");
}
