//! The parts of a run, made from its settings.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use turnwise_candle::{
    CandleLearner, CandlePolicy, Decoder, DecoderConfig, EngineSettings, LearnerSettings,
    ModelError, TrainingPlan, locate, locate_base,
};
use turnwise_chat::{MIN_IDS, Tokenizer, shows_system, train_tokenizer};
use turnwise_environment::{
    Babbler, Demonstrator, LedgerFile, Random, Rubric, Seat, Split, Suite, TaskSet, derive_seed,
};
use turnwise_rollout::{
    AgentFactory, ChatAgents, FirstOf, Meter, Opponent, Policy, PoolSettings, Preface, Renderer,
    StopSignal, TokenConstraint,
};
use turnwise_serve::{
    Gateway, GatewayAgents, GatewaySettings, ProgramSettings, ProgramTasks, VerifiersClient,
    VerifiersOptions, VerifiersTasks, WorkerHub,
};
use turnwise_training::{
    Admission, Demonstration, Evaluated, EvaluationSettings, Parts, Trainer, TrainerSettings,
    demonstrate,
};
use turnwise_trajectory::Sampling;

use crate::config::{
    Config, EngineName, EnvironmentChoice, LearnerName, auto_clip, credit, objective,
};
use crate::constraint::Unusable;
use crate::engine;
use crate::failure::Failure;
use crate::form::{Form, Source, Spoken, Wanted};
use crate::learner::RunLearner;
use crate::memory;
use crate::observer::Observer;
use crate::opponent::{Opponents, opponents};
use crate::registry::{self, Registry};
use crate::threads::Threads;
use crate::train::schedule;
use crate::watch::{Watched, watch};
use crate::workers;

/// The parts of a run.
pub(crate) struct Session {
    pub config: Config,
    pub suite: Suite,
    rubric: Option<Arc<dyn Rubric>>,
    /// The endpoint of the agent's program, or of the server that plays the episodes, if there is one.
    gateway: Option<Arc<Gateway>>,
    /// The server that plays the episodes, if one does.
    verifiers: Option<VerifiersClient>,
    /// The door for workers, if there is one.
    hub: Option<Arc<WorkerHub>>,
    pub opponents: Opponents,
    renderer: Arc<dyn Renderer>,
    constraint: Option<Arc<dyn TokenConstraint>>,
    preface: Preface,
    tokenizer: Arc<Tokenizer>,
    /// Files of the initial model that a checkpoint has to contain too, with their content.
    belongings: Vec<(&'static str, Vec<u8>)>,
    spoken: Spoken,
    pub policy: Arc<dyn Policy>,
    /// A one-line description of the model.
    pub model: String,
    /// A one-line description of the chat form.
    pub chat: String,
    /// The model's sizes.
    pub shape: DecoderConfig,
    /// The number of the model's weights, without adapters.
    pub n_weights: usize,
}

// The labels of the seeds that derive from the run's seed.
const MODEL: u64 = 1;
const DEMONSTRATIONS: u64 = 2;
const EVALUATION: u64 = 3;
const ROLLOUTS: u64 = 4;
const ADAPTERS: u64 = 6;
const TOOLS: u64 = 7;

/// The number of demonstrations on which a vocabulary is trained.
const N_VOCABULARY_EPISODES: usize = 1024;

/// The most turns of a demonstration, if the suite has no limit.
const MAX_TURNS: usize = 64;

/// The longest time that a finished run waits for its workers to hear of it.
const FAREWELL: Duration = Duration::from_secs(3);

/// What the files of a model say about it, apart from its weights.
struct ReadModel {
    /// `None` for a model that is made here.
    directory: Option<PathBuf>,
    source: Source,
    shape: DecoderConfig,
    n_weights: usize,
}

/// A session without its engine.
struct Prepared {
    config: Config,
    suite: Suite,
    rubric: Option<Arc<dyn Rubric>>,
    opponents: Opponents,
    renderer: Arc<dyn Renderer>,
    constraint: Option<Arc<dyn TokenConstraint>>,
    preface: Preface,
    tokenizer: Arc<Tokenizer>,
    belongings: Vec<(&'static str, Vec<u8>)>,
    spoken: Spoken,
    model: String,
    chat: String,
    shape: DecoderConfig,
    n_weights: usize,
}

impl Prepared {
    async fn new(
        mut config: Config,
        model: Option<&Path>,
        trains: bool,
        registry: &Registry,
        observer: &mut dyn Observer,
        stop: &StopSignal,
    ) -> Result<(Self, Decoder), Failure> {
        let (suite, rubric) = played(&config, registry)?;
        let directory = match model.or(config.model.directory.as_deref()) {
            Some(model) => Some(locate_model(model)?),
            None => None,
        };
        // The settings name the base of their own model alone.
        let base = config.model.base.as_deref().filter(|_| model.is_none());
        let (mut source, decoder) = if let Some(directory) = &directory {
            (Source::of_model(directory, base)?, load_model(directory, base, observer, stop).await?)
        } else {
            let (tokenizer, decoder) = Box::pin(make_model(&config, &suite)).await?;
            (Source::of_tokenizer(tokenizer), decoder)
        };
        if model.is_none() {
            use_named_template(&mut source, &mut config)?;
        }
        let (shape, n_weights) = (decoder.config().clone(), decoder.n_parameters());
        let read = ReadModel { directory, source, shape, n_weights };
        let prepared = Self::of(config, (suite, rubric), read, trains, observer, stop);
        Ok((Box::pin(prepared).await?, decoder))
    }

