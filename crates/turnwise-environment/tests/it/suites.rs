//! Suites from any tasks.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use turnwise_environment::{
    Action, Environment, EnvironmentError, Observation, Split, Step, Suite, TaskKey, Tasks,
    async_trait,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Question {
    question: String,
    answer: u32,
}

#[derive(Clone, Debug)]
struct Quiz(Question);

#[async_trait]
impl Environment for Quiz {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok(self.0.question.clone().into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        Ok(Step::terminated(f64::from(u8::from(action.text == self.0.answer.to_string()))))
    }
}

fn question(n: u32) -> Question {
    Question { question: format!("{n} + 1?"), answer: n + 1 }
}

fn tasks(n: u32) -> Tasks<Question> {
    Tasks::new((0..n).map(question), |task| Quiz(task.clone()))
}

fn keys(suite: &Suite, split: Split) -> BTreeSet<TaskKey> {
    let tasks = suite.tasks(split);
    (0..tasks.len()).map(|index| tasks.key(index)).collect()
}

#[test]
fn a_divided_suite_keeps_each_task_on_its_side() {
    let few = Suite::divided("quiz", tasks(1000), 0.2);
    let (train, held_out) = (keys(&few, Split::Train), keys(&few, Split::HeldOut));
    assert_eq!(train.len() + held_out.len(), 1000);
    assert!(train.is_disjoint(&held_out));
    // 200 expected, with a deviation of 13.
    assert!((150..250).contains(&held_out.len()), "{}", held_out.len());
    let more = Suite::divided("quiz", tasks(2000), 0.2);
    assert!(train.is_subset(&keys(&more, Split::Train)));
    assert!(held_out.is_subset(&keys(&more, Split::HeldOut)));
}

/// Tasks that differ in one number have similar keys.
#[derive(Clone, Copy, Debug)]
struct Numbered(u32);

#[async_trait]
impl Environment for Numbered {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok(self.0.to_string().into())
    }

    async fn step(&mut self, _action: Action) -> Result<Step, EnvironmentError> {
        Ok(Step::terminated(1.0))
    }
}

#[test]
fn a_short_list_of_similar_tasks_is_divided_too() {
    for first in [0, 1, 10, 500] {
        let tasks: Vec<Numbered> = (first..first + 50).map(Numbered).collect();
        let suite = Suite::divided("numbers", tasks, 0.3);
        // 15 expected, with a deviation of 3.2.
        let n = suite.tasks(Split::HeldOut).len();
        assert!((5..26).contains(&n), "{n} of 50 from {first} on");
    }
}

#[test]
fn tasks_of_a_suite_have_its_name() {
    let suite = Suite::divided("quiz", vec![Quiz(question(1)), Quiz(question(2))], 0.5);
    assert_eq!(suite.tasks(Split::Train).name(), "quiz");
    assert_eq!(suite.about(), "quiz");
    let suite = Suite::new("quiz", tasks(3).version(7), tasks(0).version(7));
    assert_eq!(suite.tasks(Split::HeldOut).version(), 7);
}

#[test]
fn of_equal_tasks_the_first_stays() {
    let twice = (0..3).chain(0..4).map(question);
    let tasks = Tasks::new(twice, |task| Quiz(task.clone()));
    let suite = Suite::new("quiz", tasks, self::tasks(0));
    assert_eq!(suite.tasks(Split::Train).len(), 4);
    assert_eq!(keys(&suite, Split::Train).len(), 4);
}

/// Keys stand in records: a task must have its key for ever. (FNV-1a of 128 bits, computed by another program.)
#[test]
fn keys_of_tasks_stay_what_they_are() {
    let suite = Suite::new("quiz", tasks(2), tasks(0));
    let keys: Vec<String> = keys(&suite, Split::Train).iter().map(ToString::to_string).collect();
    assert_eq!(keys, ["ec4b73938839c52a0f9cbac5aee9a28f", "ec6c30c1a8e05e13901aa23ecd908037"]);
}

#[test]
fn tasks_are_read_from_lines_and_a_wrong_line_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("quiz.jsonl");
    let write = |text: &str| std::fs::write(&path, text).expect("written");
    let read = || Tasks::from_jsonl(&path, |task: &Question| Quiz(task.clone()));
    write(
        "{\"question\": \"1 + 1?\", \"answer\": 2}\n\n{\"question\": \"2 + 2?\", \"answer\": 4}\n",
    );
    let suite = Suite::new("quiz", read().expect("they are tasks"), tasks(0));
    assert_eq!(suite.tasks(Split::Train).len(), 2);
    write("{\"question\": \"1 + 1?\", \"answer\": 2}\n{\"question\": 3}\n");
    let error = read().expect_err("line 2 is wrong");
    assert!(error.to_string().starts_with("cannot read the task in line 2 of "), "{error}");
    std::fs::remove_file(&path).expect("removed");
    assert!(
        read().expect_err("it is gone").to_string().starts_with("cannot read "),
        "the file is named"
    );
}
