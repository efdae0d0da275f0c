//! Checks of the learner: what a Tinker server needs, and what it cannot do.

use turnwise_candle::{AdamW, ComputePrecision, Device, EngineSettings};

use super::schema::{Config, EngineName, LearnerName, Train};
use super::validate::{Impossible, refuse_if};

/// Checks that a server is given for a learner that is one, and refuses what it cannot do.
pub(super) fn check_learner(config: &Config) -> Result<(), Impossible> {
    let tinker = config.train.tinker.as_ref();
    if config.train.learner == LearnerName::Candle {
        return refuse_if(
            tinker.is_some(),
            "train.tinker",
            || "is not used by the learner `candle`".to_owned(),
            "leave it out, or use train.learner = \"tinker\"",
        );
    }
    refuse_if(
        tinker.is_none_or(|tinker| tinker.url.is_empty()),
        "train.learner",
        || "= tinker needs the address of a server".to_owned(),
        "write  [train.tinker]  url = \"http://127.0.0.1:8000\"",
    )?;
    refuse_if(
        config.model.directory.is_none(),
        "train.learner",
        || "= tinker needs a model that the server has, and this one is made here".to_owned(),
        "name a directory with the same model's tokenizer with model.directory",
    )?;
    check_tinker(config)?;
    check_sampling(config)
}

/// Refuses settings of training that a Tinker server does not read.
fn check_tinker(config: &Config) -> Result<(), Impossible> {
    let (train, model, usual) = (&config.train, &config.model, Train::default());
    let AdamW { moments, .. } = AdamW::default();
    let unread = [
        ("model.lora", model.lora.is_some(), "set train.tinker.rank: the server decides the rest"),
        ("model.device", model.device != Device::Cpu, "leave it out: the server has its own"),
        (
            "model.compute",
            model.compute != ComputePrecision::default(),
            "leave it out: the server has its own",
        ),
        ("engine", config.engine != EngineSettings::default(), "leave the table out"),
        ("optimizer.moments", config.optimizer.moments != moments, "leave it out"),
        ("train.balance", train.balance != usual.balance, "leave it out"),
        ("train.recompute_layers", train.recompute_layers.is_some(), "leave it out"),
        ("train.threads", train.threads != usual.threads, "leave it out"),
    ];
    unread.into_iter().try_for_each(|(key, is_set, help)| {
        refuse_if(is_set, key, || "is not used by the learner `tinker`".to_owned(), help)
    })
}

/// Refuses sampling that a Tinker server cannot train on.
fn check_sampling(config: &Config) -> Result<(), Impossible> {
    let rollout = &config.rollout;
    let engine = rollout.engine.word();
    refuse_if(
        rollout.engine == EngineName::Gguf,
        "rollout.engine",
        || format!("= {engine} cannot sample what the learner `tinker` trains"),
        "leave it out: the server samples too; or use vllm or sglang, which serve its adapters",
    )?;
    let whole =
        "a Tinker server computes log-probabilities over the whole vocabulary at temperature 1";
    let eval = config.eval.temperature;
    let refused = [
        ("rollout.temperature", rollout.temperature != 1.0, "set it to 1"),
        ("rollout.top_p", rollout.top_p != 1.0, "set it to 1"),
        ("rollout.top_k", rollout.top_k != 0, "set it to 0"),
        ("rollout.min_p", rollout.min_p != 0.0, "set it to 0"),
        ("rollout.constraint", rollout.constraint.is_some(), "leave it out"),
        ("eval.temperature", eval != 1.0 && eval != 0.0, "set it to 1, or to 0"),
    ];
    refused.into_iter().try_for_each(|(key, is_set, help)| {
        refuse_if(
            is_set,
            key,
            || format!("is not supported by the learner `tinker`: {whole}"),
            help,
        )
    })
}