    /// Prepares a session whose weights another machine has: of the model here, its tokenizer and its sizes are read alone.
    async fn without_weights(
        mut config: Config,
        registry: &Registry,
        observer: &mut dyn Observer,
        stop: &StopSignal,
    ) -> Result<Self, Failure> {
        let (suite, rubric) = played(&config, registry)?;
        let named = config.model.directory.as_deref();
        let directory = locate_model(named.expect("a setting that validation requires"))?;
        // A resumed run has to find it from any directory.
        config.model.directory = Some(directory.canonicalize().unwrap_or(directory.clone()));
        let mut source = Source::of_model(&directory, None)?;
        use_named_template(&mut source, &mut config)?;
        let shape = DecoderConfig::in_directory(&directory);
        let shape = shape.map_err(|error| Failure::refused_by(&error))?;
        let n_weights = shape.n_weights();
        let read = ReadModel { directory: Some(directory), source, shape, n_weights };
        Box::pin(Self::of(config, (suite, rubric), read, true, observer, stop)).await
    }

    async fn of(
        mut config: Config,
        (suite, rubric): (Suite, Option<Arc<dyn Rubric>>),
        read: ReadModel,
        trains: bool,
        observer: &mut dyn Observer,
        stop: &StopSignal,
    ) -> Result<Self, Failure> {
        let ReadModel { directory, source, shape, n_weights } = read;
        let form = source.form(&Wanted::by(&config), trust_by_setting)?;
        // Checkpoints keep the form of training, even if their files would fit another one.
        config.model.template = Some(form.template);
        let tokenizer = source.tokenizer.clone();
        let opponents = opponents(&mut config, &suite, &tokenizer, trains, observer, stop).await?;
        let in_user = !shows_system(&*form.renderer);
        let preface = config.agent.preface(&suite, directory.is_some(), in_user)?;
        check_tools(&form, &suite, &preface, config.run.seed).await?;
        check_context(&config, &shape)?;
        check_vocabulary(&tokenizer, &shape)?;
        let constraint = constraint(&mut config, &tokenizer, &form)?;
        let model = describe(directory.as_deref(), &shape, n_weights);
        let belongings = belongings(&source);
        let chat = describe_chat(&form.name, &preface);
        let Form { renderer, spoken, .. } = form;
        Ok(Self {
            config,
            suite,
            rubric,
            opponents,
            renderer,
            constraint,
            preface,
            tokenizer,
            belongings,
            spoken,
            model,
            chat,
            shape,
            n_weights,
        })
    }

    /// Adds new adapters if the settings ask for them. A resumed run has to find their base model again, from any
    /// directory.
    fn adapt(&mut self, decoder: Decoder) -> Result<Decoder, Failure> {
        if self.config.model.lora.is_none() {
            self.config.model.lora = decoder.lora().cloned();
        }
        let Some(lora) = &self.config.model.lora else { return Ok(decoder) };
        let decoder = match decoder.lora() {
            Some(own) if own.same(lora, decoder.config()) => decoder,
            Some(own) => {
                let what =
                    format!("`model.lora` has {lora}, but the adapter that is loaded has {own}");
                return Err(Failure::refused(what)
                    .help("leave model.lora out: the adapter goes on with its own settings"));
            }
            None => {
                let seed = derive_seed(self.config.run.seed, ADAPTERS);
                decoder.with_lora(lora, seed).map_err(|error| Failure::refused_by(&error))?
            }
        };
        let more = format!(
            "; {:.2}M more in adapters of rank {} train",
            decoder.n_trainable() as f64 / 1e6,
            lora.rank
        );
        self.model += &more;
        let model = &mut self.config.model;
        for path in [&mut model.directory, &mut model.base].into_iter().flatten() {
            if let Ok(absolute) = path.canonicalize() {
                *path = absolute;
            }
        }
        Ok(decoder)
    }

