//! Schedules, intervals and the order of tasks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use turnwise_environment::{Environment, TaskKey, TaskSet};
use turnwise_rollout::{PoolSettings, StopSignal};
use turnwise_testkit::{Echo, TabularModel};
use turnwise_training::{
    Decay, Parts, ReturnCredit, Schedule, SuccessRate, Trainer, TrainerSettings,
};

use crate::support::{OBJECTIVE, agents, block_on, pool_settings};

fn schedules() -> impl Strategy<Value = Schedule> {
    (1e-6_f64..1.0, 0_u64..20, prop::bool::ANY, 1_u64..60).prop_map(
        |(learning_rate, warmup_steps, is_cosine, steps)| Schedule {
            learning_rate,
            warmup_steps,
            decay: if is_cosine { Decay::Cosine } else { Decay::Constant },
            steps,
        },
    )
}

proptest! {
    /// Never negative, never above its highest; up, then level or down.
    #[test]
    fn a_schedule_rises_and_then_does_not(schedule in schedules()) {
        let rates: Vec<f64> = (0..100).map(|step| schedule.at(step)).collect();
        prop_assert!(rates.iter().all(|rate| (0.0..=schedule.learning_rate).contains(rate)));
        prop_assert!(rates[0] > 0.0 || schedule.decay == Decay::Cosine);
        let (warm_up, rest) = rates.split_at(schedule.warmup_steps as usize);
        prop_assert!(warm_up.is_sorted());
        prop_assert!(rest.windows(2).all(|pair| pair[0] >= pair[1]));
        prop_assert_eq!(rest[0], schedule.learning_rate);
        if let Some(last) = warm_up.last() {
            prop_assert_eq!(*last, schedule.learning_rate);
        }
        let is_over = schedule.at(schedule.warmup_steps.max(schedule.steps) + 1);
        match schedule.decay {
            Decay::Constant => prop_assert_eq!(is_over, schedule.learning_rate),
            Decay::Cosine => prop_assert!(is_over < 1e-9 * schedule.learning_rate),
        }
    }

    /// Inside 0 to 1, around the rate, and mirrored when solved and unsolved change places.
    #[test]
    fn an_interval_contains_its_rate(
        tasks in prop::collection::vec(prop::collection::vec(any::<bool>(), 0..6), 0..20),
    ) {
        let rate = SuccessRate::of(&tasks);
        prop_assert!(0.0 <= rate.ci_low && rate.ci_high <= 1.0);
        prop_assert!(rate.ci_low <= rate.success_rate && rate.success_rate <= rate.ci_high);
        prop_assert_eq!(rate.episodes, tasks.iter().map(Vec::len).sum::<usize>());
        if rate.episodes > 0 {
            let flipped: Vec<Vec<bool>> =
                tasks.iter().map(|task| task.iter().map(|solved| !solved).collect()).collect();
            let other = SuccessRate::of(&flipped);
            prop_assert!((rate.ci_low - (1.0 - other.ci_high)).abs() < 1e-9);
            prop_assert!((rate.ci_high - (1.0 - other.ci_low)).abs() < 1e-9);
        }
    }

    /// More episodes of the same rate say more; episodes that all agree within their task say less than independent ones.
    #[test]
    fn an_interval_narrows_with_independent_episodes_only(
        solved in prop::collection::vec(any::<bool>(), 2..20),
        times in 2_usize..6,
    ) {
        let width = |rate: SuccessRate| rate.ci_high - rate.ci_low;
        let once: Vec<Vec<bool>> = solved.iter().map(|solved| vec![*solved]).collect();
        let independent: Vec<Vec<bool>> = once.iter().cycle().take(once.len() * times).cloned().collect();
        let repeated: Vec<Vec<bool>> = solved.iter().map(|solved| vec![*solved; times]).collect();
        let (one, many, same) =
            (SuccessRate::of(&once), SuccessRate::of(&independent), SuccessRate::of(&repeated));
        prop_assert!(width(many) <= width(one));
        prop_assert!(width(same) >= width(many) - 1e-12);
        prop_assert!((width(same) - width(one)).abs() < 1e-9, "nothing new was learnt");
    }
}

/// The 95 % interval of a fair coin covers one half in at least nine runs of ten.
#[test]
fn an_interval_covers_the_true_rate() {
    let mut random = turnwise_environment::Random::new(1);
    let covers = |_| {
        let tasks: Vec<Vec<bool>> = (0..60).map(|_| vec![random.uniform() < 0.5]).collect();
        let rate = SuccessRate::of(&tasks);
        rate.ci_low <= 0.5 && 0.5 <= rate.ci_high
    };
    let n = (0..1000).map(covers).filter(|covered| *covered).count();
    assert!((920..=980).contains(&n), "{n} of 1000");
}

/// Counts how often each task is played.
struct Counted {
    inner: Vec<Echo>,
    played: Mutex<Vec<usize>>,
}

impl TaskSet for Counted {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn key(&self, index: usize) -> TaskKey {
        self.inner.key(index)
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        self.played.lock().expect("nobody panics with it").push(index);
        self.inner.environment(index)
    }
}

/// Every epoch plays each task once, in an order of its own that the seed decides.
#[test]
fn every_epoch_plays_every_task_once() {
    let order = |seed| {
        let inner = vec![Echo::new(1, true); 7];
        let tasks = Arc::new(Counted { inner, played: Mutex::default() });
        let model = TabularModel::new(4);
        let parts = Parts {
            tasks: tasks.clone(),
            agents: Arc::new(agents()),
            rubric: None,
            policy: Arc::new(model.clone()),
            learner: model,
            objective: Box::new(OBJECTIVE),
            credit: Box::new(ReturnCredit { gamma: 1.0 }),
        };
        let rollout = PoolSettings { group_size: 1, min_group_size: 1, ..pool_settings() };
        let settings =
            TrainerSettings { groups_per_step: 3, rollout, seed, ..TrainerSettings::default() };
        let mut trainer = Trainer::new(parts, settings);
        for _ in 0..14 {
            block_on(trainer.step(&StopSignal::never())).expect("it goes on");
        }
        let played = tasks.played.lock().expect("nobody panics with it").clone();
        assert_eq!(played.len(), 42);
        let epochs: Vec<Vec<usize>> = played.chunks(7).map(<[_]>::to_vec).collect();
        for epoch in &epochs {
            let counts = epoch.iter().fold(BTreeMap::new(), |mut counts: BTreeMap<_, _>, task| {
                *counts.entry(*task).or_insert(0) += 1;
                counts
            });
            assert!(counts.len() == 7 && counts.values().all(|n| *n == 1), "{epoch:?}");
        }
        assert!(epochs.windows(2).any(|pair| pair[0] != pair[1]), "each has an order of its own");
        epochs
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
}
