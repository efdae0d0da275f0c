//! Command-line arguments.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use turnwise_candle::Device;
use turnwise_run::form::TemplateName;

use crate::bench::BenchCommand;
use crate::simulate::cluster::ClusterArguments;

/// The help of a `--model`: what a model can be, and then what is particular to the command.
macro_rules! model_help {
    ($($more:literal)?) => {
        concat!(
            "The model: a Hugging Face directory, a checkpoint of a run, a .gguf file, the directory of a PEFT adapter, \
             or the name of a model in the Hugging Face cache",
            $("; ", $more)?
        )
    };
}

/// Multi-turn reinforcement learning for language-model agents.
#[derive(Debug, Parser)]
#[command(name = "turnwise", version, long_about = None, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a small model on a game: the whole loop in two minutes, offline
    Try(RunArguments),
    /// Train with the settings of a TOML file
    Train {
        /// The settings; `turnwise config` prints all of them with their defaults
        config: PathBuf,
        #[command(flatten)]
        run: RunArguments,
    },
    /// Continue a run that was stopped
    Resume {
        /// The run directory
        run_dir: PathBuf,
        /// Print the metrics of each step as JSON
        #[arg(long)]
        json: bool,
        /// Train up to this step instead
        #[arg(long, value_name = "N")]
        steps: Option<u64>,
    },
    /// Print every setting with its value and its meaning, as TOML
    Config {
        /// A settings file whose values replace the defaults, followed by single settings
        #[arg(value_name = "CONFIG.toml | TABLE.KEY=VALUE")]
        settings: Vec<String>,
        #[arg(long, value_name = "MODEL", help = model_help!("its settings are printed"))]
        model: Option<PathBuf>,
    },
    /// Measure a model's success on held-out tasks
    Eval(EvalArguments),
    /// Say whether a run learned, and what is wrong with it: most important first, each with its evidence and the
    /// setting to change
    ///
    /// Reads the files of the run alone, also while it goes on or after it was killed. The exit code is 0 if nothing is
    /// wrong, 1 if there are findings or nothing to judge yet, and 2 if the directory holds no run that can be read.
    Doctor {
        /// The run directory
        run_dir: PathBuf,
        /// Print the verdict and the findings as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print conversations of a run as chat, with rewards and faults of each turn
    ///
    /// `show` is for people: it picks episodes and prints what was said. `render` is for tokens: it prints one recorded
    /// trajectory or one conversation token by token, as the model sees it.
    Show(ShowArguments),
    /// Print the log-probability of each token after the first, for lines of {"ids": […]}
    Score {
        #[arg(long, value_name = "MODEL", help = model_help!())]
        model: PathBuf,
        /// JSON lines; `-` reads standard input
        #[arg(long, value_name = "FILE")]
        input: PathBuf,
        /// The device: `cpu`, or `cuda` (`cuda:1` and so on) in a build with the feature `cuda`
        #[arg(long, value_name = "DEVICE", default_value_t)]
        device: Device,
    },
    /// Print the tokens of a conversation or of a recorded trajectory, as the model sees them; `show` prints the text
    Render(RenderArguments),
    /// List environments, check one against its contract, or create a new one
    Env {
        #[command(subcommand)]
        command: EnvCommand,
    },
    /// Measure estimators of the policy gradient: their exact bias, and the value of turn credit
    Lab {
        #[command(subcommand)]
        command: LabCommand,
    },
    /// Run the scheduler against scripted engines and environments that fail, from a seed
    Simulate(SimulateArguments),
    /// Measure this machine
    Bench {
        #[command(subcommand)]
        command: BenchCommand,
    },
    /// Serve an environment to the trainers of others, until Ctrl-C
    Serve(ServeArguments),
    /// Run the episodes of a run on another machine, until Ctrl-C or until the run is over
    Worker(WorkerArguments),
    /// Play an environment yourself
    Play {
        /// The environment; `turnwise env list` names them
        env: String,
        /// The task; by default the seed chooses one
        #[arg(long, value_name = "N")]
        task: Option<usize>,
        /// The seed of the task and its randomness
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
        /// Play a held-out task, which training never uses
        #[arg(long)]
        held_out: bool,
        /// Settings of the environment, such as `span=20`
        #[arg(value_name = "KEY=VALUE")]
        options: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct WorkerArguments {
    /// The address that the run shows
    #[arg(long, value_name = "URL")]
    pub(crate) trainer: String,
    /// A file with the run's token
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Episodes at a time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) episodes: u16,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// The environment; `turnwise env list` names them
    pub(crate) env: String,
    /// The protocol
    #[arg(long, value_enum)]
    pub(crate) protocol: ProtocolName,
    /// The address to listen at; off this machine, clients need a token
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8000")]
    pub(crate) address: SocketAddr,
    /// A file with the token that clients send as their API key; off this machine, one is made without it
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// The model that clients name by its endpoint, for its tokenizer and chat template; needed by verifiers alone
    #[arg(long, value_name = "MODEL", required_if_eq("protocol", "verifiers"))]
    pub(crate) model: Option<PathBuf>,
    /// The longest context of an episode, in tokens; for verifiers alone
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    pub(crate) context_tokens: usize,
    /// A variable in which a client of verifiers may find the key of its endpoint; can be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) key_variable: Vec<String>,
    /// The reward of a call: that of its own turn, or of all turns so far, for trainers that take the last one (TRL)
    #[arg(long, value_enum, default_value_t = RewardName::Turn)]
    pub(crate) reward: RewardName,
    /// Settings of the environment, such as `span=20`
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) options: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ProtocolName {
    /// The Open Reward Standard, for TRL
    Ors,
    /// OpenEnv on a WebSocket; its /mcp is also a server for clients of MCP
    Openenv,
    /// Whole episodes with their tokens by ZeroMQ, for prime-rl and verifiers
    Verifiers,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RewardName {
    Turn,
    Total,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct SimulateArguments {
    #[command(subcommand)]
    pub(crate) command: Option<SimulateCommand>,
    /// Run this seed alone and print its events
    #[arg(long, value_name = "N", conflicts_with_all = ["seeds", "from"])]
    pub(crate) seed: Option<u64>,
    /// The number of seeds
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub(crate) seeds: u64,
    /// The first seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) from: u64,
    /// Faults throughout, faults that stop after a while, or each seed once in both modes
    #[arg(long, value_enum, default_value_t = SimulationMode::Both)]
    pub(crate) mode: SimulationMode,
    /// The number of threads
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) jobs: usize,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SimulateCommand {
    /// Say how a step's time grows with workers: throughput, staleness, and who waits for whom
    Cluster(ClusterArguments),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SimulationMode {
    Safety,
    Liveness,
    Both,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EnvCommand {
    /// List the environments of this program
    List,
    /// Create a crate with a new environment: a tool, tasks, tests, settings that train it
    New {
        /// The name of the crate and its directory
        name: String,
        /// A checkout of turnwise, or its git address; by default the source that this program was built from
        #[arg(long, value_name = "PATH_OR_URL")]
        source: Option<String>,
    },
    /// Check the contract: seeds, hostile actions, snapshots, rewards, expert and random player
    Check {
        /// The environment; `turnwise env list` names them
        name: String,
        /// Settings of the environment, such as `span=20`
        #[arg(value_name = "KEY=VALUE")]
        options: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Compute bias and variance of every objective with every credit, by enumerating small problems
    Estimators(EstimatorArguments),
    /// Count the episodes that turn credit and outcome credit need if the first of two turns alone decides
    Credit(CreditArguments),
}

#[derive(Debug, Args)]
pub(crate) struct EstimatorArguments {
    /// One problem; by default all
    #[arg(long, value_name = "NAME")]
    pub(crate) problem: Option<String>,
    /// Objectives whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub(crate) objective: Option<String>,
    /// Credits whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub(crate) credit: Option<String>,
    /// The number of episodes in a group
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) group_size: usize,
    /// The distance of the behaviour policy's logits from the trained policy's; 0 is on-policy
    #[arg(long, value_name = "DISTANCE", default_value_t = 0.0)]
    pub(crate) off_policy: f64,
    /// Print a JSON object for each estimator
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CreditArguments {
    /// The number of seeds, each with every credit
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) seeds: u64,
    /// The first seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) from: u64,
    /// The number of episodes after which a run is given up
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub(crate) max_episodes: usize,
    /// The learning rate
    #[arg(long, value_name = "RATE", default_value_t = 3e-3)]
    pub(crate) learning_rate: f64,
    /// The number of words in the report, which have no effect on the outcome
    #[arg(long, value_name = "N", default_value_t = 24)]
    pub(crate) report_words: usize,
    /// The size of the random rewards that a noisy judge gives to reports; 0 disables it
    #[arg(long, value_name = "REWARD", default_value_t = 1.0)]
    pub(crate) judge: f64,
    /// Print a JSON object for each run and each comparison
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// Settings with precedence over the file's, such as `train.learning_rate=5e-4`
    #[arg(value_name = "TABLE.KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// The directory of the run's files
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// The seed of the run: `run.seed`
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// The number of training steps: `run.steps`
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u64>,
    /// Print the metrics of each step as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl RunArguments {
    /// Returns every override, flags last: the most specific has precedence.
    pub(crate) fn all_overrides(&self) -> Vec<String> {
        let mut overrides = self.overrides.clone();
        overrides.extend(self.seed.map(|seed| format!("run.seed={seed}")));
        overrides.extend(self.steps.map(|steps| format!("run.steps={steps}")));
        overrides
    }
}

#[derive(Debug, Args)]
pub(crate) struct EvalArguments {
    #[arg(long, value_name = "MODEL", help = model_help!("a run stands for its newest checkpoint"))]
    pub(crate) model: PathBuf,
    /// The environment; `turnwise env list` names them
    #[arg(long, value_name = "NAME")]
    pub(crate) env: Option<String>,
    /// The number of held-out episodes: `eval.episodes`
    #[arg(long, value_name = "N")]
    pub(crate) episodes: Option<usize>,
    /// The seed of tasks and sampling
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Write the conversations to this file, one trajectory per line, for `turnwise render --rollout`
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Settings, such as `eval.temperature=0` or `environment.options.span=20`
    #[arg(value_name = "TABLE.KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

impl EvalArguments {
    /// Returns every requested setting, those with flags of their own last.
    pub(crate) fn all_overrides(&self) -> Vec<String> {
        let mut overrides = vec![format!("run.seed={}", self.seed)];
        overrides.extend(self.env.as_ref().map(|name| format!("environment.name={name}")));
        overrides.extend(self.episodes.map(|episodes| format!("eval.episodes={episodes}")));
        overrides.extend(self.overrides.iter().cloned());
        overrides
    }
}

#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    /// The run directory
    pub(crate) run_dir: PathBuf,
    /// Show the episodes with the highest reward
    #[arg(long)]
    pub(crate) best: bool,
    /// Show the episodes with the lowest reward
    #[arg(long)]
    pub(crate) worst: bool,
    /// Show episodes that ran into a limit or broke, or in which the environment could not read a turn; those with the
    /// most such turns first
    #[arg(long)]
    pub(crate) failed: bool,
    /// Take training episodes of this step, counted from 1; by default those of the newest evaluation
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) step: Option<u64>,
    /// Take the episodes of this evaluation: `before`, `after`, or one on the way, such as `step-000100`
    #[arg(long, value_name = "WHEN", conflicts_with = "step")]
    pub(crate) eval: Option<String>,
    /// Show this task alone, by its key or its number
    #[arg(long, value_name = "KEY")]
    pub(crate) task: Option<String>,
    /// The number of episodes of each kind
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) n: usize,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["conversation", "rollout"])))]
pub(crate) struct RenderArguments {
    /// A conversation as JSON: a list of messages, or {"messages": […], "tools": […]}; `-` reads standard input
    pub(crate) conversation: Option<PathBuf>,
    /// A run's file of trajectories, such as RUN/rollouts/step-000000.jsonl
    #[arg(long, value_name = "FILE")]
    pub(crate) rollout: Option<PathBuf>,
    /// The index of the trajectory in the file, from 0
    #[arg(long, value_name = "N", default_value_t = 0, requires = "rollout")]
    pub(crate) index: usize,
    #[arg(
        long,
        value_name = "MODEL",
        help = model_help!("for a trajectory of a run, the run's own by default")
    )]
    pub(crate) model: Option<PathBuf>,
    /// A tokenizer.json instead of a model
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// The format of the conversation; by default the model's own template, and without one what its control tokens suggest
    #[arg(long, value_enum, value_name = "FORM", conflicts_with = "rollout")]
    pub(crate) template: Option<TemplateChoice>,
    /// The hash of the model's own template, once you have read it: a template is a program
    #[arg(long, value_name = "HASH", conflicts_with = "rollout")]
    pub(crate) trust: Option<String>,
    /// The time that the model's own template sees, such as 2026-01-31 or 2026-01-31T14:30:00
    #[arg(long, value_name = "TIME", conflicts_with = "rollout")]
    pub(crate) time: Option<String>,
    /// The treatment of thinking in past turns; by default that of the checkpoint's run, or `keep`
    #[arg(long, value_enum, value_name = "MODE", conflicts_with = "rollout")]
    pub(crate) thinking: Option<ThinkingChoice>,
    /// Play the conversation turn by turn, and show each branch where the template rewrites history
    #[arg(long, conflicts_with = "rollout")]
    pub(crate) branches: bool,
    /// Print only a JSON object for each token
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TemplateChoice {
    /// `ChatML` with tools as JSON schemas
    Qwen3,
    /// `ChatML` with a line for each tool, or with the settings of the checkpoint's run
    Chatml,
    /// The format of Llama 3.1
    Llama3,
    /// The model's own Jinja template
    Hf,
}

impl From<TemplateChoice> for TemplateName {
    fn from(choice: TemplateChoice) -> Self {
        match choice {
            TemplateChoice::Qwen3 => Self::Qwen3,
            TemplateChoice::Chatml => Self::Chatml,
            TemplateChoice::Llama3 => Self::Llama3,
            TemplateChoice::Hf => Self::Hf,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ThinkingChoice {
    /// Keep thinking
    Keep,
    /// Do what the template does
    Follow,
}