    /// Adds a learner on a Tinker server, which samples too unless the settings name another engine.
    async fn on_tinker(
        self,
        run: &Path,
        observer: &mut dyn Observer,
        stop: &StopSignal,
    ) -> Result<(Session, RunLearner), Failure> {
        if self.constraint.is_some() {
            let what = "a Tinker server cannot constrain what it samples, and `agent.stop`, `agent.thinking_tokens` or the chat form does";
            return Err(Failure::refused(what).help("leave train.learner out, or the constraint"));
        }
        // The server compiles its first passes, which takes minutes on some.
        let watched = Watched { what: "connecting to the Tinker server", meters: &[] };
        let connecting = Box::pin(RunLearner::tinker(&self.config, ADAPTERS, run));
        let (learner, policy) = watch(observer, watched, stop, connecting).await?;
        Ok((self.with(policy, true).await?, learner))
    }

    /// Adds the policy, and opens the endpoint of the agent's program if the agent is one, and the door for workers.
    async fn with(self, policy: Arc<dyn Policy>, serves_workers: bool) -> Result<Session, Failure> {
        let verifiers = verifiers(&self.config.environment)?;
        let gateway = gateway(&self.config, verifiers.as_ref()).await?;
        let client = |options: &VerifiersOptions| VerifiersClient::new(options);
        let verifiers = verifiers.as_ref().map(client).transpose();
        let verifiers = verifiers.map_err(|error| Failure::refused_by(&error))?;
        let workers = self.config.rollout.workers.clone();
        let mut session = Session {
            config: self.config,
            suite: self.suite,
            rubric: self.rubric,
            gateway,
            verifiers,
            hub: None,
            opponents: self.opponents,
            renderer: self.renderer,
            constraint: self.constraint,
            preface: self.preface,
            tokenizer: self.tokenizer,
            belongings: self.belongings,
            spoken: self.spoken,
            policy,
            model: self.model,
            chat: self.chat,
            shape: self.shape,
            n_weights: self.n_weights,
        };
        if let Some(choice) = workers.filter(|_| serves_workers) {
            if session.constraint.is_some() {
                let what = "workers cannot constrain what the engine samples, and `agent.stop`, `agent.thinking_tokens` or the chat form does";
                return Err(Failure::refused(what).help("leave [rollout.workers] out"));
            }
            session.hub = Some(Arc::new(workers::hub(&session, &choice).await?));
        }
        Ok(session)
    }
}

impl Session {
    /// Makes suite, tokenizer, model and engine of the run in `run`. `model` is a directory to load instead of the one in
    /// the settings.
    pub(crate) async fn new(
        config: Config,
        run: &Path,
        model: Option<&Path>,
        registry: &Registry,
        observer: &mut dyn Observer,
        stop: &StopSignal,
    ) -> Result<(Self, RunLearner), Failure> {
        if config.train.learner == LearnerName::Tinker {
            let prepared = Prepared::without_weights(config, registry, observer, stop);
            return Box::pin(Box::pin(prepared).await?.on_tinker(run, observer, stop)).await;
        }
        let (mut prepared, decoder) =
            Box::pin(Prepared::new(config, model, true, registry, observer, stop)).await?;
        let decoder = prepared.adapt(decoder)?;
        let threads = Threads::divide(&prepared.config);
        let recomputes = prepared
            .config
            .train
            .recompute_layers
            .unwrap_or_else(|| memory::has_to_recompute(&prepared.config, decoder.config()));
        prepared.config.train.recompute_layers = Some(recomputes);
        let max_kv_bytes =
            memory::bounded_kv(&prepared.config, decoder.config(), memory::available_memory());
        let learner = learner(&prepared.config, decoder, threads.learner)?;
        let engine_settings =
            EngineSettings { threads: threads.engine, max_kv_bytes, ..prepared.config.engine };
        let what = format!("connecting to the engine {}", prepared.config.rollout.engine.word());
        let watched = Watched { what: &what, meters: &[] };
        let connecting = Box::pin(engine::policy(&prepared.config, engine_settings, run, &learner));
        let policy = watch(observer, watched, stop, connecting).await?;
        Ok((prepared.with(policy, true).await?, RunLearner::Candle(learner)))
    }

