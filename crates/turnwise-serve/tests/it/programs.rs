//! How a program ends, and what it earns.

use std::sync::Arc;

use serde_json::{Value, json};
use turnwise_environment::{
    Action, Environment, EnvironmentError, Message, Observation, Role, Rubric, Step, Suite,
    Transcript, async_trait,
};
use turnwise_rollout::Allowance;
use turnwise_serve::{OrsOptions, Protocol, ServerSettings, ors_tasks};
use turnwise_testkit::scene;
use turnwise_trajectory::{InfraReason, Outcome};

use crate::peers::{Served, begun, end, next};
use crate::support::{Program, finished, run, user};

fn infra(outcome: &Outcome) -> (InfraReason, String) {
    let Outcome::InfraFault(fault) = outcome else { panic!("{outcome:?}") };
    (fault.reason, fault.message.clone())
}

#[test]
fn a_program_that_fails_or_is_killed_is_a_fault_and_has_no_reward() {
    run(async {
        for (command, reason) in [
            ("echo out of luck >&2; exit 3", "out of luck"),
            ("kill -9 $$", "signal"),
            ("true", "before it asked"),
            ("/nowhere/at/all", "not found"),
        ] {
            let program = Program::new().await;
            let episode = program.episode_of(command, scene::limits());
            let trajectory =
                finished(episode.advance(&program.model, &Allowance::unlimited()).await);
            let (kind, message) = infra(&trajectory.outcome);
            assert_eq!(kind, InfraReason::EnvError);
            assert!(message.contains(reason), "{command}: {message}");
            assert_eq!(trajectory.reward(), None);
        }
    });
}

#[test]
fn a_program_that_fails_after_a_reward_has_none() {
    run(async {
        let program = Program::new().await;
        let trajectory = program
            .played(async {
                let session = program.session().await;
                session.chat(&json!({"messages": [user("a")]})).await;
                session.post("/reward", &json!({"reward": 1.0})).await;
                program.exit(1);
            })
            .await;
        infra(&trajectory.outcome);
        assert_eq!((trajectory.reward(), trajectory.solved), (None, false));
    });
}

#[test]
fn rewards_belong_to_the_turn_that_they_name() {
    run(async {
        let program = Program::new().await;
        let trajectory = program
            .played(async {
                let session = program.session().await;
                for text in ["a", "b", "c"] {
                    session.chat(&json!({"messages": [user(text)]})).await;
                    session.post("/reward", &json!({"reward": 0.1})).await;
                }
                session.post("/reward", &json!({"reward": 2.0, "turn": 0})).await;
                session.post("/end", &json!({})).await;
            })
            .await;
        let rewards: Vec<_> = trajectory.turns.iter().map(|turn| turn.reward).collect();
        assert_eq!(rewards, [Some(2.1), Some(0.1), Some(0.1)]);
        // The rewards of the episode decide, not those of its last turn.
        assert!(trajectory.solved);
        assert_eq!(trajectory.outcome, Outcome::Done);
    });
}

#[test]
fn the_environment_behind_a_program_gives_its_task_and_its_rewards() {
    run(async {
        let program = Program::new().await;
        let trajectory = program
            .played(async {
                let session = program.session().await;
                let (status, task) = session.get("/task").await;
                assert_eq!(status, 200, "{task}");
                let task: Value = serde_json::from_str(&task).unwrap();
                let mut messages = task["messages"].as_array().unwrap().clone();
                let mut done = false;
                while !done {
                    let (_, message) = session.chat(&json!({"messages": messages})).await;
                    let action = json!({"content": message["content"]});
                    let (_, step) = session.post("/step", &action).await;
                    let step: Value = serde_json::from_str(&step).unwrap();
                    messages.push(message);
                    messages.extend(step["messages"].as_array().unwrap().clone());
                    done = step["done"] == true;
                }
                assert_eq!(session.post("/step", &json!({"content": "more"})).await.0, 404);
                program.exit(0);
            })
            .await;
        // The echo environment plays two turns, and rewards each.
        assert_eq!((trajectory.turns.len(), &trajectory.outcome), (2, &Outcome::Done));
        assert!(trajectory.turns.iter().all(|turn| turn.reward.is_some()));
        assert_eq!(trajectory.graph.leaves().len(), 1);
    });
}

