//! Self-play: several seats in one environment train one policy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use proptest::prelude::*;
use turnwise_environment::{
    Action, Babbler, Demonstrator, Environment, EnvironmentError, Observation, Rubric, Seat, Step,
    TaskSet, Transcript,
};
use turnwise_objective::{Clip, GroupAdvantage, GspoToken, LengthWeight, Std};
use turnwise_rollout::{Limits, Meter, Opponent, PoolSettings, StopSignal};
use turnwise_testkit::{Duel, TabularModel};
use turnwise_training::{
    Admission, Evaluated, EvaluationSettings, OutcomeCredit, Parts, RolloutMode, Schedule,
    StepReport, Trainer, TrainerSettings, evaluate, metric,
};
use turnwise_trajectory::{GroupId, Trajectory};

use crate::support::{OBJECTIVE, OUTCOME, agents, block_on, pool_settings};

fn trainer(
    model: &TabularModel,
    tasks: Arc<dyn TaskSet>,
    rubric: Option<Arc<dyn Rubric>>,
    settings: TrainerSettings,
) -> Trainer<TabularModel> {
    let parts = Parts {
        tasks,
        agents: Arc::new(agents()),
        rubric,
        policy: Arc::new(model.clone()),
        learner: model.clone(),
        objective: Box::new(OBJECTIVE),
        credit: Box::new(OUTCOME),
    };
    Trainer::new(parts, settings)
}

fn settings(mode: RolloutMode, seed: u64) -> TrainerSettings {
    TrainerSettings {
        groups_per_step: 3,
        rollout: pool_settings(),
        mode,
        admission: Admission { max_staleness: 2, ..Admission::default() },
        n_minibatches: 2,
        schedule: Schedule { learning_rate: 0.2, ..Schedule::default() },
        seed,
        ..TrainerSettings::default()
    }
}

/// Makes `n` steps, and returns their reports.
fn steps(trainer: &mut Trainer<TabularModel>, n: usize) -> Vec<StepReport> {
    block_on(async {
        let mut reports = Vec::new();
        for _ in 0..n {
            let report = trainer.step(&StopSignal::never()).await.expect("it goes on");
            reports.push(report.expect("nobody stops it"));
        }
        assert_eq!(trainer.books().unaccounted(), 0);
        reports
    })
}

/// Returns the advantages of the members of each group and seat: those of their first tokens.
fn advantages(trained: &[Trajectory]) -> BTreeMap<(GroupId, Seat), Vec<f64>> {
    let mut advantages: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for one in trained {
        let first = one.sampled().find_map(|token| token.advantage).expect("it trains");
        advantages.entry((one.identity.group, one.seat)).or_default().push(f64::from(first));
    }
    advantages
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Rollouts 9.6: every episode is accounted for, whatever the number of seats, the mode and the opponent. The members of
    /// a group are compared on one seat.
    #[test]
    fn every_episode_of_several_seats_is_accounted_for(
        mode in prop::sample::select(vec![
            RolloutMode::Synchronous,
            RolloutMode::Pipelined,
            RolloutMode::Asynchronous,
        ]),
        n_seats in 1_u32..4,
        is_frozen in any::<bool>(),
        tokens_per_iteration in prop::option::of(30_u64..200),
        seed in any::<u64>(),
    ) {
        let model = TabularModel::new(4);
        let tasks = Arc::new(vec![Duel::new(n_seats, 2)]);
        let mut settings = settings(mode, seed);
        settings.rollout.tokens_per_iteration = tokens_per_iteration;
        let frozen = Opponent::Frozen(Arc::new(TabularModel::new(4)));
        let opponent = if is_frozen { frozen } else { Opponent::Itself };
        let mut trainer = trainer(&model, tasks, None, settings).against(opponent);
        let mut met = BTreeSet::new();
        for report in steps(&mut trainer, 4) {
            prop_assert_eq!(report.books.unaccounted(), 0);
            for ((_, seat), advantages) in advantages(&report.trained) {
                met.insert(seat);
                prop_assert!(advantages.iter().sum::<f64>().abs() < 1e-4, "{advantages:?}");
                prop_assert!(advantages.len() > 1);
            }
            let episodes: BTreeSet<_> = report
                .trained
                .iter()
                .map(|one| (one.identity.group, one.identity.member))
                .collect();
            let n_seats = if is_frozen { 1 } else { n_seats as usize };
            prop_assert!(report.trained.len() <= n_seats * episodes.len());
            if mode == RolloutMode::Synchronous && tokens_per_iteration.is_none() {
                prop_assert_eq!(report.trained.len(), n_seats * episodes.len());
            }
        }
        prop_assert!(met.iter().all(|seat| seat.0 < n_seats));
        prop_assert!(is_frozen || met.len() == n_seats as usize);
    }
}

/// Scores an episode by the number of its messages' bytes, and says how many transcripts it compared.
struct Lengths(usize);