    /// Like `new`, but without a learner, so that memory holds the model only once, in the engine's own form.
    pub(crate) async fn drawing(
        config: Config,
        registry: &Registry,
        observer: &mut dyn Observer,
        stop: &StopSignal,
    ) -> Result<Self, Failure> {
        let (prepared, decoder) =
            Box::pin(Prepared::new(config, None, false, registry, observer, stop)).await?;
        let decoder = decoder.with_precision(prepared.config.model.compute);
        let policy = CandlePolicy::from_model(decoder, prepared.config.engine);
        let policy = policy.map_err(|error| Failure::refused_by(&error))?;
        prepared.with(Arc::new(policy), false).await
    }

    /// Returns the trainer of the run, at step 0. Calls of tools that are not idempotent are recorded in the directory.
    pub(crate) fn trainer(
        &self,
        learner: RunLearner,
        directory: &Path,
    ) -> Result<Trainer<RunLearner>, Failure> {
        let calls = LedgerFile::open(&directory.join(TOOL_CALLS));
        let calls = calls.map_err(|error| Failure::runtime(&error))?;
        let parts = Parts {
            tasks: self.tasks(Split::Train),
            agents: self.agents(self.config.rollout.sampling()),
            rubric: self.rubric.clone(),
            policy: self.policy.clone(),
            learner,
            objective: objective(&self.config).map_err(|error| Failure::refused_by(&error))?,
            credit: credit(&self.config),
        };
        let trainer = Trainer::new(parts, self.trainer_settings())
            .against(self.opponents.train.clone())
            .with_ledger(Arc::new(calls));
        Ok(match &self.hub {
            Some(hub) => trainer.with_runner(hub.clone()),
            None => trainer,
        })
    }

    /// Tells workers, if there are any, that the run is over.
    pub(crate) async fn dismiss_workers(&self) {
        if let Some(hub) = &self.hub {
            hub.dismiss(FAREWELL).await;
        }
    }

    /// Returns whether the loss has a KL penalty towards the initial weights.
    pub(crate) fn needs_reference(&self) -> bool {
        self.config.objective.kl.beta > 0.0
    }

    /// Returns the parts of an evaluation: this policy on held-out tasks.
    pub(crate) fn evaluated(&self) -> Evaluated {
        let sampling =
            Sampling { temperature: self.config.eval.temperature, ..Sampling::default() };
        Evaluated {
            policy: self.policy.clone(),
            tasks: self.tasks(Split::HeldOut),
            agents: self.agents(sampling),
            opponent: self.opponents.eval.clone(),
            rubric: self.rubric.clone(),
        }
    }

    pub(crate) fn evaluation_settings(&self) -> EvaluationSettings {
        EvaluationSettings {
            episodes: self.config.eval.episodes,
            seed: derive_seed(self.config.run.seed, EVALUATION),
            max_concurrent: self.config.rollout.max_concurrent,
            limits: self.config.limits.clone(),
            max_retries: self.config.rollout.max_retries,
            max_faults_in_row: self.config.rollout.max_faults_in_row,
            max_bad_rewards: self.config.rollout.max_bad_rewards,
        }
    }

    /// Plays `n` demonstrations of the expert on training tasks; tasks repeat only if there are fewer than `n`.
    pub(crate) async fn demonstrations(
        &self,
        n: usize,
        meter: &Meter,
    ) -> Result<Vec<Demonstration>, Failure> {
        let spoken = (&*self.renderer, &self.preface);
        play_expert(&self.suite, spoken, n, self.config.run.seed, meter).await
    }

    /// Adds the files that make a checkpoint a model directory, which can be evaluated alone.
    pub(crate) fn complete_checkpoint(&self, directory: &Path) -> io::Result<()> {
        self.tokenizer.save(directory).map_err(io::Error::other)?;
        for (name, content) in &self.belongings {
            std::fs::write(directory.join(name), content)?;
        }
        self.spoken.complete(directory)?;
        std::fs::write(directory.join(SETTINGS), self.resolved()?)
    }

    /// Returns the settings as TOML with every default.
    pub(crate) fn resolved(&self) -> io::Result<String> {
        toml_edit::ser::to_string_pretty(&self.config).map_err(io::Error::other)
    }

    /// Returns the tasks of a split, played by the agent's program if the agent is one, or by a server that plays episodes.
    fn tasks(&self, split: Split) -> Arc<dyn TaskSet> {
        let tasks = self.suite.tasks(split);
        let Some(gateway) = self.gateway.clone() else { return tasks };
        match (&self.verifiers, &self.config.agent.command) {
            (Some(client), _) => Arc::new(VerifiersTasks::new(tasks, gateway, client.clone())),
            (None, Some(command)) => {
                let settings = ProgramSettings {
                    max_processes: max_programs(&self.config),
                    preface: self.preface.clone(),
                    first_task: match split {
                        Split::Train => 0,
                        Split::HeldOut => self.suite.tasks(Split::Train).len(),
                    },
                    ..ProgramSettings::new(command)
                };
                Arc::new(ProgramTasks::new(tasks, gateway, settings))
            }
            (None, None) => tasks,
        }
    }