/// Gives a point for each turn of the assistant that answers `two`, and none to episodes without one.
struct Counting;

#[async_trait]
impl Rubric for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    async fn score(&self, group: &[Transcript]) -> Result<Vec<Option<f64>>, EnvironmentError> {
        let is_of = |role| move |said: &&Message| said.role == role;
        let score = |one: &Transcript| {
            let asked = one.messages.iter().filter(is_of(Role::User));
            let asked_two = asked.filter(|said| said.content == "b").count();
            let answers = one.messages.iter().filter(is_of(Role::Assistant)).count();
            (answers > 0).then_some(asked_two as f64)
        };
        Ok(group.iter().map(score).collect())
    }
}

#[test]
fn a_rubric_scores_what_programs_said_that_give_themselves_no_reward() {
    run(async {
        let program = Program::new().await;
        let group = program
            .graded(Arc::new(Counting), 2, |sessions| async move {
                for (session, texts) in sessions.iter().zip([&["a"][..], &["b", "b"]]) {
                    let mut messages = Vec::new();
                    for text in texts {
                        messages.push(user(text));
                        let (_, message) = session.chat(&json!({"messages": messages})).await;
                        messages.push(message);
                    }
                    assert_eq!(session.post("/end", &json!({})).await.0, 200);
                }
            })
            .await;
        let mut scored: Vec<_> =
            group.members.iter().map(|member| (member.turns.len(), member.reward())).collect();
        scored.sort_by_key(|(turns, _)| *turns);
        assert_eq!(scored, [(1, Some(0.0)), (2, Some(2.0))]);
        for member in &group.members {
            assert_eq!(member.outcome, Outcome::Done);
            let last = member.turns.last().unwrap();
            assert_eq!(last.score.as_ref().map(|score| &*score.rubric), Some("counting"));
        }
    });
}

/// Judges the first turn only after the second.
#[derive(Clone, Debug)]
struct Judge {
    /// Makes tasks that differ.
    name: u32,
    turn: usize,
}

#[async_trait]
impl Environment for Judge {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok(format!("case {}", self.name).into())
    }

    async fn step(&mut self, _action: Action) -> Result<Step, EnvironmentError> {
        self.turn += 1;
        Ok(match self.turn {
            1 => Step::next("go on"),
            2 => Step::next("judged").reward(0.25).reward_of_turn(0, 0.5),
            _ => Step::terminated(0.0).reward_of_turn(1, 0.25),
        })
    }
}

fn cases() -> Vec<Judge> {
    (0..40).map(|name| Judge { name, turn: 0 }).collect()
}

#[test]
fn a_late_reward_of_the_environment_behind_a_program_is_of_the_programs_newest_turn() {
    run(async {
        let program = Program::new().await;
        let test = async {
            let session = program.session().await;
            for (asks, step) in [(true, 1), (true, 2), (false, 3)] {
                if asks {
                    session.chat(&json!({"messages": [user("a")]})).await;
                }
                let (status, answer) = session.post("/step", &json!({"content": "b"})).await;
                assert_eq!(status, 200, "step {step}: {answer}");
            }
            program.exit(0);
        };
        let trajectory = program.played_in(cases(), test).await;
        // The environment's turns are not the program's, which took three steps in two turns of its own.
        let rewards: Vec<_> = trajectory.turns.iter().map(|turn| turn.reward).collect();
        assert_eq!(rewards, [None, Some(1.0)]);
        assert_eq!(trajectory.reward(), Some(1.0));
    });
}

#[test]
fn a_late_reward_behind_a_server_is_of_the_call_that_it_came_with() {
    let suite = Suite::divided("judge", cases(), 0.3);
    let served = Served::suite(ServerSettings::new(Protocol::Ors), suite);
    let options = OrsOptions { url: served.url.clone(), ..OrsOptions::default() };
    let remote = ors_tasks(&options).unwrap();
    run(async {
        let (mut environment, _) = begun(&remote).await;
        let mut rewards = Vec::new();
        for _ in 0..2 {
            rewards.push(next(environment.step(Action::text("a")).await.unwrap()).1);
        }
        rewards.push(end(&environment.step(Action::text("a")).await.unwrap()).0);
        assert_eq!(rewards, [None, Some(0.75), Some(0.25)]);
    });
}
