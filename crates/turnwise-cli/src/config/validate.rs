//! What cannot be, said before anything is loaded.

use turnwise::candle::{EngineSettings, LoraSettings};
use turnwise::training::{Behavior, Curriculum, RolloutMode, TruncatedEpisodes};

use super::choices;
use super::schema::{Config, EngineName, Model, QuantizationName};
use crate::arguments::TemplateName;

/// A setting that cannot be: its dotted key, what is wrong, what to do.
#[derive(Debug, PartialEq)]
pub(crate) struct Impossible {
    pub(crate) key: &'static str,
    pub(crate) wrong: String,
    pub(crate) help: String,
}

/// The first setting that cannot be.
pub(crate) fn validate(config: &Config) -> Result<(), Impossible> {
    check_counts(config)?;
    check_numbers(config)?;
    check_objective(config)?;
    check_group(config)?;
    check_sampling(config)?;
    check_behavior(config)?;
    check_compaction(config)?;
    check_rollout(config)?;
    check_engine(config)?;
    check_template(config)?;
    check_lora(config)?;
    check_schedule(config)?;
    check_heads(config)
}

fn check_counts(config: &Config) -> Result<(), Impossible> {
    let counts = [
        ("run.steps", config.run.steps),
        ("model.vocab_size", config.model.vocab_size as u64),
        ("model.hidden_size", config.model.hidden_size as u64),
        ("model.intermediate_size", config.model.intermediate_size as u64),
        ("model.n_layers", config.model.n_layers as u64),
        ("model.n_heads", config.model.n_heads as u64),
        ("model.n_kv_heads", config.model.n_kv_heads as u64),
        ("model.head_dim", config.model.head_dim as u64),
        ("warm_start.batch_size", config.warm_start.batch_size as u64),
        ("rollout.groups_per_step", config.rollout.groups_per_step as u64),
        ("rollout.min_group_size", config.rollout.min_group_size as u64),
        ("rollout.max_concurrent", config.rollout.max_concurrent as u64),
        ("rollout.max_faults_in_row", u64::from(config.rollout.max_faults_in_row)),
        ("limits.max_turns", config.limits.max_turns as u64),
        ("limits.max_turn_tokens", config.limits.max_turn_tokens as u64),
        ("limits.max_sampled_tokens", config.limits.max_sampled_tokens as u64),
        ("limits.max_context_tokens", config.limits.max_context_tokens as u64),
        ("train.n_minibatches", config.train.n_minibatches as u64),
        ("train.micro_batch_tokens", config.train.micro_batch_tokens as u64),
        ("eval.episodes", config.eval.episodes as u64),
    ];
    counts.into_iter().try_for_each(|(key, value)| {
        refuse_if(value == 0, key, || "is 0".to_owned(), "use at least 1")
    })
}

fn check_numbers(config: &Config) -> Result<(), Impossible> {
    let positive = [
        ("train.learning_rate", config.train.learning_rate),
        ("train.max_grad_norm", config.train.max_grad_norm),
        ("warm_start.learning_rate", config.warm_start.learning_rate),
        ("limits.environment_timeout_s", config.limits.environment_timeout_s),
        ("limits.engine_timeout_s", config.limits.engine_timeout_s),
        ("limits.episode_timeout_s", config.limits.episode_timeout_s),
    ];
    positive.into_iter().try_for_each(|(key, value)| {
        refuse_if(
            !(value.is_finite() && value > 0.0),
            key,
            || format!("is {value}"),
            "use a finite number above 0",
        )
    })?;
    check_objective_numbers(config)
}