    fn agents(&self, sampling: Sampling) -> Arc<dyn AgentFactory> {
        let agents = Arc::new(self.chat_agents(sampling));
        match &self.gateway {
            Some(gateway) => Arc::new(GatewayAgents::new(agents, self.renderer.clone(), gateway)),
            None => agents,
        }
    }

    fn chat_agents(&self, sampling: Sampling) -> ChatAgents {
        ChatAgents {
            renderer: self.renderer.clone(),
            sampling,
            compaction: self.config.rollout.compaction.clone(),
            constraint: self.constraint.clone(),
            preface: self.preface.clone(),
        }
    }

    /// Returns what the episodes of training are made of.
    pub(crate) fn parts_of_training(&self) -> (Arc<dyn TaskSet>, Arc<dyn AgentFactory>, Opponent) {
        let agents = self.agents(self.config.rollout.sampling());
        (self.tasks(Split::Train), agents, self.opponents.train.clone())
    }

    /// Returns what precedes every conversation.
    pub(crate) fn preface(&self) -> &Preface {
        &self.preface
    }

    /// Returns a line that says how workers join, if they may.
    pub(crate) fn about_workers(&self) -> Option<String> {
        let (hub, choice) = (self.hub.as_ref()?, self.config.rollout.workers.as_ref()?);
        let token = choice.token_file.as_ref().map_or("", |_| " --token-file FILE");
        Some(format!("workers turnwise worker --trainer {}{token}", hub.url()))
    }

