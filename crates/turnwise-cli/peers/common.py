"""What the scripts of this folder share: the model, memory and machine, and runs that alternate with turnwise's.

Every measurement is a process of its own, on both sides, so that a peak of memory is that of one measurement and nothing
is warm that the other side has not.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys

# What slows a library down on purpose, or speeds it up only here, has no place in a comparison.
TUNING = re.compile(r"^(OMP|MKL|KMP|GOMP|OPENBLAS|BLIS|NVPL|ONEDNN|DNNL|ATEN|TORCH|MALLOC|GLIBC|RAYON|CANDLE)_|^LD_PRELOAD$")


# Vocabulary, width, feed-forward width, layers, heads, key heads and width of a head, as `turnwise bench --model` has them.
SIZES = ["vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim"]
MODELS = {
    "small": [8192, 256, 768, 6, 4, 2, 64],
    "smollm2": [49152, 576, 1536, 30, 9, 3, 64],
    "qwen3-0.6b": [151936, 1024, 3072, 28, 16, 8, 128],
}


def add_model_arguments(parser):
    """The model, with the flags and defaults of `turnwise bench`."""
    parser.add_argument("--model", choices=MODELS, default="small", help="the published model whose sizes are taken")
    parser.add_argument("--compute", choices=["f32", "bf16"], default="f32",
                        help="the precision of products on both sides; torch trains by autocast, and decodes with bf16 weights")
    for name in SIZES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)


def with_sizes(settings):
    """Fills in the sizes of the model."""
    for name, size in zip(SIZES, MODELS[settings.model]):
        if getattr(settings, name) is None:
            setattr(settings, name, size)
    return settings


def add_run_arguments(parser):
    """How it is run."""
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5, help="timed repetitions of one process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of either side, alternating")
    parser.add_argument("--precision", choices=["highest", "high", "medium"], default="highest",
                        help="torch.set_float32_matmul_precision of the peer")
    parser.add_argument("--turnwise", default="target/release/turnwise", help="the command that is compared")
    parser.add_argument("--peer-only", action="store_true", help="measure the peer alone")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)


def model_flags(settings):
    """The flags that give turnwise the same model and threads."""
    names = [*SIZES, "threads", "repetitions"]
    flags = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(settings, name)))]
    return ["--model", settings.model, "--precision", settings.compute, *flags]


def make_model(settings, max_positions):
    """The Qwen3 or Llama of these sizes with random weights, in f32 with scaled dot-product attention."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(settings.threads)
    torch.set_float32_matmul_precision(settings.precision)
    torch.manual_seed(1)
    kinds = {"smollm2": (LlamaConfig, LlamaForCausalLM)}
    make_config, make = kinds.get(settings.model, (Qwen3Config, Qwen3ForCausalLM))
    config = make_config(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.head_dim,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return make(config).to(torch.float32)


def status_bytes(key):
    """A line of /proc/self/status, such as VmRSS or VmHWM."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024


def reset_peak():
    """Has the peak of resident memory (VmHWM) start again from what is resident now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def run(command):
    """Runs a measurement and returns the object that it prints in its last line."""
    environment = {name: value for name, value in os.environ.items() if not TUNING.match(name)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_peer(extra=()):
    """The measurement of the calling script, in a process of its own."""
    return run([sys.executable, *sys.argv, "--measure", *extra])


def spread(values):
    """Median, least and most."""
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def ratios(name, pairs, better="more"):
    """Prints the ratio of each pair (turnwise, peer), and their median."""
    values = [ours / theirs if better == "more" else theirs / ours for ours, theirs in pairs]
    print(f"  {name:<44}{spread(values)}", flush=True)


def megabytes(n_bytes):
    return n_bytes / 1e6


def machine(threads):
    """One line about the machine and the versions."""
    import importlib.metadata as metadata

    with open("/proc/cpuinfo") as info:
        model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), "unknown processor")
    versions = []
    for package in ["torch", "transformers", "trl"]:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            pass
    return f"{model}, {os.cpu_count()} cores, {threads} threads; {', '.join(versions)}"