/// Of settings that may be left out, those that are given.
fn check_objective_numbers(config: &Config) -> Result<(), Impossible> {
    let (objective, credit) = (&config.objective, &config.credit);
    let at_least_0 = [
        ("credit.outcome_weight", credit.outcome_weight),
        ("credit.turn_weight", credit.turn_weight),
        ("credit.step_weight", credit.step_weight),
        ("objective.clip_high", objective.clip_high),
        ("objective.log_clip_low", objective.log_clip_low),
        ("objective.log_clip_high", objective.log_clip_high),
        ("objective.off_policy_mask", objective.off_policy_mask),
        ("objective.kl.beta", Some(objective.kl.beta)),
    ];
    let wrong = |value: f64| move || format!("is {value}");
    for (key, value) in at_least_0 {
        let value = value.unwrap_or(0.0);
        let is_fine = value.is_finite() && value >= 0.0;
        refuse_if(!is_fine, key, wrong(value), "use a finite number of at least 0")?;
    }
    let taus = [
        ("objective.tau_positive", objective.tau_positive),
        ("objective.tau_negative", objective.tau_negative),
    ];
    for (key, value) in taus {
        let value = value.unwrap_or(1.0);
        let is_fine = value.is_finite() && value > 0.0;
        refuse_if(!is_fine, key, wrong(value), "use a finite number above 0")?;
    }
    let gamma = credit.gamma.unwrap_or(1.0);
    let help = "use a number from 0 to 1";
    refuse_if(!(0.0..=1.0).contains(&gamma), "credit.gamma", wrong(gamma), help)?;
    let low = objective.clip_low.unwrap_or(0.0);
    refuse_if(
        !(0.0..1.0).contains(&low),
        "objective.clip_low",
        || format!("is {low}, and the ratio's lower bound is 1 - {low}"),
        "use a number from 0 to below 1; the paper has 3e-4",
    )?;
    let is_0 = objective.max_tokens == Some(0);
    refuse_if(is_0, "objective.max_tokens", || "is 0".to_owned(), "use at least 1")
}

/// What only the objective itself can say: a dual clip inside the range.
fn check_objective(config: &Config) -> Result<(), Impossible> {
    choices::check(config)?;
    choices::objective(config).map(drop).map_err(|error| Impossible {
        key: "objective.dual_clip",
        wrong: format!("cannot be: {error}"),
        help: "use a bound above 1 + clip_high; 3 is usual".to_owned(),
    })
}

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

fn check_sampling(config: &Config) -> Result<(), Impossible> {
    let temperature = config.rollout.temperature;
    refuse_if(
        !(temperature.is_finite() && temperature > 0.0),
        "rollout.temperature",
        || format!("is {temperature}"),
        "training needs draws from a distribution; use a finite number above 0",
    )?;
    refuse_if(
        !(config.eval.temperature.is_finite() && config.eval.temperature >= 0.0),
        "eval.temperature",
        || format!("is {}", config.eval.temperature),
        "use a finite number of at least 0; 0 always takes the likeliest token",
    )?;
    let help = "the trainer's softmax is then not the distribution the tokens were drawn from; leave it out";
    let top_p = config.rollout.top_p;
    refuse_if(
        top_p != 1.0,
        "rollout.top_p",
        || format!("= {top_p} is not the whole vocabulary"),
        help,
    )?;
    let top_k = config.rollout.top_k;
    refuse_if(top_k > 0, "rollout.top_k", || format!("= {top_k} cuts the vocabulary short"), help)
}

