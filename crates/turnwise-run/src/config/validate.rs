//! Checks of the settings before anything is loaded.

use turnwise_candle::{EngineSettings, LoraSettings};
use turnwise_training::{Behavior, Curriculum, RolloutMode};

use super::agent::check_agent;
use super::choices;
use super::ranges;
use super::schema::{Config, EngineName, Model, QuantizationName};
use super::trainer::check_learner;
use crate::form::TemplateName;

/// An invalid setting: its dotted key, what is wrong, and what to do.
#[derive(Debug, PartialEq)]
pub(super) struct Impossible {
    pub key: String,
    pub wrong: String,
    pub help: String,
}

/// Refuses the first invalid setting.
pub(super) fn validate(config: &Config) -> Result<(), Impossible> {
    ranges::check(config)?;
    check_sizes(config)?;
    check_objective(config)?;
    check_group(config)?;
    check_behavior(config)?;
    check_compaction(config)?;
    check_constraint(config)?;
    check_rollout(config)?;
    check_engine(config)?;
    check_learner(config)?;
    check_workers(config)?;
    check_template(config)?;
    check_agent(config)?;
    check_lora(config)?;
    check_schedule(config)?;
    check_heads(config)
}

/// Checks what only the objective itself can check: the dual clip.
fn check_objective(config: &Config) -> Result<(), Impossible> {
    choices::check(config)?;
    choices::objective(config).map(drop).map_err(|error| Impossible {
        key: "objective.dual_clip".to_owned(),
        wrong: format!("cannot be: {error}"),
        help: "use a bound above 1 + clip_high; 3 is usual".to_owned(),
    })
}

/// Checks products of several settings, which may exceed the memory of any machine.
fn check_sizes(config: &Config) -> Result<(), Impossible> {
    let rollout = &config.rollout;
    let episodes = rollout.groups_per_step.saturating_mul(rollout.group_size);
    refuse_if(
        episodes > MAX_EPISODES,
        "rollout.groups_per_step",
        || format!("times group_size is {episodes} episodes at once"),
        "use at most 131,072 episodes a step",
    )?;
    let model = &config.model;
    let attention = model.head_dim * (2 * model.n_heads + 2 * model.n_kv_heads);
    let layer = model.hidden_size * (attention + 3 * model.intermediate_size);
    let weights = 2 * model.vocab_size * model.hidden_size + model.n_layers.saturating_mul(layer);
    refuse_if(
        model.directory.is_none() && weights > MAX_WEIGHTS,
        "model.hidden_size",
        || format!("and its neighbours make a model of {:.1e} weights", weights as f64),
        "a model that is made here has learnt nothing, and 4e9 weights are the most; load a trained one with model.directory",
    )
}

/// The most episodes of a step, which are in memory at the same time; a small episode takes 50 kB.
const MAX_EPISODES: usize = 131_072;
/// The most weights of a new model: 16 GB.
const MAX_WEIGHTS: usize = 4_000_000_000;

fn check_group(config: &Config) -> Result<(), Impossible> {
    let size = config.rollout.group_size;
    refuse_if(
        size < 2,
        "rollout.group_size",
        || format!("= {size} gives every rollout advantage 0"),
        "GSPO compares rollouts of one task with each other; use at least 2 (8 is usual)",
    )?;
    let least = config.rollout.min_group_size;
    refuse_if(
        least > size,
        "rollout.min_group_size",
        || format!("= {least} is more than group_size = {size}, so that every group is dropped"),
        "use at most the group size",
    )
}

/// Checks that the engine is built, and reads the settings that are given for it.
fn check_engine(config: &Config) -> Result<(), Impossible> {
    let rollout = &config.rollout;
    let engine = rollout.engine.word();
    for (key, name, settings) in [
        ("rollout.vllm", EngineName::Vllm, &rollout.vllm),
        ("rollout.sglang", EngineName::Sglang, &rollout.sglang),
    ] {
        refuse_if(
            settings.is_some() && rollout.engine != name,
            key,
            || format!("is not used by the engine `{engine}`"),
            &format!("leave it out, or use rollout.engine = \"{}\"", name.word()),
        )?;
    }
    if rollout.engine == EngineName::Candle {
        let name = rollout.quantization.map_or("", QuantizationName::word);
        return refuse_if(
            rollout.quantization.is_some(),
            "rollout.quantization",
            || format!("= {name} is not used by the engine `{engine}`, which does not round"),
            "leave it out, or use rollout.engine = \"gguf\"",
        );
    }
    if matches!(rollout.engine, EngineName::Vllm | EngineName::Sglang) {
        return check_server(config, engine);
    }
    refuse_if(
        !cfg!(feature = "gguf"),
        "rollout.engine",
        || format!("= {engine}, and this turnwise was built without that engine"),
        "build it with  cargo build --release --features gguf\nor use rollout.engine = \"candle\"",
    )?;
    let EngineSettings { max_kv_bytes, .. } = config.engine;
    refuse_if(
        config.engine != EngineSettings { max_kv_bytes, ..EngineSettings::default() },
        "engine",
        || format!("has settings that the engine `{engine}` does not read"),
        "leave out all but engine.max_kv_bytes",
    )
}

