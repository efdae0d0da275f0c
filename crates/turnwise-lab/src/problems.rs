//! The problems: small enough to enumerate, each with a difficulty for estimators.

use crate::{Problem, Situation, SoftmaxPolicy};

/// Returns every problem. To add a problem, add a line.
#[must_use]
pub fn all() -> Vec<Problem> {
    vec![stopping(1.0), early_or_late(), two_turns(), equal_lengths(), lengths(), tool_answer()]
}

/// Returns a problem in which every first turn earns 1; continuing earns `worth`, in a second turn without a choice.
///
/// With p the probability of continuing, the true gradient of its logit is p(1 − p)·`worth`. Compared by turn index,
/// all members that continue get the same reward, and the estimated gradient is 0 (verl, RFC 7244).
#[must_use]
pub fn stopping(worth: f64) -> Problem {
    let go_on = Situation::turn(1.0, Situation::token(1, vec![Situation::last_turn(worth)]));
    Problem {
        name: "stopping",
        about: "the first turn earns 1; going on earns something, and the policy decides",
        start: Situation::token(0, vec![Situation::last_turn(1.0), go_on]),
        policy: SoftmaxPolicy::new(vec![vec![0.0, 0.4], vec![0.0]]),
    }
}

/// Returns a problem of one to three turns; the policy stops after any, and the value of continuing depends on when.
#[must_use]
pub fn early_or_late() -> Problem {
    let third = Situation::idle(&[2], 1, Situation::last_turn(0.5));
    let second =
        Situation::token(1, vec![Situation::last_turn(1.5), Situation::turn(-0.25, third)]);
    Problem {
        name: "early_or_late",
        about: "one to three turns; the second is the best to stop in",
        start: Situation::token(0, vec![Situation::last_turn(0.0), Situation::turn(-0.5, second)]),
        policy: SoftmaxPolicy::new(vec![vec![0.0, 0.4], vec![0.3, 0.0], vec![0.0]]),
    }
}

/// Returns a problem in which the first turn's one token decides; two tokens of a second turn have no effect.
#[must_use]
pub fn two_turns() -> Problem {
    let after =
        |reward| Situation::turn(reward, Situation::idle(&[1, 2], 2, Situation::last_turn(0.0)));
    Problem {
        name: "two_turns",
        about: "the first turn's action alone decides; the second turn has more tokens",
        start: Situation::token(0, vec![after(1.0), after(0.25), after(0.0)]),
        policy: SoftmaxPolicy::new(vec![vec![-0.4, 0.1, 0.3], vec![0.2, -0.1], vec![-0.3, 0.3]]),
    }
}

/// Returns a problem with three tokens in two turns, both of which matter: a weight of 1/n_i is only a scale here.
#[must_use]
pub fn equal_lengths() -> Problem {
    let second = |decision, rewards: [f64; 2]| {
        let last = |reward| Situation::idle(&[3], 2, Situation::last_turn(reward));
        Situation::token(decision, rewards.map(last).to_vec())
    };
    Problem {
        name: "equal_lengths",
        about: "two turns that both matter, always three tokens",
        start: Situation::token(
            0,
            vec![
                Situation::turn(0.0, second(1, [0.0, 1.0])),
                Situation::turn(0.5, second(2, [0.25, -0.25])),
            ],
        ),
        policy: SoftmaxPolicy::new(vec![
            vec![0.2, -0.2],
            vec![0.3, -0.3],
            vec![-0.1, 0.4],
            vec![0.1, -0.2],
        ]),
    }
}

/// Returns a problem with a first turn of one or three tokens, then a second of one or two: short is easy, long is
/// good.
#[must_use]
pub fn lengths() -> Problem {
    let second = |decision, bonus: f64| {
        let longer = Situation::idle(&[4], 2, Situation::last_turn(bonus));
        Situation::token(decision, vec![Situation::last_turn(0.0), longer])
    };
    let short = Situation::turn(0.3, second(1, -0.5));
    let long = Situation::idle(&[3, 3], 1, Situation::turn(0.0, second(2, 1.0)));
    Problem {
        name: "lengths",
        about: "turns of one to three tokens; the longer way is the better one",
        start: Situation::token(0, vec![short, long]),
        policy: SoftmaxPolicy::new(vec![
            vec![0.3, -0.2],
            vec![0.1, 0.2],
            vec![0.4, -0.1],
            vec![0.0],
            vec![-0.2, 0.3],
        ]),
    }
}

/// Returns a problem in which a tool is called in one of two ways and answers at random; the better call is rewarded
/// for any answer, and the final answer has to match the tool's answer.
#[must_use]
pub fn tool_answer() -> Problem {
    let read = |decision, right: usize| {
        let reward = |choice| if choice == right { 1.0 } else { 0.0 };
        let last = |choice| Situation::last_turn(reward(choice));
        Situation::token(decision, vec![last(0), last(1)])
    };
    let call = |reward, odds: f64| {
        let answers = Situation::Chance(vec![(odds, read(1, 0)), (1.0 - odds, read(2, 1))]);
        Situation::turn(reward, answers)
    };
    Problem {
        name: "tool_answer",
        about: "a tool answers at random, and the second turn has to fit the answer",
        start: Situation::token(0, vec![call(0.0, 0.5), call(0.25, 0.3)]),
        policy: SoftmaxPolicy::new(vec![vec![0.3, -0.1], vec![-0.4, 0.2], vec![0.5, -0.1]]),
    }
}