/// Settings that are given and could not be meant.
/// Whether the engine is there, and reads what is set for it.
fn check_engine(config: &Config) -> Result<(), Impossible> {
    let rollout = &config.rollout;
    let engine = rollout.engine.word();
    if rollout.engine == EngineName::Candle {
        let name = rollout.quantization.map_or("", QuantizationName::word);
        return refuse_if(
            rollout.quantization.is_some(),
            "rollout.quantization",
            || format!("= {name} is not used by the engine `{engine}`, which does not round"),
            "leave it out, or use rollout.engine = \"gguf\"",
        );
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

fn check_rollout(config: &Config) -> Result<(), Impossible> {
    let (rollout, train) = (&config.rollout, &config.train);
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
    if let TruncatedEpisodes::Penalise(penalty) = train.truncated {
        refuse_if(
            !(penalty.is_finite() && penalty <= 0.0),
            "train.truncated",
            || format!("adds {penalty} to the reward of an episode that ran into a limit"),
            "use a finite number of at most 0, as in {penalise = -0.5}",
        )?;
    }
    if let Some(sampling) = rollout.dynamic_sampling {
        let seconds = sampling.max_seconds;
        refuse_if(
            !(seconds.is_finite() && seconds > 0.0),
            "rollout.dynamic_sampling",
            || format!("has max_seconds = {seconds}"),
            "use a finite number above 0",
        )?;
    }
    refuse_if(
        !config.limits.fault_reward.is_finite(),
        "limits.fault_reward",
        || format!("is {}", config.limits.fault_reward),
        "use a finite number",
    )
}

fn check_schedule(config: &Config) -> Result<(), Impossible> {
    let (rollout, train) = (&config.rollout, &config.train);
    refuse_if(
        rollout.mode == RolloutMode::Pipelined && train.max_staleness == 0,
        "train.max_staleness",
        || "= 0 lets nothing train that was rolled out beside an update".to_owned(),
        "use at least 1 with rollout.mode = \"pipelined\", or rollout.mode = \"synchronous\"",
    )?;
    let at_least_0 = [
        ("rollout.seconds_per_step", rollout.seconds_per_step),
        ("rollout.retry_delay_s", rollout.retry_delay_s),
        ("rollout.max_bad_rewards", rollout.max_bad_rewards),
        ("train.canary.tolerance", train.canary.tolerance),
        ("train.balance", train.balance),
    ];
    at_least_0.into_iter().try_for_each(|(key, value)| {
        refuse_if(
            !(value.is_finite() && value >= 0.0),
            key,
            || format!("is {value}"),
            "use a finite number of at least 0",
        )
    })?;
    let Curriculum::SuccessRate { low, high, keep } = rollout.curriculum else { return Ok(()) };
    refuse_if(
        !(0.0 <= low && low <= high && high <= 1.0),
        "rollout.curriculum",
        || format!("has the band {low} to {high}"),
        "use two success rates with 0 <= low <= high <= 1",
    )?;
    refuse_if(
        !(keep > 0.0 && keep <= 1.0),
        "rollout.curriculum",
        || format!("has keep = {keep}"),
        "use a probability above 0, so that tasks outside the band come back",
    )
}

/// What only a correction itself can say of its bounds.
fn check_behavior(config: &Config) -> Result<(), Impossible> {
    let Behavior::Recomputed(correction) = config.train.behavior else { return Ok(()) };
    correction.check().map_err(|error| Impossible {
        key: "train.behavior",
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

/// What only some templates read.
fn check_template(config: &Config) -> Result<(), Impossible> {
    let Model { template, trust, tools, .. } = &config.model;
    refuse_if(
        trust.is_some() && *template != Some(TemplateName::Hf),
        "model.trust",
        || "is used by the template `hf` alone".to_owned(),
        "leave it out, or set model.template = \"hf\"",
    )?;
    refuse_if(
        tools.is_some() && matches!(template, Some(TemplateName::Llama3 | TemplateName::Hf)),
        "model.tools",
        || "is not used by a template that has its own way with tools".to_owned(),
        "leave it out, or use the template chatml or qwen3",
    )
}

/// What adapters cannot be, whatever the model; what they cannot be for one is said when it has been read.
fn check_lora(config: &Config) -> Result<(), Impossible> {
    let Some(LoraSettings { rank, alpha, targets }) = &config.model.lora else { return Ok(()) };
    refuse_if(*rank == 0, "model.lora.rank", || "is 0".to_owned(), "use at least 1; 16 is usual")?;
    refuse_if(
        !(alpha.is_finite() && *alpha > 0.0),
        "model.lora.alpha",
        || format!("is {alpha}"),
        "use a finite number above 0; twice the rank is usual",
    )?;
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
    if is_wrong { Err(Impossible { key, wrong: wrong(), help: help.to_owned() }) } else { Ok(()) }
}
