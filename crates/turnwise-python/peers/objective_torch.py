"""Compares losses and gradients with torch's automatic differentiation, in double precision.

    python crates/turnwise-python/peers/objective_torch.py

needs the package `turnwise` and `torch`. The losses are written down from the papers, with `detach` where they have a
stop-gradient. Ends with status 1 if a loss or a gradient differs by more than 1e-12.
"""

import sys

import numpy as np
import torch

import turnwise

TOLERANCE = 1e-12
CLIPS = [(3e-4, 4e-4), (0.05, 0.07), (0.2, 0.27)]


def clipped(ratio, advantage, low, high):
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def weight(kind, n):
    return {"mean": 1.0, "tokens": float(n), "sqrt_tokens": n**0.5}[kind]


def gspo(now, then, advantages, low, high, kind, turns):
    """Equations 5 and 7: the gradient flows through the ratio."""
    terms = [
        weight(kind, len(l)) * clipped((l - b).mean().exp(), a[0], low, high) for l, b, a in zip(now, then, advantages)
    ]
    return -torch.stack(terms).mean()


def gspo_token(now, then, advantages, low, high, kind, turns):
    """Equations 13 and 14: s_it = sg[s_i] π_θ / sg[π_θ]."""
    terms = []
    for l, b, a in zip(now, then, advantages):
        ratio = (l - b).mean().exp().detach() * (l - l.detach()).exp()
        terms.append(weight(kind, len(l)) * clipped(ratio, a, low, high).mean())
    return -torch.stack(terms).mean()


def gspo_turn(now, then, advantages, low, high, kind, turns):
    """A ratio for each turn, and a token's own advantage."""
    terms = []
    for l, b, a, lengths in zip(now, then, advantages, turns):
        parts = []
        for l_k, b_k, a_k in zip(l.split(lengths), b.split(lengths), a.split(lengths)):
            ratio = (l_k - b_k).mean().exp().detach() * (l_k - l_k.detach()).exp()
            parts.append(clipped(ratio, a_k, low, high))
        terms.append(weight(kind, len(l)) * torch.cat(parts).mean())
    return -torch.stack(terms).mean()


def grpo(now, then, advantages, low, high, kind, turns):
    """A ratio for each token, averaged over tokens, then over sequences."""
    return -torch.stack([clipped((l - b).exp(), a, low, high).mean() for l, b, a in zip(now, then, advantages)]).mean()


def columns(random, uniform):
    """Returns sequences of different lengths, cut into turns; some ratios are far outside of the range, some inside."""
    now, then, advantages, turns = [], [], [], []
    for _ in range(random.integers(1, 7)):
        lengths = [int(n) for n in random.integers(1, 40, size=random.integers(1, 5))]
        n = sum(lengths)
        behavior = -random.exponential(1.0, size=n)
        drift = random.normal(0.0, random.choice([0.0, 1e-4, 1e-2, 0.3]), size=n)
        shift = random.choice([0.0, 0.0, 2e-4, -0.1, 0.4])
        now.append(behavior + drift + shift)
        then.append(behavior)
        each = np.full(n, random.normal()) if uniform else np.repeat(random.normal(size=len(lengths)), lengths)
        advantages.append(each)
        turns.append(lengths)
    return now, then, advantages, turns


def compare(name, reference, random, kind):
    now, then, advantages, turns = columns(random, uniform=name == "gspo")
    low, high = CLIPS[random.integers(len(CLIPS))]
    tensors = [torch.tensor(column, dtype=torch.float64, requires_grad=True) for column in now]
    fixed = [[torch.tensor(column, dtype=torch.float64) for column in side] for side in (then, advantages)]
    expected = reference(tensors, *fixed, low, high, kind, turns)
    expected.backward()
    settings = {"clip_low": low, "clip_high": high}
    if name != "grpo":
        settings["length_weight"] = kind
    got = turnwise.step_loss(name, now, then, advantages, turns=turns, **settings)
    off = [abs(got.loss - expected.item())]
    off += [np.abs(own - column.grad.numpy()).max() for own, column in zip(got.gradients, tensors)]
    return max(off), max(np.abs(own).max() for own in got.gradients), got.metrics["clip_fraction"]


def main():
    failed = False
    for name, reference in [("gspo", gspo), ("gspo_token", gspo_token), ("gspo_turn", gspo_turn), ("grpo", grpo)]:
        for kind in ["mean"] if name == "grpo" else ["mean", "tokens", "sqrt_tokens"]:
            random = np.random.default_rng(1)
            results = [compare(name, reference, random, kind) for _ in range(300)]
            off, largest = max(one[0] for one in results), max(one[1] for one in results)
            share = np.mean([one[2] for one in results])
            print(f"{name:10} {kind:11} 300 steps: off by at most {off:.1e}, gradients up to {largest:.2g}, {share:.0%} clipped")
            failed |= not off <= TOLERANCE
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
