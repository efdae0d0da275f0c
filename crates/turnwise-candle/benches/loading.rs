//! Peak memory of loading a checkpoint of a billion numbers: `cargo bench -p turnwise-candle --bench loading`.
//!
//! Writes a sharded F32 checkpoint of random numbers below the system's temporary directory (4.1 GB). Child processes
//! load it: into a model, and into an engine that replaces the model.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use std::{env, iter};

use serde_json::{Map, Value, json};
use turnwise_candle::{CandlePolicy, Decoder, EngineSettings};

const HIDDEN: usize = 2048;
const INNER: usize = 6144;
const LAYERS: usize = 18;
const VOCABULARY: usize = 64_000;
/// Tells a child process what to load, and from which directory.
const LOAD: &str = "TURNWISE_LOAD";

fn main() -> Result<(), Box<dyn Error>> {
    if let Some(what) = env::var_os(LOAD) {
        return load(&what.to_string_lossy());
    }
    let directory = tempfile::tempdir()?;
    let bytes = generate(directory.path())?;
    println!("checkpoint: {:.3} GB of numbers in {} shards", gigabytes(bytes), LAYERS + 1);
    for what in ["model", "engine"] {
        let argument = format!("{what} {}", directory.path().display());
        let status = Command::new(env::current_exe()?).env(LOAD, argument).status()?;
        assert!(status.success(), "loading works");
    }
    Ok(())
}

fn load(what: &str) -> Result<(), Box<dyn Error>> {
    let (what, directory) = what.split_once(' ').ok_or("a kind and a directory")?;
    let (start, before) = (Instant::now(), peak()?);
    if what == "model" {
        let model = Decoder::from_directory(Path::new(directory))?;
        assert!(model.n_parameters() > 1_000_000_000, "it is a large model");
    } else {
        drop(CandlePolicy::from_directory(Path::new(directory), EngineSettings::default())?);
    }
    let (seconds, after) = (start.elapsed().as_secs_f64(), peak()?);
    println!(
        "{what}: peak {:.3} GB, {:.3} GB before, {seconds:.1} s",
        gigabytes(after),
        gigabytes(before)
    );
    Ok(())
}

fn gigabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e9
}

/// Returns the peak memory of this process, in bytes.
fn peak() -> Result<usize, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    Ok(kilobytes.ok_or("the system tells no peak")?.parse::<usize>()? * 1024)
}

/// Writes a checkpoint, a shard for each layer and one for the rest, and returns its size.
fn generate(directory: &Path) -> Result<usize, Box<dyn Error>> {
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "tie_word_embeddings": true, "hidden_act": "silu", "torch_dtype": "float32",
    });
    fs::write(directory.join("config.json"), config.to_string())?;
    let (mut places, mut all) = (Map::new(), 0);
    for shard in 0..=LAYERS {
        let name = format!("model-{shard:05}.safetensors");
        let tensors = tensors(shard);
        all += write_shard(&directory.join(&name), &tensors)?;
        let each = tensors.into_iter().map(|(tensor, _)| (tensor, Value::from(name.clone())));
        places.extend(each);
    }
    let index = json!({"metadata": {"total_size": all}, "weight_map": places});
    fs::write(directory.join("model.safetensors.index.json"), index.to_string())?;
    Ok(all)
}

/// Returns names and shapes.
fn tensors(shard: usize) -> Vec<(String, Vec<usize>)> {
    if shard == LAYERS {
        return vec![
            ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
            ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ];
    }
    let named = [
        ("input_layernorm", vec![HIDDEN]),
        ("mlp.down_proj", vec![HIDDEN, INNER]),
        ("mlp.gate_proj", vec![INNER, HIDDEN]),
        ("mlp.up_proj", vec![INNER, HIDDEN]),
        ("post_attention_layernorm", vec![HIDDEN]),
        ("self_attn.k_proj", vec![1024, HIDDEN]),
        ("self_attn.o_proj", vec![HIDDEN, 2048]),
        ("self_attn.q_proj", vec![2048, HIDDEN]),
        ("self_attn.v_proj", vec![1024, HIDDEN]),
    ];
    let each = named.into_iter();
    each.map(|(name, shape)| (format!("model.layers.{shard}.{name}.weight"), shape)).collect()
}

fn write_shard(path: &Path, tensors: &[(String, Vec<usize>)]) -> Result<usize, Box<dyn Error>> {
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * 4;
        let info = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), info);
    }
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let header = Value::from(header).to_string();
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    // Marsaglia, "Xorshift RNGs", 2003.
    let mut state = 0x9e37_79b9_u32;
    let numbers = iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state as f32 / u32::MAX as f32 - 0.5) * 0.04
    });
    for number in numbers.take(end / 4) {
        file.write_all(&number.to_le_bytes())?;
    }
    file.flush()?;
    Ok(end)
}