/// Checks that a server is given for an engine that is one, and refuses what a server cannot do.
fn check_server(config: &Config, engine: &str) -> Result<(), Impossible> {
    let rollout = &config.rollout;
    let settings = rollout.server();
    refuse_if(
        settings.is_none_or(|settings| settings.urls.is_empty()),
        "rollout.engine",
        || format!("= {engine} needs the address of a server"),
        &format!("write  [rollout.{engine}]  urls = [\"http://127.0.0.1:8000\"]"),
    )?;
    refuse_if(
        config.model.directory.is_none(),
        "rollout.engine",
        || format!("= {engine} needs a model that the server can load, and this one is made here"),
        "name the server's model with model.directory",
    )?;
    refuse_if(
        rollout.quantization.is_some(),
        "rollout.quantization",
        || format!("is not used by the engine `{engine}`, whose precision its own command sets"),
        "leave it out",
    )?;
    refuse_if(
        config.engine != EngineSettings::default(),
        "engine",
        || format!("has settings that the engine `{engine}` does not read"),
        "leave the table out: a server has its own",
    )
}

/// Refuses what workers cannot do.
fn check_workers(config: &Config) -> Result<(), Impossible> {
    let Some(workers) = &config.rollout.workers else { return Ok(()) };
    let is_open = !workers.address.ip().is_loopback();
    refuse_if(
        is_open && workers.token_file.is_none(),
        "rollout.workers",
        || format!("has the address {}, which other machines reach, and no token", workers.address),
        "write a secret into a file, and name it with token_file",
    )?;
    let refused = [
        (
            "agent.command",
            config.agent.command.is_some(),
            "an agent's program runs beside the trainer",
        ),
        (
            "environment.opponent",
            config.environment.opponent.is_some(),
            "an opponent plays beside the trainer",
        ),
        (
            "rollout.constraint",
            config.rollout.constraint.is_some(),
            "the engine is asked over HTTP",
        ),
    ];
    for (key, is_set, why) in refused {
        refuse_if(
            is_set,
            key,
            || format!("is not supported with workers: {why}"),
            "leave it out, or leave [rollout.workers] out",
        )?;
    }
    Ok(())
}

fn check_rollout(config: &Config) -> Result<(), Impossible> {
    let rollout = &config.rollout;
    let budgets = [
        ("rollout.tokens_per_step", rollout.tokens_per_step > 0),
        ("rollout.seconds_per_step", rollout.seconds_per_step > 0.0),
    ];
    for (key, is_set) in budgets {
        refuse_if(
            is_set && rollout.mode == RolloutMode::Asynchronous,
            key,
            || "is not used by asynchronous rollouts, which no step cuts".to_owned(),
            "leave it out, or use rollout.mode = \"pipelined\"",
        )?;
    }
    Ok(())
}

fn check_schedule(config: &Config) -> Result<(), Impossible> {
    let (rollout, train) = (&config.rollout, &config.train);
    refuse_if(
        rollout.mode == RolloutMode::Pipelined && train.max_staleness == 0,
        "train.max_staleness",
        || "= 0 lets nothing train that was rolled out beside an update".to_owned(),
        "use at least 1 with rollout.mode = \"pipelined\", or rollout.mode = \"synchronous\"",
    )?;
    let Curriculum::SuccessRate { low, high, .. } = rollout.curriculum else { return Ok(()) };
    refuse_if(
        !(0.0 <= low && low <= high && high <= 1.0),
        "rollout.curriculum",
        || format!("has the band {low} to {high}"),
        "use two success rates with 0 <= low <= high <= 1",
    )
}

