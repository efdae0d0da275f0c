//! Command-line arguments.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use turnwise_candle::Device;
use turnwise_run::form::TemplateName;

use crate::bench::BenchCommand;

/// Multi-turn reinforcement learning for language-model agents.
#[derive(Debug, Parser)]
#[command(name = "turnwise", version, about, long_about = None, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a small model and watch it learn a game: the whole loop in two minutes, offline
    Try(RunArguments),
    /// Train with a TOML file's settings
    Train {
        /// The settings; `turnwise config` prints all of them with their defaults
        config: PathBuf,
        #[command(flatten)]
        run: RunArguments,
    },
    /// Go on with a run that was stopped
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
    /// Print every setting with its value and what it means, as TOML
    Config {
        /// A settings file, whose values are printed in place of the defaults, and settings that come after it
        #[arg(value_name = "CONFIG.toml | TABLE.KEY=VALUE")]
        settings: Vec<String>,
        /// Print what would be used with this model
        #[arg(long, value_name = "DIR")]
        model: Option<PathBuf>,
    },
    /// Measure a model's success on held-out tasks
    Eval(EvalArguments),
    /// Print the log-probability of each token after the first, for lines of {"ids": […]}
    Score {
        /// A Hugging Face model directory, or the name of a model in the Hugging Face cache
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
        /// JSON lines; `-` reads standard input
        #[arg(long, value_name = "FILE")]
        input: PathBuf,
        /// What computes them: `cpu`, or `cuda` (`cuda:1` and so on) in a build with the feature `cuda`
        #[arg(long, value_name = "DEVICE", default_value_t)]
        device: Device,
    },
    /// Print what the model sees, token by token: of a conversation, or of a recorded trajectory
    Render(RenderArguments),
    /// List environments, check one against its contract, or begin one of your own
    Env {
        #[command(subcommand)]
        command: EnvCommand,
    },
    /// Measure estimators of the policy gradient: their exact bias, and what credit by turn is worth
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
    /// Play an environment yourself
    Play {
        /// The environment; `turnwise env list` names them
        env: String,
        /// Which task; without it the seed chooses
        #[arg(long, value_name = "N")]
        task: Option<usize>,
        /// The number that the task and its randomness derive from
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
        /// Play a task that training never sees
        #[arg(long)]
        held_out: bool,
        /// Settings of the environment, as in `span=20`
        #[arg(value_name = "KEY=VALUE")]
        options: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SimulateArguments {
    /// Run this one and print what happened
    #[arg(long, value_name = "N", conflicts_with_all = ["seeds", "from"])]
    pub(crate) seed: Option<u64>,
    /// How many seeds
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub(crate) seeds: u64,
    /// The first
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) from: u64,
    /// Faults throughout, faults that stop after a while, or each seed once in both
    #[arg(long, value_enum, default_value_t = SimulationMode::Both)]
    pub(crate) mode: SimulationMode,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) jobs: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SimulationMode {
    Safety,
    Liveness,
    Both,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EnvCommand {
    /// The environments that this program knows
    List,
    /// Write a crate with an environment of your own: a tool, tasks, tests, settings that train it
    New {
        /// What it is called: a directory of this name is made here
        name: String,
        /// A checkout of turnwise, or its git address; without it the source that this program was built from
        #[arg(long, value_name = "PATH_OR_URL")]
        source: Option<String>,
    },
    /// Check the contract: seeds, hostile actions, snapshots, rewards, expert and random player
    Check {
        /// The environment; `turnwise env list` names them
        name: String,
        /// Settings of the environment, as in `span=20`
        #[arg(value_name = "KEY=VALUE")]
        options: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Bias and variance of every objective with every credit, by enumerating small problems
    Estimators(EstimatorArguments),
    /// Episodes that turn credit and outcome credit need where the first of two turns alone decides
    Credit(CreditArguments),
}

#[derive(Debug, Args)]
pub(crate) struct EstimatorArguments {
    /// One problem; without it all
    #[arg(long, value_name = "NAME")]
    pub(crate) problem: Option<String>,
    /// Objectives whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub(crate) objective: Option<String>,
    /// Credits whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub(crate) credit: Option<String>,
    /// Episodes that are compared with each other
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) group_size: usize,
    /// How far the behaviour policy's logits are from the trained policy's; 0 is on policy
    #[arg(long, value_name = "DISTANCE", default_value_t = 0.0)]
    pub(crate) off_policy: f64,
    /// Print a JSON object for each estimator
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CreditArguments {
    /// How many seeds, each with every credit
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) seeds: u64,
    /// The first seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) from: u64,
    /// Where a run is given up
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub(crate) max_episodes: usize,
    /// The learning rate
    #[arg(long, value_name = "RATE", default_value_t = 3e-3)]
    pub(crate) learning_rate: f64,
    /// Words of the report, none of which changes anything
    #[arg(long, value_name = "N", default_value_t = 24)]
    pub(crate) report_words: usize,
    /// What a report earns or costs, as a fickle judge pleases; 0 is a silent one
    #[arg(long, value_name = "REWARD", default_value_t = 1.0)]
    pub(crate) judge: f64,
    /// Print a JSON object for each run and each comparison
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// Settings that come after the file's, as in `train.learning_rate=5e-4`
    #[arg(value_name = "TABLE.KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Where the run's files go
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// The number that all randomness of the run derives from: `run.seed`
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Training steps: `run.steps`
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u64>,
    /// Print the metrics of each step as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl RunArguments {
    /// Every override, the flags last: the most specific wins.
    pub(crate) fn all_overrides(&self) -> Vec<String> {
        let mut overrides = self.overrides.clone();
        overrides.extend(self.seed.map(|seed| format!("run.seed={seed}")));
        overrides.extend(self.steps.map(|steps| format!("run.steps={steps}")));
        overrides
    }
}

#[derive(Debug, Args)]
pub(crate) struct EvalArguments {
    /// A Hugging Face model directory, a run (its newest checkpoint), a checkpoint, or the name of a model in the Hugging
    /// Face cache
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// The environment; `turnwise env list` names them
    #[arg(long, value_name = "NAME")]
    pub(crate) env: Option<String>,
    /// Held-out episodes to play: `eval.episodes`
    #[arg(long, value_name = "N")]
    pub(crate) episodes: Option<usize>,
    /// The number that tasks and sampling derive from
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Write the conversations to this file, a trajectory a line, which `turnwise render --rollout` shows
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Settings, as in `eval.temperature=0` or `environment.options.span=20`
    #[arg(value_name = "TABLE.KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

impl EvalArguments {
    /// Every setting that is asked for, those in their own words last.
    pub(crate) fn all_overrides(&self) -> Vec<String> {
        let mut overrides = vec![format!("run.seed={}", self.seed)];
        overrides.extend(self.env.as_ref().map(|name| format!("environment.name={name}")));
        overrides.extend(self.episodes.map(|episodes| format!("eval.episodes={episodes}")));
        overrides.extend(self.overrides.iter().cloned());
        overrides
    }
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["conversation", "rollout"])))]
pub(crate) struct RenderArguments {
    /// A conversation as JSON: a list of messages, or {"messages": […], "tools": […]}; `-` reads standard input
    pub(crate) conversation: Option<PathBuf>,
    /// A run's file of trajectories, such as RUN/rollouts/step-000000.jsonl
    #[arg(long, value_name = "FILE")]
    pub(crate) rollout: Option<PathBuf>,
    /// Which trajectory of the file, from 0
    #[arg(long, value_name = "N", default_value_t = 0, requires = "rollout")]
    pub(crate) index: usize,
    /// A model directory; for a trajectory of a run that run's own, unless another is named
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// A tokenizer.json instead
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// The form of the conversation; without it the one that the model's control tokens ask for
    #[arg(long, value_enum, value_name = "FORM", conflicts_with = "rollout")]
    pub(crate) template: Option<TemplateChoice>,
    /// The hash of the model's own template, once it was read: a template is a program
    #[arg(long, value_name = "HASH", conflicts_with = "rollout")]
    pub(crate) trust: Option<String>,
    /// The moment that the model's own template sees, such as 2026-01-31 or 2026-01-31T14:30:00
    #[arg(long, value_name = "TIME", conflicts_with = "rollout")]
    pub(crate) time: Option<String>,
    /// What becomes of thinking in past turns; without it as the run of a checkpoint has it, or `keep`
    #[arg(long, value_enum, value_name = "MODE", conflicts_with = "rollout")]
    pub(crate) thinking: Option<ThinkingChoice>,
    /// Play the conversation turn by turn, and show each branch where the template rewrites history
    #[arg(long, conflicts_with = "rollout")]
    pub(crate) branches: bool,
    /// Print a JSON object for each token and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TemplateChoice {
    /// `ChatML` with tools as JSON schemas
    Qwen3,
    /// `ChatML` with a line for each tool, or as the run of a checkpoint has it
    Chatml,
    /// The form of Llama 3.1
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
    /// It stays
    Keep,
    /// What the template does
    Follow,
}