    fn trainer_settings(&self) -> TrainerSettings {
        let Config { run, rollout, limits, train, .. } = &self.config;
        TrainerSettings {
            groups_per_step: rollout.groups_per_step,
            rollout: PoolSettings {
                group_size: rollout.group_size,
                min_group_size: rollout.min_group_size,
                max_concurrent: rollout.max_concurrent,
                tokens_per_iteration: (rollout.tokens_per_step > 0)
                    .then_some(rollout.tokens_per_step),
                seconds_per_iteration: (rollout.seconds_per_step > 0.0)
                    .then_some(rollout.seconds_per_step),
                max_retries: rollout.max_retries,
                retry_delay_s: rollout.retry_delay_s,
                max_faults_in_row: rollout.max_faults_in_row,
                max_bad_rewards: rollout.max_bad_rewards,
                limits: limits.clone(),
                ..PoolSettings::default()
            },
            mode: rollout.mode,
            dynamic_sampling: rollout.dynamic_sampling,
            curriculum: rollout.curriculum,
            clip: auto_clip(&self.config),
            canary: (train.canary.tokens > 0).then_some(train.canary),
            admission: Admission {
                max_staleness: train.max_staleness,
                stale: train.stale,
                truncated: train.truncated,
                min_group_size: rollout.min_group_size,
                keep_zero_variance: train.keep_zero_variance,
                overlong: train.overlong,
                mask_agent_faults: train.mask_agent_faults,
                mask_parse_errors: train.mask_parse_errors,
            },
            ratio_scope: train.ratio_scope,
            behavior: train.behavior,
            n_minibatches: train.n_minibatches,
            micro_batch_tokens: train.micro_batch_tokens,
            schedule: schedule(&self.config),
            max_grad_norm: train.max_grad_norm,
            seed: derive_seed(run.seed, ROLLOUTS),
        }
    }
}

/// The file of a checkpoint's settings, beside the model.
pub(crate) const SETTINGS: &str = "turnwise.toml";

/// The file of tool calls that are not idempotent, in the run directory.
const TOOL_CALLS: &str = "tool_calls.jsonl";

/// Returns the most programs of a split at a time: suspended episodes keep theirs, beside those that run.
fn max_programs(config: &Config) -> usize {
    let rollout = &config.rollout;
    rollout.max_concurrent.saturating_add(rollout.groups_per_step * rollout.group_size)
}

/// Returns the options of the server that plays the episodes, if one does.
fn verifiers(choice: &EnvironmentChoice) -> Result<Option<VerifiersOptions>, Failure> {
    if choice.name != VerifiersOptions::ENVIRONMENT {
        return Ok(None);
    }
    let options = serde_json::from_value(choice.options.clone());
    options.map(Some).map_err(|error| Failure::refused_by(&error))
}

/// Opens the endpoint of the agent's program, or of the server that plays the episodes, if there is one.
async fn gateway(
    config: &Config,
    verifiers: Option<&VerifiersOptions>,
) -> Result<Option<Arc<Gateway>>, Failure> {
    if config.agent.command.is_none() && verifiers.is_none() {
        return Ok(None);
    }
    // Evaluation runs beside suspended episodes of training.
    let max_sessions = max_programs(config).saturating_mul(2);
    // A client may keep several connections open.
    let max_connections = max_sessions.saturating_mul(4);
    let mut settings =
        GatewaySettings { max_sessions, max_connections, ..GatewaySettings::default() };
    if let Some(options) = verifiers {
        settings.address = options.model_address;
    }
    let gateway = Gateway::bind(settings).await;
    Ok(Some(Arc::new(gateway.map_err(|error| Failure::runtime(&error))?)))
}

/// Returns the setting by which a user trusts the template with a hash.
pub(crate) fn trust_by_setting(hash: &str) -> String {
    format!("model.trust = \"{hash}\"")
}

/// Returns the directory of a model, from its path or its name on the Hugging Face Hub.
///
/// # Errors
/// When the model is not found.
pub fn locate_model(model: &Path) -> Result<PathBuf, Failure> {
    locate(model).map_err(|error| {
        Failure::refused_by(&error)
            .help("name a directory with config.json, model.safetensors and tokenizer.json, or a GGUF file")
    })
}

/// Loads the model of a directory or a GGUF file, and reports the progress to the observer. `base` is the base of an
/// adapter, if the user names it.
///
/// # Errors
/// When the model cannot be loaded.
pub async fn load_model(
    directory: &Path,
    base: Option<&Path>,
    observer: &mut dyn Observer,
    stop: &StopSignal,
) -> Result<Decoder, Failure> {
    let base = locate_base(directory, base).map_err(|error| Failure::refused_by(&error))?;
    let (path, meter) = (directory.to_owned(), Meter::default());
    let shown = [meter.clone()];
    let loading =
        tokio::task::spawn_blocking(move || Decoder::load(&path, base.as_deref(), &meter));
    let what = format!("loading {}", directory.display());
    let watched = Watched { what: &what, meters: &shown };
    match watch(observer, watched, stop, loading).await {
        Ok(loaded) => loaded.map_err(|error| Failure::refused_by(&error)),
        Err(error) => Err(Failure::runtime(&error)),
    }
}

/// Creates the learner on the device that the settings name.
fn learner(config: &Config, decoder: Decoder, threads: usize) -> Result<CandleLearner, Failure> {
    let (train, optimizer) = (&config.train, config.optimizer);
    let settings = LearnerSettings {
        balance: train.balance,
        recompute_layers: train.recompute_layers == Some(true),
        threads,
        compute: config.model.compute,
    };
    decoder
        .with_device(config.model.device)
        .and_then(|decoder| CandleLearner::with_settings(decoder, optimizer, settings))
        .map_err(|error| match error {
            ModelError::NoDevice { .. } | ModelError::Settings(_) => {
                Failure::refused_by(&error).help("model.device = \"cpu\" works everywhere")
            }
            _ => Failure::refused_by(&error),
        })
}

fn played(
    config: &Config,
    registry: &Registry,
) -> Result<(Suite, Option<Arc<dyn Rubric>>), Failure> {
    let EnvironmentChoice { name, options, rubric, .. } = &config.environment;
    let suite = registry.suite(name, options)?;
    let rubric = registry::rubric(&suite, rubric.as_deref())?;
    Ok((suite, rubric))
}

/// Fills in the chat form of the model that the settings name.
///
/// # Errors
/// When the model is not found, or no form fits.
pub fn resolve_form(config: &mut Config) -> Result<(), Failure> {
    let Some(directory) = &config.model.directory else { return Ok(()) };
    let directory = locate_model(directory)?;
    let source = Source::of_model(&directory, config.model.base.as_deref())?;
    config.model.template = Some(source.form(&Wanted::by(config), trust_by_setting)?.template);
    Ok(())
}

/// Uses the template that the settings name. A checkpoint of the run has it itself.
fn use_named_template(source: &mut Source, config: &mut Config) -> Result<(), Failure> {
    if let Some(file) = &config.model.template_file {
        config.model.trust = Some(source.use_template(file)?);
    }
    Ok(())
}

/// Reads the files that determine a model's chat form, apart from the tokenizer.
fn belongings(source: &Source) -> Vec<(&'static str, Vec<u8>)> {
    let names = [
        "chat_template.jinja",
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
    ];
    names.into_iter().filter_map(|name| Some((name, source.file(name)?.into_bytes()))).collect()
}

/// Trains a vocabulary on demonstrations, and creates a model of the settings' sizes with random weights.
async fn make_model(config: &Config, suite: &Suite) -> Result<(Tokenizer, Decoder), Failure> {
    let bytes =
        train_tokenizer(Vec::new(), MIN_IDS).map_err(|error| Failure::refused_by(&error))?;
    let source = Source::of_tokenizer(bytes);
    let form = source.form(&Wanted::by(config), trust_by_setting)?;
    let (seed, n) = (config.run.seed, N_VOCABULARY_EPISODES);
    let episodes = play_anyone(suite, (&*form.renderer, &Preface::default()), n, seed).await?;
    let rows = episodes.iter().flat_map(|episode| &episode.rows);
    let texts = rows.map(|row| source.tokenizer.decode_without_special(&row.ids));
    let tokenizer = train_tokenizer(texts.collect::<Vec<_>>(), config.model.vocab_size)
        .map_err(|error| Failure::refused_by(&error).help("use a larger model.vocab_size"))?;
    let model = &config.model;
    let shape = DecoderConfig {
        hidden_size: model.hidden_size,
        intermediate_size: model.intermediate_size,
        n_layers: model.n_layers,
        n_heads: model.n_heads,
        n_kv_heads: model.n_kv_heads,
        head_dim: model.head_dim,
        max_positions: config.limits.max_context_tokens,
        ..DecoderConfig::small(tokenizer.n_ids())
    };
    let decoder = Decoder::random(shape, derive_seed(config.run.seed, MODEL))
        .map_err(|error| Failure::refused_by(&error))?;
    Ok((tokenizer, decoder))
}

/// Returns a line about the chat form and what precedes every conversation.
fn describe_chat(form: &str, preface: &Preface) -> String {
    let Preface { system, examples, is_in_user_message } = preface;
    let place = if *is_in_user_message { " in the first message of the user" } else { "" };
    let system = (!system.is_empty())
        .then(|| format!("a system prompt of {} characters{place}", system.chars().count()));
    let examples =
        (!examples.is_empty()).then(|| format!("{} messages of examples", examples.len()));
    let parts = [Some(form.to_owned()), system, examples];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// Warns about the form, and refuses tools whose calls could not be read.
async fn check_tools(
    form: &Form,
    suite: &Suite,
    preface: &Preface,
    seed: u64,
) -> Result<(), Failure> {
    if let Some(note) = &form.note {
        tracing::warn!("{note}");
    }
    let tasks = suite.tasks(Split::Train);
    let mut environment = tasks.environment(0);
    let tools = environment.tools();
    if tools.is_empty() {
        return Ok(());
    }
    form.check_calls(&tools)?;
    // If the environment cannot begin, the run reports it.
    match environment.reset(derive_seed(seed, TOOLS)).await {
        Ok(opening) => form.check_mentioned(&preface.before(&opening), &tools),
        Err(_) => Ok(()),
    }
}

/// Compiles the constraint that the settings name, if any, and makes the settings independent of the schema's file.
fn constraint(
    config: &mut Config,
    tokenizer: &Tokenizer,
    form: &Form,
) -> Result<Option<Arc<dyn TokenConstraint>>, Failure> {
    let of_turns = form.constraint.clone();
    let Some(choice) = &mut config.rollout.constraint else { return Ok(of_turns) };
    let stop = form.renderer.stop_tokens();
    let compiled = choice.embed().and_then(|()| choice.grammar(tokenizer, stop));
    match (compiled, of_turns) {
        (Ok(grammar), None) => Ok(Some(Arc::new(grammar))),
        (Ok(grammar), Some(of_turns)) => {
            Ok(Some(Arc::new(FirstOf(vec![of_turns, Arc::new(grammar)]))))
        }
        (Err(Unusable { key, wrong }), _) => Err(Failure::refused(format!("`{key}` {wrong}"))),
    }
}

fn check_context(config: &Config, shape: &DecoderConfig) -> Result<(), Failure> {
    let (wanted, has) = (config.limits.max_context_tokens, shape.max_positions);
    if wanted <= has {
        return check_cache(config, shape);
    }
    Err(Failure::refused(format!(
        "`limits.max_context_tokens` = {wanted}, but the model has {has} positions"
    ))
    .help(format!("set limits.max_context_tokens = {has}, or pick a model with a longer context")))
}

/// Refuses a KV cache that is too small for one episode, because such an episode would break at every attempt.
fn check_cache(config: &Config, shape: &DecoderConfig) -> Result<(), Failure> {
    let (limit, length) = (config.engine.max_kv_bytes, config.limits.max_context_tokens);
    let plan =
        TrainingPlan { kv_tokens: length, max_kv_bytes: u64::MAX, ..TrainingPlan::default() };
    let needed = shape.training_memory(&plan).kv;
    let is_here =
        config.train.learner == LearnerName::Candle && config.rollout.engine == EngineName::Candle;
    if needed <= limit || !is_here {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "`engine.max_kv_bytes` = {limit} is too little for one episode: limits.max_context_tokens = {length} takes {needed}"
    ))
    .help(format!("set engine.max_kv_bytes to {needed} or more, or lower limits.max_context_tokens")))
}

fn check_vocabulary(tokenizer: &Tokenizer, shape: &DecoderConfig) -> Result<(), Failure> {
    let (ids, rows) = (tokenizer.n_ids(), shape.vocab_size);
    if ids <= rows {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "the tokenizer has {ids} ids, but the model's vocabulary has {rows}"
    ))
    .help("use the tokenizer.json that belongs to the model"))
}

