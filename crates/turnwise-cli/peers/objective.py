"""The work of `turnwise bench objective` as one would write it in torch: GSPO-token in f64, with autograd.

pip install torch   (measured with 2.15)
cargo build --release -p turnwise-cli
python objective.py --turnwise target/release/turnwise --sequences 4096 --tokens 1024 --threads 2 --repetitions 7

Not part of CI. Both evaluate the same numbers; they alternate, and each pair gives one ratio of their times.
"""

import argparse
import json
import statistics
import subprocess
import time

import numpy
import torch

LOW, HIGH = 3e-4, 4e-4  # GSPO's range, arXiv 2507.18071, section 5.1


def mixed(z):
    """The finaliser of SplitMix64."""
    z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return z ^ (z >> numpy.uint64(31))


def uniforms(seed, n):
    """Numbers in 0..1: those of turnwise's `uniform_at`."""
    key = mixed(numpy.array([(seed + 0x9E3779B97F4A7C15) % 2**64], dtype=numpy.uint64))
    bits = mixed(numpy.arange(n, dtype=numpy.uint64) ^ key)
    return (bits >> numpy.uint64(11)).astype(numpy.float64) / 2**53


def columns(sequences, tokens):
    """Log-probabilities, those the tokens were drawn with, and advantages; all [sequences, tokens]."""
    n = sequences * tokens
    behavior = -4.0 * uniforms(1, n)
    logprobs = behavior + 0.02 * (uniforms(2, n) - 0.5)
    advantages = 2.0 * uniforms(3, n) - 1.0
    return [torch.from_numpy(c.reshape(sequences, tokens)) for c in (logprobs, behavior, advantages)]


def loss_of(logprobs, behavior, advantages):
    """Equations 13 and 14: the sequence's ratio is detached, each token's own one carries the gradient."""
    log_ratio = logprobs - behavior
    sequence = log_ratio.mean(dim=1, keepdim=True).detach()
    ratio = torch.exp(sequence + logprobs - logprobs.detach())
    clipped = torch.clamp(ratio, 1 - LOW, 1 + HIGH)
    return -torch.minimum(ratio * advantages, clipped * advantages).mean(dim=1).mean()


def evaluate(logprobs, behavior, advantages):
    """Value, gradient and seconds."""
    leaf = logprobs.detach().requires_grad_()
    start = time.perf_counter()
    loss = loss_of(leaf, behavior, advantages)
    loss.backward()
    seconds = time.perf_counter() - start
    return loss.item(), leaf.grad, seconds


def ours(settings):
    command = [settings.turnwise, "bench", "objective", "--json"]
    for name in ("sequences", "tokens", "threads"):
        command += [f"--{name}", str(getattr(settings, name))]
    command += ["--repetitions", "5"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def compare(settings, inputs):
    """One run of each: seconds and whether they agree."""
    runs = [evaluate(*inputs) for _ in range(3)]
    loss, gradient, _ = runs[0]
    seconds = statistics.median(run[2] for run in runs)
    report = ours(settings)
    size = gradient.abs().sum().item()
    for name, theirs, mine in [
        ("loss", loss, report["loss"]),
        ("sum of gradient sizes", size, report["gradient_size"]),
    ]:
        if abs(theirs - mine) > 1e-12 + 1e-9 * abs(theirs):
            raise SystemExit(f"{name}: torch has {theirs}, turnwise {mine}")
    return seconds, statistics.median(report["seconds"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--turnwise", default="target/release/turnwise")
    parser.add_argument("--sequences", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    inputs = columns(settings.sequences, settings.tokens)
    evaluate(*inputs)  # the first run makes threads and takes memory
    pairs = [compare(settings, inputs) for _ in range(settings.repetitions)]
    theirs, mine = (list(values) for values in zip(*pairs))
    ratios = [a / b for a, b in pairs]
    if settings.json:
        print(json.dumps({"torch_s": theirs, "turnwise_s": mine, "ratio": ratios}))
        return
    print(f"{settings.sequences} sequences of {settings.tokens} tokens, {settings.threads} threads, torch {torch.__version__}")
    for name, values, unit in [
        ("torch f64", [1e3 * value for value in theirs], "ms"),
        ("turnwise", [1e3 * value for value in mine], "ms"),
        ("torch / turnwise, pair by pair", ratios, "times"),
    ]:
        median = statistics.median(values)
        print(f"  {name}: {median:.2f} {unit} ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