#[async_trait]
impl Rubric for Lengths {
    fn name(&self) -> &'static str {
        "lengths"
    }

    async fn score(&self, shown: &[Transcript]) -> Result<Vec<Option<f64>>, EnvironmentError> {
        assert_eq!(shown.len(), self.0, "a rubric sees the members of a group on one seat");
        let length =
            |one: &Transcript| one.messages.iter().map(|it| it.content.len()).sum::<usize>();
        Ok(shown.iter().map(|one| Some(length(one) as f64)).collect())
    }
}

/// Rollouts 13.27: a rubric compares the members of a group on one seat, and scores every seat.
#[test]
fn a_rubric_scores_every_seat() {
    let model = TabularModel::new(4);
    let settings = settings(RolloutMode::Synchronous, 5);
    let rubric: Arc<dyn Rubric> = Arc::new(Lengths(settings.rollout.group_size));
    let tasks = Arc::new(vec![Duel::new(2, 2)]);
    let report = steps(&mut trainer(&model, tasks, Some(rubric), settings), 1).remove(0);
    let scored = report.trained.iter().filter(|one| {
        one.turns
            .last()
            .and_then(|turn| turn.score.as_ref())
            .is_some_and(|it| it.rubric == "lengths")
    });
    assert!(!report.trained.is_empty());
    assert_eq!(scored.count(), report.trained.len());
}

/// Two seats say a letter in turn. The first wins with an `a`; the second wins by repeating what the first said.
#[derive(Clone, Debug, Default)]
struct Echoing {
    first: Option<String>,
}

#[async_trait]
impl Environment for Echoing {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok("a".into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        let Some(first) = &self.first else {
            let shown = format!("{}?", action.text);
            self.first = Some(action.text);
            return Ok(Step::next(Observation::from(shown).to(Seat(1))));
        };
        let won = |is_won: bool| f64::from(u8::from(is_won));
        let step = Step::terminated(won(!first.is_empty() && *first == action.text));
        Ok(step.reward_of(Seat(0), won(first == "a")))
    }

    fn n_seats(&self) -> usize {
        2
    }
}

/// Self-play improves every seat, each by its own reward.
#[test]
fn both_seats_learn_from_their_own_rewards() {
    let model = TabularModel::new(4);
    let settings = TrainerSettings {
        groups_per_step: 6,
        rollout: PoolSettings {
            group_size: 8,
            limits: Limits { max_turn_tokens: 3, ..Limits::default() },
            ..PoolSettings::default()
        },
        schedule: Schedule { learning_rate: 4.0, ..Schedule::default() },
        max_grad_norm: f64::INFINITY,
        ..settings(RolloutMode::Synchronous, 3)
    };
    let parts = Parts {
        tasks: Arc::new(vec![Echoing::default()]),
        agents: Arc::new(agents()),
        rubric: None,
        policy: Arc::new(model.clone()),
        learner: model.clone(),
        objective: Box::new(GspoToken {
            clip: Clip::PAPER_GRPO,
            length_weight: LengthWeight::Mean,
        }),
        credit: Box::new(OutcomeCredit {
            advantage: GroupAdvantage::MeanStd { std: Std::Sample, epsilon: 1e-6 },
        }),
    };
    let mut trainer = Trainer::new(parts, settings);
    let rate = |report: &StepReport| report.metrics.get(metric::SUCCESS_RATE);
    let rates: Option<Vec<f64>> = steps(&mut trainer, 60).iter().map(rate).collect();
    let rates = rates.expect("it is measured in every step");
    let mean = |rates: &[f64]| rates.iter().sum::<f64>() / rates.len() as f64;
    let (before, after) = (mean(&rates[..5]), mean(&rates[55..]));
    assert!(before < 0.4 && after > 0.9, "{before} {after} {rates:?}");
}

/// A game that the first seat decides with its first move.
#[derive(Clone, Debug)]
struct Instant;

#[async_trait]
impl Environment for Instant {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok("go".into())
    }

    async fn step(&mut self, _action: Action) -> Result<Step, EnvironmentError> {
        Ok(Step::terminated(1.0).reward_of(Seat(1), 0.0))
    }

    fn n_seats(&self) -> usize {
        2
    }
}

/// A game that ends before the policy's first turn is neither broken nor scored.
#[test]
fn a_game_without_a_turn_of_the_policy_is_not_broken() {
    let model = TabularModel::new(4);
    let player = |seed| Box::new(Babbler::new(seed, Vec::new())) as Box<dyn Demonstrator>;
    let evaluated = Evaluated {
        policy: Arc::new(model),
        tasks: Arc::new(vec![Instant]),
        agents: Arc::new(agents()),
        opponent: Opponent::Scripted(Arc::new(player)),
        rubric: None,
    };
    let settings = EvaluationSettings { episodes: 40, ..EvaluationSettings::default() };
    let evaluation =
        block_on(evaluate(&evaluated, &settings, &StopSignal::never(), &Meter::default()))
            .expect("nothing breaks")
            .expect("nobody stops it");
    assert_eq!(evaluation.n_broken, 0);
    assert!((1..40).contains(&evaluation.trajectories.len()));
    assert!(evaluation.trajectories.iter().all(|one| one.solved && one.seat == Seat(0)));
}