fn describe(directory: Option<&Path>, config: &DecoderConfig, n_weights: usize) -> String {
    let from = directory.map_or_else(
        || "made here, random".to_owned(),
        |directory| directory.display().to_string(),
    );
    format!(
        "{:.2}M weights, {} layers of {}, vocabulary {} ({from})",
        n_weights as f64 / 1e6,
        config.n_layers,
        config.hidden_size,
        config.vocab_size
    )
}

/// Plays `n` episodes of the expert on training tasks.
async fn play_expert(
    suite: &Suite,
    spoken: (&dyn Renderer, &Preface),
    n: usize,
    seed: u64,
    meter: &Meter,
) -> Result<Vec<Demonstration>, Failure> {
    if suite.make_expert(seed).is_none() {
        let what = format!("the environment `{}` offers no expert to imitate", suite.name());
        return Err(Failure::refused(what)
            .help("set warm_start.steps = 0, or give the suite an expert (Suite::expert)"));
    }
    let expert = |_, seed| suite.make_expert(seed).expect("it was asked for above");
    let played = play(suite, spoken, n, seed, meter, &expert).await?;
    if played.iter().any(|episode| !episode.is_over) {
        let (name, limit) = (suite.name(), suite.turn_limit().unwrap_or(MAX_TURNS));
        let what = format!("the expert of `{name}` does not end an episode in {limit} turns");
        return Err(Failure::refused(what).help("set warm_start.steps = 0, or mend the expert"));
    }
    Ok(played)
}

