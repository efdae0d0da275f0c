//! Engines on other machines: connection, new weights, and the check that the engine takes them up.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{fs, io};

use tokio::runtime::Handle;
use turnwise_candle::{CandleLearner, Decoder};
use turnwise_environment::derive_seed;
use turnwise_remote::{
    RemoteError, RemotePolicy, RemoteSettings, Secret, Server, TinkerLearner, TinkerPolicy,
    WeightFiles, WeightProbe,
};
use turnwise_rollout::{Policy, SampleRequest, Sampler, SessionId, uniform_at};
use turnwise_training::{Learner, Row, RunDirectory, Target};
use turnwise_trajectory::{PolicyVersion, Sampling};

use crate::config::Config;
use crate::failure::Failure;

/// The tokens of a probe.
const N_PROBE: usize = 16;
/// The label of the seed of a probe's tokens.
const PROBE: u64 = 0x0070_726f_6265;

/// Creates the policy of a run in `run` whose engine is a server, and has it follow the learner's publications.
pub(crate) async fn policy(
    config: &Config,
    server: Server,
    settings: &RemoteSettings,
    run: &Path,
    learner: &CandleLearner,
) -> Result<RemotePolicy, Failure> {
    let policy = connect(config, server, settings).await?;
    let mut weights = Weights::new(settings, run)?;
    let handle = Handle::current();
    let follower = {
        let policy = policy.clone();
        let mut is_first = true;
        move |version: PolicyVersion, model: &Decoder| {
            if std::mem::take(&mut is_first) {
                weights.check_head(&policy, &handle, model)?;
            }
            let (files, probe) = weights.write(&version.to_string(), model)?;
            let published = policy.publish(version, files, &weights.directory, probe);
            for retired in handle.block_on(published)? {
                weights.remove(&retired.to_string());
            }
            Ok(())
        }
    };
    learner.on_publish(follower).await.map_err(|error| Failure::refused_by(&error))?;
    Ok(policy)
}

/// An engine that serves the adapters of a learner on a Tinker server.
pub(crate) struct AdapterEngine {
    policy: RemotePolicy,
    weights: Weights,
}

impl AdapterEngine {
    /// Connects to the engine of the run in `run`.
    pub(crate) async fn connect(
        config: &Config,
        server: Server,
        settings: &RemoteSettings,
        run: &Path,
    ) -> Result<Self, Failure> {
        let policy = connect(config, server, settings).await?;
        Ok(Self { policy, weights: Weights::new(settings, run)? })
    }

    /// Returns the policy that samples with the adapters that were published last.
    pub(crate) fn policy(&self) -> RemotePolicy {
        self.policy.clone()
    }

    /// Gives the engine what the learner published last, and checks that it serves exactly this.
    pub(crate) async fn publish(&mut self, learner: &mut TinkerLearner) -> Result<(), BoxError> {
        let version = learner.version();
        let path = self.weights.folder(&version.to_string())?;
        learner.save_adapter(&path).await?;
        if self.weights.probe.is_empty() {
            self.weights.probe = sampled_tokens(&learner.policy()).await?;
        }
        let ids = self.weights.probe.clone();
        let targets = (1..ids.len()).map(|position| Target { position, temperature: 1.0 });
        let row = Row { ids: ids.clone(), targets: targets.collect(), ..Row::default() };
        let logprobs = learner.logprobs(&[row]).await?.pop().unwrap_or_default();
        let probe = WeightProbe { ids, logprobs };
        let files = WeightFiles::Adapter(path);
        let retired = self.policy.publish(version, files, &self.weights.directory, probe).await?;
        for version in retired {
            self.weights.remove(&version.to_string());
        }
        Ok(())
    }
}

