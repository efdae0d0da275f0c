use proptest::prelude::*;
use turnwise_environment::{Random, Seat, TaskKey};
use turnwise_training::{EpisodeScore, EvaluationRecord, SuccessDifference, SuccessRate};
use turnwise_trajectory::GroupId;

type Pairs = Vec<Vec<(bool, bool)>>;

fn pairs() -> impl Strategy<Value = Pairs> {
    prop::collection::vec(prop::collection::vec(any::<(bool, bool)>(), 0..5), 0..20)
}

fn swapped(tasks: &Pairs) -> Pairs {
    tasks.iter().map(|task| task.iter().map(|(a, b)| (*b, *a)).collect()).collect()
}

proptest! {
    /// Inside -1 to 1, around the difference, and mirrored when before and after change places.
    #[test]
    fn an_interval_contains_its_difference(tasks in pairs()) {
        let change = SuccessDifference::paired(&tasks);
        prop_assert!(-1.0 <= change.ci_low && change.ci_high <= 1.0);
        prop_assert!(change.ci_low <= change.difference && change.difference <= change.ci_high);
        prop_assert!((change.after - change.before - change.difference).abs() < 1e-12);
        // What the interval does not show is not above what it would have shown.
        let is_shown = change.ci_low > 0.0 || change.ci_high < 0.0;
        prop_assert_eq!(is_shown, change.difference.abs() > change.detectable());
        let back = SuccessDifference::paired(&swapped(&tasks));
        prop_assert!((change.ci_low + back.ci_high).abs() < 1e-9);
        prop_assert!((change.ci_high + back.ci_low).abs() < 1e-9);
    }

    /// Pairs that mostly agree say more about the difference than two samples of the same rates.
    #[test]
    fn pairs_that_agree_narrow_the_interval(
        solved in prop::collection::vec(any::<bool>(), 20..60),
        flipped in 0_usize..3,
    ) {
        let pair = |(i, solved): (usize, &bool)| vec![(*solved, *solved ^ (i < flipped))];
        let tasks: Pairs = solved.iter().enumerate().map(pair).collect();
        let rate = |of: fn(&(bool, bool)) -> bool| {
            SuccessRate::of(&tasks.iter().map(|task| task.iter().map(of).collect()).collect::<Vec<_>>())
        };
        let apart = SuccessDifference::independent(&rate(|pair| pair.0), &rate(|pair| pair.1));
        let paired = SuccessDifference::paired(&tasks);
        prop_assert!(paired.detectable() <= apart.detectable() + 1e-12);
    }

    /// Four times the episodes halve the interval, which is what the estimate of episodes rests on.
    #[test]
    fn four_times_the_episodes_halve_the_interval(share in 0.2_f64..0.8) {
        let tasks = |n: usize| -> Pairs {
            (0..n).map(|i| vec![((i as f64) < share * n as f64, i % 2 == 0)]).collect()
        };
        let (few, many) =
            (SuccessDifference::paired(&tasks(400)), SuccessDifference::paired(&tasks(1600)));
        let wanted = few.episodes_for(few.detectable() / 2.0) as f64;
        prop_assert!((wanted - 1600.0).abs() <= 1.0);
        prop_assert!((many.detectable() / few.detectable() - 0.5).abs() < 0.03);
    }
}

/// A world of tasks: the true success rates of each before and after, and whether both policies see the same luck.
struct World {
    n_tasks: usize,
    per_task: usize,
    /// The success rate before and after of easy and of hard tasks.
    rates: [(f64, f64); 2],
    /// Whether an episode that is solved with luck before is solved with the same luck afterwards.
    shares_luck: bool,
}

impl World {
    fn truth(&self) -> f64 {
        self.rates.iter().map(|(before, after)| (after - before) / 2.0).sum()
    }

