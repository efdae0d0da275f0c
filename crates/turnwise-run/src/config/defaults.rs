//! Defaults that depend on the model: values that suit a new model destroy a trained one.

use std::path::{Path, PathBuf};

use toml_edit::{InlineTable, Item, Table, Value};
use turnwise_candle::{ComputePrecision, GgufFile, has_fast_bf16, locate, locate_base};
use turnwise_training::AutoClip;

use super::schema::{ClipRule, Config, LearnerName};

/// The defaults of a run that starts from a trained model. They follow the usual practice: 1e-5 for full fine-tuning,
/// and ten times that for adapters (TRL, verl, and Thinking Machines' "LoRA Without Regret"). The learning rate rises over
/// the first steps, because `AdamW` moves every weight by the whole rate until it knows how noisy a gradient is.
const LOADED: [(&str, &str, Default); 6] = [
    ("train", "learning_rate", Default::Rate { full: 1e-5, adapters: 1e-4 }),
    ("train", "warmup_steps", Default::Count(4)),
    ("warm_start", "learning_rate", Default::Rate { full: 2e-5, adapters: 2e-4 }),
    ("rollout", "groups_per_step", Default::Count(8)),
    ("eval", "episodes", Default::Count(64)),
    ("log", "checkpoint_every", Default::Count(10)),
];

/// Models of this many weights compute products in bf16 on a processor that is fast at it. `SmolLM2`, with 135 million, learns
/// in both precisions (the guide's page on real models has the measurements).
const LARGE: i64 = 100_000_000;

#[derive(Clone, Copy)]
enum Default {
    /// A learning rate for all weights, and one for adapters.
    Rate {
        full: f64,
        adapters: f64,
    },
    Count(i64),
}

/// Returns a line with the settings that depend on the model, and the reason of each.
pub(crate) fn reasons(config: &Config) -> String {
    let Config { train, rollout, limits, eval, objective, model, .. } = config;
    let is_remote = train.learner == LearnerName::Tinker;
    let has_adapters = model.lora.is_some() || is_remote;
    let trained = if has_adapters { "adapters" } else { "all weights" };
    let clip = match (objective.clip, objective.clip_low) {
        (Some(ClipRule::Auto), _) => {
            let multiple = objective.clip_multiple.unwrap_or(AutoClip::MULTIPLE);
            format!("{multiple} times the measured spread of the ratio")
        }
        (_, Some(low)) => format!("{low} below"),
        (_, None) => "as in the objective's paper".to_owned(),
    };
    let warm_up = match train.warmup_steps {
        0 => String::new(),
        steps => format!(", reached in {steps} steps"),
    };
    let usual = if has_adapters { "1e-4" } else { "1e-5" };
    let products = match model.compute {
        _ if is_remote => "",
        ComputePrecision::F32 => "products in f32; ",
        ComputePrecision::Bf16 => "products in bf16; ",
    };
    format!(
        "{products}learning rate {:e} for {trained} (usual: {usual}){warm_up}; clip range {clip}; {} groups of {}, turns of at most {} tokens; {} held-out episodes",
        train.learning_rate,
        rollout.groups_per_step,
        rollout.group_size,
        limits.max_turn_tokens,
        eval.episodes
    )
}

/// Fills in the settings that are left out, if the settings load a model.
pub(super) fn of_loaded_model(settings: &mut Table) {
    let model = settings.get("model").and_then(Item::as_table_like);
    let get = |key: &str| model.and_then(|model| model.get(key));
    let Some(directory) = get("directory").and_then(Item::as_str).map(str::to_owned) else {
        return;
    };
    let base = get("base").and_then(Item::as_str).map(Path::new);
    let (path, base) = model_and_base(Path::new(&directory), base);
    let train = settings.get("train").and_then(Item::as_table_like);
    let is_remote = train
        .and_then(|train| train.get("learner"))
        .and_then(Item::as_str)
        .is_some_and(|learner| learner == LearnerName::Tinker.word());
    let has_adapters = get("lora").is_some() || base.is_some() || is_remote;
    let on_processor = get("device").and_then(Item::as_str).is_none_or(|device| device == "cpu");
    let computes_here = on_processor && !is_remote;
    for (table, key, default) in LOADED {
        let value = match default {
            Default::Rate { adapters, .. } if has_adapters => Value::from(adapters),
            Default::Rate { full, .. } => Value::from(full),
            Default::Count(count) => Value::from(count),
        };
        fill(settings, table, key, value);
    }
    clip_by_spread(settings);
    let Some(shape) = shape(base.as_deref().unwrap_or(&path)) else { return };
    if let Some(positions) = shape.positions {
        let usual = turnwise_rollout::Limits::default().max_context_tokens;
        let usual = i64::try_from(usual).unwrap_or(i64::MAX);
        fill(settings, "limits", "max_context_tokens", Value::from(usual.min(positions)));
    }
    if computes_here && shape.weights >= LARGE && has_fast_bf16() {
        fill(settings, "model", "compute", Value::from("bf16"));
    }
}

