//! A server of ORS as a suite.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use turnwise_environment::{EnvironmentError, Suite};

use super::super::address::{ServerAddress, segment};
use super::super::discovery::{self, DividedTasks, WantedTasks};
use super::super::http::Ask;
use super::super::patience::Patience;
use super::super::peer::Peer;
use super::super::rewards::{RewardReading, reward_range};
use super::super::tasks::RemoteTasks;
use super::super::tool_list::only_text;
use super::game::{OrsServer, TextTool};
use super::session::{OrsSession, OrsTools};

/// The options of the environment `ors`: a server, and how its answers are read.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrsOptions {
    /// The address of the server, such as `http://127.0.0.1:8000`.
    pub url: String,
    /// The environment, if the server has several.
    pub env_name: Option<String>,
    /// The split to train on; by default the one that is for training.
    pub split: Option<String>,
    /// The split for evaluation; by default `test` or `validation`, or else the last tasks of the other.
    pub held_out_split: Option<String>,
    /// The most tasks to train on.
    pub tasks: Option<usize>,
    /// The most tasks for evaluation.
    pub held_out: Option<usize>,
    /// The tool that is given a text without calls, if it has one argument, a string. Empty for none. A server's own tool
    /// for the end of an episode comes first.
    pub text_tool: String,
    /// How rewards are read.
    pub reward: RewardReading,
    /// The least reward of an episode.
    pub reward_min: Option<f64>,
    /// The greatest reward of an episode.
    pub reward_max: Option<f64>,
    /// Whether the task and the calls alone decide what happens, so that an episode of an interrupted run is played again up
    /// to where it was; otherwise it starts anew.
    pub replay: bool,
    /// A file with the token of the server.
    pub token_file: Option<PathBuf>,
    /// The seconds until a connection is given up.
    pub connect_timeout_s: f64,
    /// The seconds until an answer is given up.
    pub timeout_s: f64,
    /// The seconds to wait for a server that starts, or has no room.
    pub ready_timeout_s: f64,
}

impl Default for OrsOptions {
    fn default() -> Self {
        Self {
            url: String::new(),
            env_name: None,
            split: None,
            held_out_split: None,
            tasks: None,
            held_out: None,
            text_tool: "answer".to_owned(),
            reward: RewardReading::default(),
            reward_min: None,
            reward_max: None,
            replay: false,
            token_file: None,
            connect_timeout_s: 10.0,
            timeout_s: 50.0,
            ready_timeout_s: 45.0,
        }
    }
}

/// Returns the suite `ors`: the environment of a server that speaks the Open Reward Standard.
///
/// # Errors
/// If the server cannot be reached, is not well, or has no tasks that fit the options.
pub fn ors_tasks(options: &OrsOptions) -> Result<Suite, EnvironmentError> {
    if options.url.is_empty() {
        return Err(EnvironmentError::new(
            "cannot set up ors: set `url` to the address of an ORS server",
        ));
    }
    let patience =
        Patience::read(options.connect_timeout_s, options.timeout_s, options.ready_timeout_s)?;
    let address = ServerAddress::read(&options.url)?;
    let reward_range = reward_range(options.reward_min, options.reward_max)?;
    let peer = Arc::new(Peer::new(address, options.token_file.as_deref(), patience)?);
    let Found { name, tasks, tools } = discovery::wait_for(found(&peer, options))?;
    let about = format!("{name} at {}", peer.address);
    let text = text_tool(&tools, &options.text_tool);
    let server = Arc::new(OrsServer {
        peer: Arc::new(peer.anew()?),
        name,
        tools: tools.tools,
        text,
        reward: options.reward,
        reward_range,
        replay: options.replay,
    });
    let of = |range| RemoteTasks { server: server.clone(), range };
    Ok(Suite::new("ors", of(tasks.0), of(tasks.1)).description(about))
}

/// Returns what becomes of a text without calls.
fn text_tool(tools: &OrsTools, named: &str) -> TextTool {
    if let Some((name, argument)) = tools.terminal.clone() {
        return TextTool::Terminal { name, argument };
    }
    let named = tools.tools.iter().find(|tool| tool.name == named);
    match named.and_then(|tool| Some((tool, only_text(tool)?))) {
        Some((tool, argument)) => {
            TextTool::Tool { name: tool.name.clone(), argument: argument.to_owned() }
        }
        None => TextTool::None,
    }
}

/// What was found out about a server.
struct Found {
    name: String,
    tasks: DividedTasks,
    tools: OrsTools,
}

async fn found(peer: &Arc<Peer>, options: &OrsOptions) -> Result<Found, EnvironmentError> {
    discovery::wait_until_healthy(peer).await?;
    let name = discovery::environment_name(peer, options.env_name.as_deref()).await?;
    let name = name.ok_or_else(|| {
        EnvironmentError::new("the server names no environment; set `env_name` to one")
    })?;
    let wanted = WantedTasks {
        split: options.split.clone(),
        held_out_split: options.held_out_split.clone(),
        tasks: options.tasks,
        held_out: options.held_out,
    };
    let tasks = discovery::tasks(peer, &name, &wanted).await?;
    let tasks = tasks.ok_or_else(|| {
        EnvironmentError::new(format!("the server knows no tasks of the environment `{name}`"))
    })?;
    let route = format!("/{}/tools", segment(&name));
    let mut tools = OrsTools::read(&peer.json(Ask::get(&route)).await?)?;
    if tools.tools.is_empty() && tools.terminal.is_none() {
        // The tools of some environments are those of their tasks.
        tools = OrsSession::start(peer, &name, &tasks.0.task(0)).await?.tools().await?;
    }
    Ok(Found { name, tasks, tools })
}
