//! A server of OpenEnv as a suite.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use turnwise_environment::{EnvironmentError, Suite, ToolSpec};

use super::super::action::ActionForm;
use super::super::address::ServerAddress;
use super::super::discovery::{self, DividedTasks, WantedTasks};
use super::super::fault::{field, shown};
use super::super::http::Ask;
use super::super::patience::Patience;
use super::super::peer::Peer;
use super::super::rewards::{RewardReading, reward_range};
use super::super::tasks::{RemoteTasks, TaskRange};
use super::super::tool_list;
use super::frames::Frame;
use super::game::{OpenEnvServer, Play, connected};

/// The options of the environment `openenv`: a server, and how it is spoken to.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpenEnvOptions {
    /// The address of the server, such as `http://127.0.0.1:8000`.
    pub url: String,
    /// The environment, if the server has several.
    pub env_name: Option<String>,
    /// The split to train on; by default the one that is for training.
    pub split: Option<String>,
    /// The split for evaluation; by default `test` or `validation`, or else the last tasks of the other.
    pub held_out_split: Option<String>,
    /// The most tasks to train on; 1,000 seeds if the server knows no tasks.
    pub tasks: Option<usize>,
    /// The most tasks for evaluation; 100 seeds if the server knows no tasks.
    pub held_out: Option<usize>,
    /// Whether the model calls tools or writes actions.
    pub interface: ActingBy,
    /// The tool that is given a text without calls, if it has one argument, a string. Empty for none.
    pub text_tool: String,
    /// The field of an action that is the model's text; by default its one field that is a string.
    pub text_field: Option<String>,
    /// How rewards are read.
    pub reward: RewardReading,
    /// The least reward of an episode.
    pub reward_min: Option<f64>,
    /// The greatest reward of an episode.
    pub reward_max: Option<f64>,
    /// Whether seed and actions alone decide what happens, so that an episode of an interrupted run is played again up to
    /// where it was; otherwise it starts anew.
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

/// How the model acts in an environment of OpenEnv.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActingBy {
    /// By tools if the server has any and takes their calls as actions, or else by actions.
    #[default]
    Auto,
    /// By calling tools.
    Tools,
    /// By writing actions.
    Action,
}