/// Checks what only the correction itself can check: its bounds.
fn check_behavior(config: &Config) -> Result<(), Impossible> {
    let Behavior::Recomputed(correction) = config.train.behavior else { return Ok(()) };
    correction.check().map_err(|error| Impossible {
        key: "train.behavior".to_owned(),
        wrong: format!("cannot be: {error}"),
        help: "use {recomputed = {bound = {truncate = 2.0}}}, or mask = [0.5, 5.0]".to_owned(),
    })
}

fn check_compaction(config: &Config) -> Result<(), Impossible> {
    let Some(compaction) = &config.rollout.compaction else { return Ok(()) };
    let (at, most) = (compaction.at_tokens, config.limits.max_context_tokens);
    refuse_if(
        at >= most,
        "rollout.compaction",
        || format!("begins at {at} tokens, and an episode ends at {most}"),
        "use an at_tokens that leaves room below limits.max_context_tokens for a turn and a summary",
    )
}

/// Checks what does not depend on the model. The grammar is compiled for the model when that has been read.
fn check_constraint(config: &Config) -> Result<(), Impossible> {
    let Some(constraint) = &config.rollout.constraint else { return Ok(()) };
    let engine = config.rollout.engine;
    refuse_if(
        engine != EngineName::Candle,
        "rollout.constraint",
        || format!("is not supported by the engine `{}`", engine.word()),
        "leave it out, or use rollout.engine = \"candle\"",
    )?;
    constraint.check(config.model.directory.is_none()).map_err(|error| Impossible {
        key: error.key.to_owned(),
        wrong: error.wrong,
        help:
            "use one of regex = \"…\", json_schema = {…} or \"FILE.json\", and lark = \"start: …\""
                .to_owned(),
    })
}

/// Refuses settings that the chosen template does not read.
fn check_template(config: &Config) -> Result<(), Impossible> {
    let Model { template, trust, tools, time, .. } = &config.model;
    // Without a name, the model's own template is chosen if there is one.
    let is_other = template.is_some_and(|template| template != TemplateName::Hf);
    refuse_if(
        time.is_some() && is_other,
        "model.time",
        || "is used by the template `hf` alone".to_owned(),
        "leave it out, or set model.template = \"hf\"",
    )?;
    refuse_if(
        trust.is_some() && is_other,
        "model.trust",
        || "is used by the template `hf` alone".to_owned(),
        "leave it out, or set model.template = \"hf\"",
    )?;
    refuse_if(
        tools.is_some() && *template == Some(TemplateName::Llama3),
        "model.tools",
        || "is not used by a template that has its own way with tools".to_owned(),
        "leave it out, or use the template chatml or qwen3",
    )
}

/// Checks what holds for adapters of every model. Checks against the model follow when it has been read.
fn check_lora(config: &Config) -> Result<(), Impossible> {
    refuse_if(
        config.model.base.is_some() && config.model.directory.is_none(),
        "model.base",
        || "names the base of no adapter".to_owned(),
        "name the adapter with model.directory, or leave model.base out",
    )?;
    let Some(LoraSettings { rank, targets, .. }) = &config.model.lora else { return Ok(()) };
    refuse_if(*rank == 0, "model.lora.rank", || "is 0".to_owned(), "use at least 1; 16 is usual")?;
    refuse_if(
        targets.is_empty(),
        "model.lora.targets",
        || "is empty, so that nothing would train".to_owned(),
        "use [\"all-linear\"], or some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
    )?;
    refuse_if(
        config.model.directory.is_none(),
        "model.lora",
        || "freezes the model, and one that is made here has learnt nothing yet".to_owned(),
        "name a trained model with model.directory, or leave model.lora out",
    )
}

fn check_heads(config: &Config) -> Result<(), Impossible> {
    let (heads, kv_heads) = (config.model.n_heads, config.model.n_kv_heads);
    refuse_if(
        !heads.is_multiple_of(kv_heads),
        "model.n_kv_heads",
        || format!("= {kv_heads} does not divide n_heads = {heads}"),
        "each key-value head serves the same number of heads; use a divisor",
    )?;
    let dim = config.model.head_dim;
    refuse_if(
        dim % 2 == 1,
        "model.head_dim",
        || format!("= {dim} is odd"),
        "rotary positions turn pairs; use an even number",
    )
}

pub(super) fn refuse_if(
    is_wrong: bool,
    key: &'static str,
    wrong: impl FnOnce() -> String,
    help: &str,
) -> Result<(), Impossible> {
    if !is_wrong {
        return Ok(());
    }
    Err(Impossible { key: key.to_owned(), wrong: wrong(), help: help.to_owned() })
}