/// Sets how far engine and trainer may differ on the tokens of the canary, if they round their numbers: in bf16 both round
/// alike, but sums in other orders make some numbers round to the other side.
pub(super) fn of_precision(settings: &mut Table) {
    let is = |table: &str, key: &str, value: &str| {
        let table = settings.get(table).and_then(Item::as_table_like);
        table.and_then(|table| table.get(key)).and_then(Item::as_str) == Some(value)
    };
    let tolerance = match (is("engine", "weights", "int8"), is("model", "compute", "bf16")) {
        (true, _) => 1.0,
        (false, true) => 0.5,
        (false, false) => return,
    };
    let train = settings.entry("train").or_insert_with(|| Item::Table(Table::new()));
    if let Some(train) = train.as_table_like_mut() {
        let canary =
            train.entry("canary").or_insert_with(|| Item::Value(InlineTable::new().into()));
        if let Some(canary) = canary.as_table_like_mut()
            && canary.get("tolerance").is_none()
        {
            canary.insert("tolerance", Item::Value(Value::from(tolerance)));
        }
    }
}

/// Sets the clip range by the measured spread, unless the settings say something about it. At the paper's range, which
/// is for models of billions of weights, a model of 135 million clips 36 to 66 % of its tokens.
fn clip_by_spread(settings: &mut Table) {
    let objective = settings.get("objective").and_then(Item::as_table_like);
    let get = |key: &str| objective.and_then(|objective| objective.get(key));
    let is_of_gspo =
        get("name").is_none_or(|name| name.as_str().is_some_and(|name| name.starts_with("gspo")));
    let says_more = ["clip", "clip_low", "clip_high"].into_iter().any(|key| get(key).is_some());
    if is_of_gspo && !says_more {
        fill(settings, "objective", "clip", Value::from("auto"));
    }
}

fn fill(settings: &mut Table, table: &str, key: &str, value: Value) {
    let table = settings.entry(table).or_insert_with(|| Item::Table(Table::new()));
    if let Some(table) = table.as_table_like_mut()
        && table.get(key).is_none()
    {
        table.insert(key, Item::Value(value));
    }
}

/// Returns the place of a model, with that of its base if it is an adapter. What is not found is reported later.
fn model_and_base(model: &Path, base: Option<&Path>) -> (PathBuf, Option<PathBuf>) {
    let path = locate(model).unwrap_or_else(|_| model.to_owned());
    let base = locate_base(&path, base).ok().flatten();
    (path, base)
}

/// The sizes of a model that its defaults depend on.
#[derive(Clone, Copy, Debug)]
struct ModelShape {
    positions: Option<i64>,
    /// The number of weights, but for biases and experts.
    weights: i64,
}

/// Returns the shape of a model, if its files have a configuration.
fn shape(model: &Path) -> Option<ModelShape> {
    let config = if GgufFile::is_named(model) {
        GgufFile::open(model).ok()?.config().ok()?
    } else {
        let json = std::fs::read_to_string(model.join("config.json")).ok()?;
        serde_json::from_str(&json).ok()?
    };
    // A model with images has the sizes of its text model in a table of its own.
    let text = config.get("text_config").and_then(serde_json::Value::as_object);
    let config = text.unwrap_or(&config);
    let get = |key: &str| config.get(key).and_then(serde_json::Value::as_i64);
    let of = |key: &str| get(key).filter(|number| (0..1 << 24).contains(number)).unwrap_or(0);
    let (width, inner) = (of("hidden_size"), of("intermediate_size"));
    let layer = width.saturating_mul(4 * width + 3 * inner);
    let weights = layer.saturating_mul(of("num_hidden_layers"));
    Some(ModelShape {
        positions: get("max_position_embeddings").filter(|positions| *positions > 0),
        weights: weights.saturating_add(width.saturating_mul(of("vocab_size"))),
    })
}