    fn play(&self, random: &mut Random) -> Pairs {
        let episode = |(before, after): (f64, f64), random: &mut Random| {
            let first = random.uniform();
            let second = if self.shares_luck { first } else { random.uniform() };
            (first < before, second < after)
        };
        let task = |_| {
            let rates = self.rates[random.below(2) as usize];
            (0..self.per_task).map(|_| episode(rates, random)).collect()
        };
        (0..self.n_tasks).map(task).collect()
    }

    /// The share of simulated comparisons whose interval covers the truth.
    fn coverage(&self) -> f64 {
        let mut random = Random::new(7);
        let covers = |_| {
            let change = SuccessDifference::paired(&self.play(&mut random));
            change.ci_low <= self.truth() && self.truth() <= change.ci_high
        };
        (0..2000).map(covers).filter(|covered| *covered).count() as f64 / 2000.0
    }
}

/// The 95 % interval covers the true difference in at least 93 of 100 comparisons, of few and of many episodes, near the
/// ends, with equal luck, and with several episodes of a task. It may be wider than needed, but not twice.
#[test]
fn an_interval_covers_the_true_difference() {
    let world =
        |n_tasks, per_task, rates, shares_luck| World { n_tasks, per_task, rates, shares_luck };
    let worlds = [
        world(256, 1, [(0.3, 0.5), (0.3, 0.5)], false),
        world(256, 1, [(0.9, 0.95), (0.1, 0.3)], true),
        world(64, 1, [(0.5, 0.5), (0.5, 0.5)], true),
        world(64, 1, [(0.02, 0.05), (0.0, 0.0)], false),
        world(12, 1, [(0.2, 0.9), (0.4, 0.6)], false),
        world(40, 6, [(0.9, 1.0), (0.1, 0.2)], false),
        world(40, 6, [(0.9, 0.6), (0.1, 0.4)], true),
    ];
    for (number, world) in worlds.iter().enumerate() {
        let covered = world.coverage();
        assert!(covered >= 0.93, "world {number}: {covered}");
    }
    // Not by being useless: without luck in common and with one episode of a task, the coverage is nominal.
    assert!(worlds[0].coverage() < 0.97);
}

fn record(results: &[(u64, bool)]) -> EvaluationRecord {
    let score = |(episode, solved): &(u64, bool)| EpisodeScore {
        episode: GroupId(*episode),
        seat: Seat::default(),
        task: TaskKey::of(&episode.to_string()),
        solved: *solved,
        reward: Some(f64::from(u8::from(*solved))),
    };
    let tasks: Vec<Vec<bool>> = results.iter().map(|(_, solved)| vec![*solved]).collect();
    EvaluationRecord {
        success: SuccessRate::of(&tasks),
        tasks: None,
        scores: results.iter().map(score).collect(),
    }
}

#[test]
fn evaluations_are_compared_episode_by_episode_where_they_have_the_same_ones() {
    let results = |n: u64, from: u64, every: u64| -> Vec<(u64, bool)> {
        (from..from + n).map(|episode| (episode, episode % every == 0)).collect()
    };
    let (before, after) = (record(&results(40, 0, 4)), record(&results(40, 0, 2)));
    let change = before.change_to(&after);
    assert!(change.is_paired);
    assert_eq!((change.episodes, change.before, change.after), (40, 0.25, 0.5));
    // Two broken episodes are left out; half of other episodes, or scores that were not kept, are no pairs.
    let broken = before.change_to(&record(&results(38, 0, 2)));
    assert_eq!((broken.is_paired, broken.episodes), (true, 38));
    assert!(!before.change_to(&record(&results(40, 20, 2))).is_paired);
    let success_alone = EvaluationRecord { scores: Vec::new(), ..after };
    let apart = before.change_to(&success_alone);
    assert!(!apart.is_paired && apart.detectable() > change.detectable());
    // The file of an earlier version has no scores.
    let old = r#"{"success_rate":0.5,"ci_low":0.4,"ci_high":0.6,"episodes":100}"#;
    let old: EvaluationRecord = serde_json::from_str(old).expect("it is read");
    assert_eq!((old.success.episodes, old.scores.len()), (100, 0));
}