impl Default for OpenEnvOptions {
    fn default() -> Self {
        Self {
            url: String::new(),
            env_name: None,
            split: None,
            held_out_split: None,
            tasks: None,
            held_out: None,
            interface: ActingBy::default(),
            text_tool: "answer".to_owned(),
            text_field: None,
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

/// Returns the suite `openenv`: the environment of a server that speaks OpenEnv.
///
/// # Errors
/// If the server cannot be reached, is not well, or has no tasks that fit the options.
pub fn openenv_tasks(options: &OpenEnvOptions) -> Result<Suite, EnvironmentError> {
    if options.url.is_empty() {
        return Err(EnvironmentError::new(
            "cannot set up openenv: set `url` to the address of an OpenEnv server",
        ));
    }
    let patience =
        Patience::read(options.connect_timeout_s, options.timeout_s, options.ready_timeout_s)?;
    let address = ServerAddress::read(&options.url)?;
    let reward_range = reward_range(options.reward_min, options.reward_max)?;
    let peer = Peer::new(address, options.token_file.as_deref(), patience)?;
    let Found { name, about, tasks, play, instructions } =
        discovery::wait_for(found(&peer, options))?;
    let server = Arc::new(OpenEnvServer {
        peer: peer.anew()?,
        name,
        play,
        reward: options.reward,
        reward_range,
        replay: options.replay,
    });
    let of = |range| RemoteTasks { server: server.clone(), range };
    let suite = Suite::new("openenv", of(tasks.0), of(tasks.1)).description(about);
    Ok(match instructions {
        Some(instructions) => suite.instructions(instructions),
        None => suite,
    })
}

/// What was found out about a server.
struct Found {
    name: String,
    about: String,
    tasks: DividedTasks,
    play: Play,
    instructions: Option<String>,
}

async fn found(peer: &Peer, options: &OpenEnvOptions) -> Result<Found, EnvironmentError> {
    discovery::wait_until_healthy(peer).await?;
    let metadata = peer.json(Ask::get("/metadata")).await?;
    let own_name = discovery::environment_name(peer, options.env_name.as_deref()).await?;
    let wanted = WantedTasks {
        split: options.split.clone(),
        held_out_split: options.held_out_split.clone(),
        tasks: options.tasks,
        held_out: options.held_out,
    };
    let listed = match &own_name {
        Some(name) => discovery::tasks(peer, name, &wanted).await?,
        None => None,
    };
    let tasks = match listed {
        Some(tasks) => tasks,
        None if wanted.split.is_some() || wanted.held_out_split.is_some() => {
            return Err(EnvironmentError::new(
                "the server knows no splits; leave `split` and `held_out_split` out",
            ));
        }
        None => seeds(&wanted)?,
    };
    let schema = field(&mut peer.json(Ask::get("/schema")).await?, "action");
    let play = play(peer, &schema, options).await?;
    let instructions = match &play {
        Play::Action { form, .. } => form.instructions(&schema),
        Play::Tools { .. } => None,
    };
    let shown_name = shown(metadata["name"].as_str().unwrap_or("an environment"));
    let about = format!("{shown_name} at {}", peer.address);
    let name = own_name.unwrap_or(shown_name);
    Ok(Found { name, about, tasks, play, instructions })
}

/// Returns tasks that are seeds, those for evaluation behind the others.
fn seeds(wanted: &WantedTasks) -> Result<DividedTasks, EnvironmentError> {
    let (n, n_held_out) = (wanted.tasks.unwrap_or(1_000), wanted.held_out.unwrap_or(100));
    Ok((TaskRange::of_seeds(0, n)?, TaskRange::of_seeds(n, n_held_out)?))
}

/// Finds out how the model acts.
async fn play(
    peer: &Peer,
    schema: &Value,
    options: &OpenEnvOptions,
) -> Result<Play, EnvironmentError> {
    let takes_calls = schema.to_string().contains("\"tool_name\"");
    let asks = match options.interface {
        ActingBy::Auto => takes_calls && options.text_field.is_none(),
        ActingBy::Tools => true,
        ActingBy::Action => false,
    };
    if asks {
        match tools(peer).await? {
            Ok(tools) if !tools.is_empty() => {
                let text_tool = tools.iter().find(|tool| tool.name == options.text_tool);
                let text_tool = text_tool.and_then(|tool| {
                    Some((tool.name.clone(), tool_list::only_text(tool)?.to_owned()))
                });
                return Ok(Play::Tools { tools, text_tool });
            }
            Ok(_) if options.interface == ActingBy::Tools => {
                return Err(EnvironmentError::new("the server has no tools"));
            }
            Err(why) if options.interface == ActingBy::Tools => return Err(why),
            Ok(_) | Err(_) => {}
        }
    }
    let form = ActionForm::of(schema, options.text_field.as_deref());
    Ok(Play::Action { form: form.map_err(EnvironmentError::new)? })
}

/// Asks for the tools; the inner error is that the server has none.
async fn tools(peer: &Peer) -> Result<Result<Vec<ToolSpec>, EnvironmentError>, EnvironmentError> {
    const WHAT: &str = "tools/list";
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": WHAT, "params": {}});
    let (_socket, frame) = connected(peer, "mcp", &request).await?;
    let Frame::Mcp(answer) = frame else { return Err(frame.unexpected(WHAT)) };
    if answer["error"].is_object() {
        let message = shown(answer["error"]["message"].as_str().unwrap_or_default());
        return Ok(Err(EnvironmentError::new(format!("the server has no tools: {message}"))));
    }
    Ok(Ok(tool_list::tools(&answer["result"]["tools"])?))
}
