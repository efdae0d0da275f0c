//! A server of verifiers as a suite.

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value};
use turnwise_environment::{
    Action, Ending, Environment, EnvironmentError, Observation, Step, Suite, Tasks,
};

use super::super::discovery::wait_for;
use super::client::VerifiersClient;

/// The options of the environment `verifiers`: a server that plays whole episodes, and the data of its tasks.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerifiersOptions {
    /// The address of the server, such as `tcp://127.0.0.1:5000`; of this machine or of a private network.
    pub address: String,
    /// A file with the data of one task on each line, as JSON: what the server's taskset writes of a task.
    pub tasks: PathBuf,
    /// Such a file for evaluation; by default, the last tenth of `tasks` is kept for it.
    pub held_out: Option<PathBuf>,
    /// The address at which the server finds the model. Port 0 takes a free one. On another machine than this one, the
    /// server needs an address that it reaches.
    pub model_address: SocketAddr,
    /// The least reward of an episode.
    pub reward_min: Option<f64>,
    /// The greatest reward of an episode.
    pub reward_max: Option<f64>,
    /// The seconds until a connection is given up.
    pub connect_timeout_s: f64,
    /// The seconds to wait for a server that starts.
    pub ready_timeout_s: f64,
}

impl VerifiersOptions {
    /// The name of the environment, and of its suite.
    pub const ENVIRONMENT: &'static str = "verifiers";
}

impl Default for VerifiersOptions {
    fn default() -> Self {
        Self {
            address: String::new(),
            tasks: PathBuf::new(),
            held_out: None,
            model_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            reward_min: None,
            reward_max: None,
            connect_timeout_s: 10.0,
            ready_timeout_s: 45.0,
        }
    }
}

/// Returns the suite `verifiers`: the tasks of a server that plays whole episodes. Their environments know the data of the
/// tasks alone; [`VerifiersTasks`](crate::VerifiersTasks) plays them.
///
/// # Errors
/// If the options name no address or no file, the file has no tasks, or the server is not well.
pub fn verifiers_tasks(options: &VerifiersOptions) -> Result<Suite, EnvironmentError> {
    let missing = |what: &str| EnvironmentError::new(format!("cannot set up verifiers: {what}"));
    if options.address.is_empty() {
        return Err(missing("set `address` to that of a verifiers server"));
    }
    if options.tasks.as_os_str().is_empty() {
        return Err(missing(
            "set `tasks` to a file with the data of one task on each line, as JSON; verifiers writes them with task.data.model_dump(mode=\"json\")",
        ));
    }
    if options.model_address.ip().is_unspecified() {
        return Err(missing(
            "`model_address` names no machine; set it to an address at which the server reaches this one",
        ));
    }
    let client = VerifiersClient::new(options)?;
    let mut seen = HashSet::new();
    let mut train = rows(&options.tasks, &mut seen)?;
    let held_out = match &options.held_out {
        Some(file) => rows(file, &mut seen)?,
        None => train.split_off(train.len() - (train.len() / 10).max(1)),
    };
    if train.is_empty() {
        return Err(missing(
            "`tasks` has one task, and training and evaluation need one each; add tasks, or set `held_out` to another file",
        ));
    }
    let about = format!("the environment of verifiers at {}", client.address());
    wait_for(async { client.wait_until_healthy().await })?;
    let of = |rows| Tasks::new(rows, |data: &TaskData| KnownTask(data.clone()));
    Ok(Suite::new(VerifiersOptions::ENVIRONMENT, of(train), of(held_out))
        .description(about)
        .max_turns(1))
}

/// The data of a task, as its taskset has it.
type TaskData = Map<String, Value>;

/// Reads a file with an object on each line, none of which was seen before.
fn rows(path: &Path, seen: &mut HashSet<String>) -> Result<Vec<TaskData>, EnvironmentError> {
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|error| {
        EnvironmentError::new(format!("cannot read the tasks of verifiers in {shown}"))
            .caused_by(error)
    })?;
    let mut rows: Vec<TaskData> = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let row: TaskData = serde_json::from_str(line).map_err(|error| {
            let what = format!("line {} of {shown} is not the data of a task", index + 1);
            EnvironmentError::new(format!("{what}, an object of JSON")).caused_by(error)
        })?;
        if !seen.insert(Value::Object(row.clone()).to_string()) {
            return Err(EnvironmentError::new(format!(
                "line {} of {shown} repeats a task; each may be there once, to train on or to evaluate on",
                index + 1
            )));
        }
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(EnvironmentError::new(format!("{shown} has no tasks")));
    }
    Ok(rows)
}

/// A task whose data are all that is known of it here.
struct KnownTask(TaskData);

#[async_trait]
impl Environment for KnownTask {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok(Value::Object(self.0.clone()).to_string().into())
    }

    async fn step(&mut self, _action: Action) -> Result<Step, EnvironmentError> {
        // Who plays it here has no server that would score it.
        Ok(Step::End {
            reward: None,
            ending: Ending::Terminated,
            solved: false,
            others: Vec::new(),
            late: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<TaskData>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tasks.jsonl");
        fs::write(&path, text).unwrap();
        rows(&path, &mut HashSet::new())
            .map_err(|error| error.to_string().replace(path.to_str().unwrap(), "FILE"))
    }

    #[test]
    fn tasks_are_objects_on_lines() {
        assert_eq!(read("{\"idx\": 0}\n\n{\"idx\": 1}\n").unwrap().len(), 2);
        for (text, error) in [
            ("", "FILE has no tasks"),
            ("\n \n", "FILE has no tasks"),
            ("{\"idx\": 0}\n[1]\n", "line 2 of FILE is not the data of a task, an object of JSON"),
            ("\n{\"idx\": \n", "line 2 of FILE is not the data of a task, an object of JSON"),
            (
                "{\"idx\": 0}\n{\"idx\":0}",
                "line 2 of FILE repeats a task; each may be there once, to train on or to evaluate on",
            ),
        ] {
            assert_eq!(read(text).unwrap_err(), error, "{text:?}");
        }
        let error =
            rows(Path::new("/nowhere/tasks.jsonl"), &mut HashSet::new()).unwrap_err().to_string();
        assert_eq!(error, "cannot read the tasks of verifiers in /nowhere/tasks.jsonl");
    }

    #[test]
    fn options_that_cannot_be_used_are_refused_before_a_server_is_asked() {
        let options = VerifiersOptions {
            address: "tcp://127.0.0.1:9".to_owned(),
            tasks: PathBuf::from("/nowhere/tasks.jsonl"),
            ..VerifiersOptions::default()
        };
        let refused = |options| match verifiers_tasks(&options) {
            Ok(_) => panic!("the options are refused"),
            Err(error) => error.to_string(),
        };
        for (wrong, why) in [
            (VerifiersOptions::default(), "set `address`"),
            (VerifiersOptions { tasks: PathBuf::new(), ..options.clone() }, "set `tasks`"),
            (
                VerifiersOptions { model_address: "0.0.0.0:0".parse().unwrap(), ..options.clone() },
                "`model_address` names no machine",
            ),
            (
                VerifiersOptions { ready_timeout_s: 0.0, ..options.clone() },
                "`ready_timeout_s` is 0",
            ),
            (
                VerifiersOptions {
                    reward_min: Some(1.0),
                    reward_max: Some(0.0),
                    ..options.clone()
                },
                "is not below",
            ),
            (options.clone(), "cannot read the tasks of verifiers in /nowhere/tasks.jsonl"),
        ] {
            let error = refused(wrong);
            assert!(error.contains(why), "{error}");
        }
    }
}