/// Plays `n` episodes for their texts: of the expert, or else the random player, or else a babbler.
async fn play_anyone(
    suite: &Suite,
    spoken: (&dyn Renderer, &Preface),
    n: usize,
    seed: u64,
) -> Result<Vec<Demonstration>, Failure> {
    let tasks = suite.tasks(Split::Train);
    let anyone = |index, seed| {
        let babbler = || Box::new(Babbler::new(seed, tasks.environment(index).tools())) as Box<_>;
        suite.make_expert(seed).or_else(|| suite.make_random(seed)).unwrap_or_else(babbler)
    };
    play(suite, spoken, n, seed, &Meter::default(), &anyone).await
}

/// Plays `n` episodes on training tasks; tasks repeat only if there are fewer than `n`. `make_player` makes the player
/// of a task from a seed.
async fn play(
    suite: &Suite,
    spoken: (&dyn Renderer, &Preface),
    n: usize,
    seed: u64,
    meter: &Meter,
    make_player: &(dyn Fn(usize, u64) -> Box<dyn Demonstrator> + Sync),
) -> Result<Vec<Demonstration>, Failure> {
    let (renderer, preface) = spoken;
    meter.begin("episodes", n as u64);
    let tasks: Arc<dyn TaskSet> = suite.tasks(Split::Train);
    let max_turns = suite.turn_limit().unwrap_or(MAX_TURNS);
    let seed = derive_seed(seed, DEMONSTRATIONS);
    let mut order: Vec<usize> = (0..tasks.len()).collect();
    Random::new(seed).shuffle(&mut order);
    let mut demonstrations = Vec::with_capacity(n);
    for (number, index) in order.into_iter().cycle().take(n).enumerate() {
        let seed = derive_seed(seed, number as u64);
        let player = |seat: Seat| make_player(index, seed ^ u64::from(seat.0));
        let episode =
            demonstrate(&*tasks, index, &player, renderer, preface, max_turns, seed).await;
        demonstrations.push(episode.map_err(|error| Failure::runtime(&error))?);
        meter.advance(1);
        // Yields, so that the progress can be shown.
        tokio::task::yield_now().await;
    }
    meter.end();
    Ok(demonstrations)
}