async fn connect(
    config: &Config,
    server: Server,
    settings: &RemoteSettings,
) -> Result<RemotePolicy, Failure> {
    let refused = |error: &(dyn Error + 'static)| Failure::refused_by(error);
    let key = settings.key_file.as_deref().map(Secret::from_file).transpose();
    let key = key.map_err(|error| refused(&error))?;
    let policy = RemotePolicy::connect(server, settings.clone(), key).await;
    let policy = policy.map_err(|error| refused(&error).help(start_command(config, server)))?;
    check_context(config, server, &policy)?;
    Ok(policy)
}

/// Returns how a server for a run is started.
fn start_command(config: &Config, server: Server) -> String {
    let model = config.model.directory.as_deref().unwrap_or(Path::new("MODEL")).display();
    let lora = config.model.lora.as_ref().map(|lora| lora.rank);
    let of_tinker = config.train.tinker.as_ref().map(|tinker| tinker.rank as usize);
    match (server, lora.or(of_tinker)) {
        (Server::Sglang, _) => {
            format!("start the server with  python -m sglang.launch_server --model-path {model}")
        }
        (Server::Vllm, Some(rank)) => format!(
            "start the server with\n  VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {model} --enable-lora --max-lora-rank {} \
             --enable-scale-out --logprobs-mode processed_logprobs",
            rank.next_power_of_two().max(8)
        ),
        (Server::Vllm, None) => format!(
            "start the server with\n  VLLM_SERVER_DEV_MODE=1 vllm serve {model} --enable-scale-out --logprobs-mode processed_logprobs"
        ),
    }
}

fn check_context(config: &Config, server: Server, policy: &RemotePolicy) -> Result<(), Failure> {
    let wanted = config.limits.max_context_tokens;
    let Some(has) = policy.context().filter(|has| *has < wanted) else { return Ok(()) };
    let what = format!("`limits.max_context_tokens` = {wanted}, but {server} takes {has} tokens");
    Err(Failure::refused(what).help(format!(
        "set limits.max_context_tokens = {has}, or start the server with a longer context (--max-model-len)"
    )))
}

/// The directory through which a server gets weights: one folder for each version.
#[derive(Debug)]
struct Weights {
    directory: PathBuf,
    /// The tokens that check what a server serves, sampled once, so that they are likely ones: those of unlikely tokens
    /// differ most between precisions.
    probe: Vec<u32>,
}

impl Weights {
    fn new(settings: &RemoteSettings, run: &Path) -> Result<Self, Failure> {
        let directory = match &settings.weights_directory {
            Some(directory) => directory.clone(),
            None => run.join(RunDirectory::ENGINE),
        };
        let made = fs::create_dir_all(&directory).and_then(|()| directory.canonicalize());
        made.map(|directory| Self { directory, probe: Vec::new() }).map_err(|error| {
            let place = directory.display();
            Failure::refused(format!("cannot create {place} for the engine's weights: {error}"))
        })
    }

    /// Creates the folder of a version.
    fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.directory.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Writes the weights of a model, and scores a few tokens with them.
    fn write(
        &mut self,
        name: &str,
        model: &Decoder,
    ) -> Result<(WeightFiles, WeightProbe), BoxError> {
        let path = self.folder(name)?;
        let files = if model.lora().is_some() {
            model.save_adapter(&path)?;
            WeightFiles::Adapter(path)
        } else {
            model.save(&path)?;
            WeightFiles::Model(path)
        };
        if self.probe.is_empty() {
            self.probe = likely_tokens(model)?;
        }
        let scored = model.score(std::slice::from_ref(&self.probe))?;
        let logprobs = scored.into_iter().next().unwrap_or_default();
        Ok((files, WeightProbe { ids: self.probe.clone(), logprobs }))
    }

    /// Removes the weights of a version. Files that stay cost disk and nothing else.
    fn remove(&self, name: &str) {
        if let Err(error) = fs::remove_dir_all(self.directory.join(name)) {
            tracing::debug!(%error, name, "weights of an earlier version are not removed");
        }
    }

    /// Checks that the server takes up the head of a model whose head is tied to its embeddings: has it load other weights of
    /// the same shape, which a server that keeps the old head cannot serve.
    fn check_head(
        &mut self,
        policy: &RemotePolicy,
        handle: &Handle,
        model: &Decoder,
    ) -> Result<(), BoxError> {
        if model.lora().is_some() || !model.config().tie_word_embeddings {
            return Ok(());
        }
        let other = Decoder::random(model.config().clone(), PROBE)?;
        let Err(error) = self.try_reload(policy, handle, &other)? else { return Ok(()) };
        drop(other);
        // A server that kept its head is as it was before once it has the other weights of its model back.
        let is_restored = matches!(self.try_reload(policy, handle, model), Ok(Ok(())));
        let state = if is_restored {
            "it has its own weights again"
        } else {
            "restart it, because it has weights of this check"
        };
        Err(format!(
            "the server does not take up new weights of a model whose head is tied to its embeddings (vLLM keeps the old \
             head when it reloads); {state}. Train adapters (model.lora), which it serves exactly, or sample here \
             (rollout.engine = \"candle\"). The cause: {error}"
        )
        .into())
    }

    /// Has the server load a model and score a few tokens with it; returns why it does not serve it.
    fn try_reload(
        &mut self,
        policy: &RemotePolicy,
        handle: &Handle,
        model: &Decoder,
    ) -> Result<Result<(), RemoteError>, BoxError> {
        // Tokens that are likely for this model, and for this one alone.
        self.probe.clear();
        let (files, probe) = self.write("check", model)?;
        let reloaded = handle.block_on(policy.check_reload(files, &self.directory, probe));
        self.remove("check");
        self.probe.clear();
        Ok(reloaded)
    }
}

type BoxError = Box<dyn Error + Send + Sync>;

/// Samples a few tokens from a Tinker server.
async fn sampled_tokens(policy: &TinkerPolicy) -> Result<Vec<u32>, BoxError> {
    let request = SampleRequest {
        prompt: vec![1],
        stop: Vec::new(),
        max_tokens: N_PROBE - 1,
        sampling: Sampling::default(),
        seed: PROBE,
        first_index: 0,
        min_version: PolicyVersion(0),
        session: SessionId::of(PROBE, 0),
    };
    let sample = policy.sample(request).await?;
    Ok([1].into_iter().chain(sample.tokens.iter().map(|token| token.id)).collect())
}

/// Samples a few tokens from the model.
fn likely_tokens(model: &Decoder) -> Result<Vec<u32>, BoxError> {
    let shape = model.config();
    let mut ids = vec![(derive_seed(PROBE, 0) % shape.vocab_size as u64) as u32];
    let mut sampler = Sampler::default();
    while ids.len() < N_PROBE.min(shape.max_positions) {
        let logits = model.logits(&ids)?.pop().unwrap_or_default();
        let uniform = uniform_at(PROBE, ids.len() as u64);
        ids.push(sampler.draw(&logits, &Sampling::default(), uniform).0);
    }
    Ok(ids)
}
