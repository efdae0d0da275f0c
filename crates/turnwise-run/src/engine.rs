//! The engine that the settings name.

use std::path::Path;
use std::sync::Arc;

use turnwise_candle::{CandleLearner, EngineSettings};
use turnwise_remote::Server;
use turnwise_rollout::Policy;

use crate::config::{Config, EngineName};
use crate::failure::Failure;
use crate::remote;

/// Creates the engine of the run in `run`, which samples with the weights that the learner publishes.
pub(crate) async fn policy(
    config: &Config,
    settings: EngineSettings,
    run: &Path,
    learner: &CandleLearner,
) -> Result<Arc<dyn Policy>, Failure> {
    match config.rollout.engine {
        EngineName::Candle => {
            let policy = learner.policy(settings);
            Ok(Arc::new(policy.map_err(|error| Failure::refused_by(&error))?))
        }
        EngineName::Vllm => served(config, Server::Vllm, run, learner).await,
        EngineName::Sglang => served(config, Server::Sglang, run, learner).await,
        #[cfg(feature = "gguf")]
        EngineName::Gguf => Ok(Arc::new(gguf(config, settings, learner).await?)),
        #[cfg(not(feature = "gguf"))]
        EngineName::Gguf => Err(Failure::refused("the engine `gguf` was not built")),
    }
}

async fn served(
    config: &Config,
    server: Server,
    run: &Path,
    learner: &CandleLearner,
) -> Result<Arc<dyn Policy>, Failure> {
    let settings = config.rollout.server().cloned().unwrap_or_default();
    Ok(Arc::new(remote::policy(config, server, &settings, run, learner).await?))
}

/// Makes candle compute each product on the thread that asks for it, unless the user chose otherwise: replaces this
/// process by the same program with candle's environment variables set. Does nothing if they are set, or if the system
/// cannot replace a process.
///
/// The threads over which candle would distribute products of quantised weights spin while they wait, which costs more
/// than it gains when training or another request needs the core. And for each product of other weights, candle reads
/// `/proc/cpuinfo` to count cores, unless a variable gives the number; the number set here is rayon's default.
#[cfg(feature = "gguf")]
pub fn keep_products_together() {
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;

        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let wanted = [("CANDLE_NUM_THREADS", 1), ("RAYON_NUM_THREADS", cores)];
        let is_missing = |variable: &str| std::env::var_os(variable).is_none();
        let missing = wanted.into_iter().filter(|(variable, _)| is_missing(variable));
        let missing: Vec<(&str, String)> =
            missing.map(|(variable, value)| (variable, value.to_string())).collect();
        let Ok(program) = std::env::current_exe() else { return };
        if missing.is_empty() {
            return;
        }
        let mut arguments = std::env::args_os();
        let mut command = std::process::Command::new(program);
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        // `exec` returns only on failure. The program then runs with candle's defaults, which are slower but not wrong.
        let _ = command.args(arguments).envs(missing).exec();
    }
}

#[cfg(feature = "gguf")]
async fn gguf(
    config: &Config,
    settings: EngineSettings,
    learner: &CandleLearner,
) -> Result<turnwise_gguf::GgufPolicy, Failure> {
    use turnwise_gguf::{GgufPolicy, GgufSettings, Quantization};

    let refused = |error| {
        Failure::refused_by(&error)
            .help("use a model and weights that the engine has, or rollout.engine = \"candle\"")
    };
    let quantization = match config.rollout.quantization {
        None => Quantization::Q8_0,
        Some(name) => name.word().parse().map_err(refused)?,
    };
    // The sampled tokens do not depend on the number of threads.
    let available = || std::thread::available_parallelism().map_or(1, Into::into);
    let threads = if settings.threads == 0 { available() } else { settings.threads };
    let settings = GgufSettings { threads, max_kv_bytes: settings.max_kv_bytes };
    GgufPolicy::following(learner, quantization, settings).await.map_err(refused)
}
