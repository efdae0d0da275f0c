"""Objectives and advantages, computed by the Rust crate ``turnwise-objective``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union

import numpy as np
import numpy.typing as npt

from . import _native

#: One-dimensional numbers: a NumPy array, a list, or a torch tensor on the CPU without a gradient.
ArrayLike = npt.ArrayLike
Doubles = npt.NDArray[np.float64]
#: The advantages of one sequence: one number for all its tokens, or one for each.
Advantages = Union[float, ArrayLike]
LengthWeight = Literal["mean", "tokens", "sqrt_tokens"]
KlEstimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True)
class SequenceStats:
    """Statistics of one sequence (one ratio group).

    Attributes:
        n_tokens: The number of its tokens, n_i.
        n_with_advantage: Tokens whose advantage is not 0.
        n_clipped_low: Tokens whose gradient clipping removed because the ratio is below 1 − ε_l.
        n_clipped_high: Tokens whose gradient clipping removed because the ratio is above 1 + ε_h.
        n_clipped_dual: Tokens whose gradient the dual clip removed.
        n_truncated: Tokens whose detached weight was cut, while the gradient still flows (CISPO).
        n_capped: Tokens whose ratio was clamped at e^512.
        log_ratio: log s_i, the mean log-ratio, before any clipping.
        k3_sum: An estimate of KL(behaviour ‖ policy) times n_i.
        gap: By how much GSPO with the mean advantage would exceed GSPO-token.
        kl_sum: The KL penalty's estimate summed over tokens; 0 without one.
    """

    n_tokens: int
    n_with_advantage: int
    n_clipped_low: int
    n_clipped_high: int
    n_clipped_dual: int
    n_truncated: int
    n_capped: int
    log_ratio: float
    k3_sum: float
    gap: float
    kl_sum: float

    @property
    def ratio(self) -> float:
        """The sequence's importance ratio s_i."""
        return float(np.exp(self.log_ratio))

    @property
    def clip_fraction(self) -> float:
        """The share of the sequence's tokens whose gradient clipping removed."""
        clipped = self.n_clipped_low + self.n_clipped_high + self.n_clipped_dual
        return clipped / self.n_tokens if self.n_tokens else 0.0


@dataclass(frozen=True)
class Loss:
    """The loss of one optimiser step, with its gradient.

    Attributes:
        loss: The loss, to be minimised, divided by the step's denominator.
        gradients: ∂loss/∂log π_t: an array of float64 for each sequence, with one entry for each token.
        sequences: Statistics of each sequence.
        metrics: Statistics of the step, such as ``clip_fraction`` and ``log_ratio_std``.
    """

    loss: float
    gradients: list[Doubles]
    sequences: list[SequenceStats]
    metrics: dict[str, float]

    @property
    def ratios(self) -> Doubles:
        """The importance ratio s_i of each sequence."""
        return np.array([stats.ratio for stats in self.sequences])


def step_loss(
    objective: str,
    logprobs: Sequence[ArrayLike],
    behavior: Sequence[ArrayLike],
    advantages: Sequence[Advantages],
    *,
    turns: Sequence[Sequence[int]] | None = None,
    reference: Sequence[ArrayLike] | None = None,
    clip_low: float | None = None,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    length_weight: LengthWeight | None = None,
    kl_beta: float = 0.0,
    kl_estimator: KlEstimator = "k3",
) -> Loss:
    """Evaluates an objective on the sequences of one optimiser step.

    A sequence has the trainable sampled tokens of one ratio group: all turns of a trajectory, and no token of the
    environment. What must not train is left out; there is no mask.

    The gradient is that of the paper, with its stop-gradients: for GSPO-token it is not the derivative of the value, and a
    finite difference of the value disagrees with it unless advantages are uniform.

    Args:
        objective: One of :func:`objectives`.
        logprobs: log π_θ of each token, an array for each sequence. Arrays may differ in length.
        behavior: The log-probability that each token was sampled with.
        advantages: For each sequence one number, or an array with one for each token.
        turns: The number of tokens of each turn, for each sequence; ``gspo_turn`` needs it.
        reference: The reference policy's log-probabilities, for ``kl_beta``.
        clip_low: ε_l of the clip range 1 − ε_l … 1 + ε_h; by default the published one.
        clip_high: ε_h.
        dual_clip: A second upper bound of the ratio for negative advantages.
        length_weight: The weight of a sequence by its length: ``mean`` (1, by default), ``tokens`` or ``sqrt_tokens``.
        kl_beta: The weight of a KL penalty towards the reference policy.
        kl_estimator: The penalty's estimator.

    Returns:
        The loss, its gradients and statistics.

    Raises:
        ValueError: For columns of different lengths, numbers that are not finite, or settings that the objective does not
            take. The text names the sequence and the token.
    """
    n = len(logprobs)
    columns = {"behavior": behavior, "advantages": advantages, "turns": turns, "reference": reference}
    for name, column in columns.items():
        if column is not None and len(column) != n:
            raise ValueError(f"{name} has {len(column)} entries for {n} sequences")
    none: list[Any] = [None] * n
    rows = zip(logprobs, behavior, advantages, none if reference is None else reference, none if turns is None else turns)
    sequences = [_sequence(index, *row) for index, row in enumerate(rows)]
    loss, gradients, stats, metrics = _native.step_loss(
        objective,
        sequences,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        length_weight=length_weight,
        kl_beta=kl_beta,
        kl_estimator=kl_estimator,
    )
    return Loss(
        loss=loss,
        gradients=[np.frombuffer(gradient, dtype=np.float64) for gradient in gradients],
        sequences=[SequenceStats(**fields) for fields in stats],
        metrics=metrics,
    )


def gspo_token(
    logprobs: Sequence[ArrayLike],
    behavior: Sequence[ArrayLike],
    advantages: Sequence[Advantages],
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    length_weight: LengthWeight = "mean",
    dual_clip: float | None = None,
) -> Loss:
    """GSPO-token: the sequence's importance ratio, each token's own advantage (arXiv 2507.18071, section 4.3).

    Arguments and result are those of :func:`step_loss`. The default range is the paper's, for models of billions of weights.

    Example:
        >>> import turnwise
        >>> loss = turnwise.gspo_token([[-0.5, -0.5]], [[-0.5, -0.5]], [[1.0, -1.0]])
        >>> loss.gradients[0]
        array([-0.5,  0.5])
    """
    return step_loss(
        "gspo_token",
        logprobs,
        behavior,
        advantages,
        clip_low=clip_low,
        clip_high=clip_high,
        length_weight=length_weight,
        dual_clip=dual_clip,
    )


def gspo(
    logprobs: Sequence[ArrayLike],
    behavior: Sequence[ArrayLike],
    advantages: Sequence[Advantages],
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    length_weight: LengthWeight = "mean",
    dual_clip: float | None = None,
) -> Loss:
    """GSPO: one importance ratio and one advantage for each sequence (arXiv 2507.18071, section 4.1).

    Arguments and result are those of :func:`step_loss`. Advantages that differ inside a sequence are refused, because every
    token would get their mean; :func:`gspo_token` takes them.
    """
    return step_loss(
        "gspo",
        logprobs,
        behavior,
        advantages,
        clip_low=clip_low,
        clip_high=clip_high,
        length_weight=length_weight,
        dual_clip=dual_clip,
    )


def gspo_turn(
    logprobs: Sequence[ArrayLike],
    behavior: Sequence[ArrayLike],
    advantages: Sequence[Advantages],
    turns: Sequence[Sequence[int]],
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    length_weight: LengthWeight = "mean",
) -> Loss:
    """GSPO with an importance ratio for each turn. ``turns`` has the number of tokens of each turn, for each sequence."""
    return step_loss(
        "gspo_turn",
        logprobs,
        behavior,
        advantages,
        turns=turns,
        clip_low=clip_low,
        clip_high=clip_high,
        length_weight=length_weight,
    )


def grpo(
    logprobs: Sequence[ArrayLike],
    behavior: Sequence[ArrayLike],
    advantages: Sequence[Advantages],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.27,
    dual_clip: float | None = None,
) -> Loss:
    """GRPO: an importance ratio for each token, averaged over tokens, then over sequences."""
    return step_loss(
        "grpo", logprobs, behavior, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )


def objectives() -> dict[str, str]:
    """Returns the names that :func:`step_loss` knows, each with its source.

    ``gspo``, ``gspo_token``, ``gspo_turn`` and ``grpo`` take settings; all others have their published ones.
    """
    return dict(_native.objective_names())


def mean_std(rewards: ArrayLike, *, std: Literal["sample", "population"] = "sample", epsilon: float = 0.0) -> Doubles:
    """Returns the advantages of one group: reward minus mean, divided by the standard deviation; exactly 0 if all are equal."""
    return np.array(_native.mean_std(_floats(rewards), std, epsilon))


def mean_only(rewards: ArrayLike) -> Doubles:
    """Returns the advantages of one group: reward minus mean (Dr.GRPO, arXiv 2503.20783)."""
    return np.array(_native.mean_only(_floats(rewards)))


def leave_one_out(rewards: ArrayLike) -> Doubles:
    """Returns the advantages of one group: reward minus the mean of the others' rewards (RLOO, arXiv 2402.14740)."""
    return np.array(_native.leave_one_out(_floats(rewards)))


def reward_to_go(rewards: ArrayLike, gamma: float = 1.0) -> Doubles:
    """Returns the discounted sum of the rewards from each turn on, of one trajectory."""
    return np.array(_native.reward_to_go(_floats(rewards), gamma))


def broadcast_outcome(advantages: ArrayLike, n_turns: Sequence[int]) -> list[Doubles]:
    """Assigns the advantage of each trajectory to each of its turns: GSPO's credit."""
    return _arrays(_native.broadcast(_floats(advantages), list(n_turns)))


def minus_mean_return(to_go: Sequence[ArrayLike]) -> list[Doubles]:
    """Returns the return from each turn on, minus the mean return of the group."""
    return _arrays(_native.minus_mean_return(_ragged(to_go)))


def minus_mean_return_of_others(to_go: Sequence[ArrayLike]) -> list[Doubles]:
    """Returns the return from each turn on, minus the mean return of the other trajectories of the group."""
    return _arrays(_native.minus_mean_return_of_others(_ragged(to_go)))


def minus_mean_return_at_turn(to_go: Sequence[ArrayLike]) -> list[Doubles]:
    """Returns the return from each turn on, minus the mean of the others from the same turn on."""
    return _arrays(_native.minus_mean_return_at_turn(_ragged(to_go)))


def by_anchor_state(
    returns: Sequence[ArrayLike],
    anchors: Sequence[Sequence[str]],
    rule: Literal["mean_std", "mean_only", "leave_one_out"] = "mean_only",
) -> list[Doubles]:
    """Compares the returns of turns that began in the same state (GiGPO, arXiv 2505.10978)."""
    return _arrays(_native.anchor_state(_ragged(returns), [list(own) for own in anchors], rule))


def mix(
    outcome: ArrayLike, turns: Sequence[ArrayLike], *, outcome_weight: float = 1.0, turn_weight: float = 1.0
) -> list[Doubles]:
    """Returns the weighted sum of the outcome's advantage and each turn's."""
    return _arrays(_native.mix(_floats(outcome), _ragged(turns), outcome_weight, turn_weight))


def spread_over_tokens(turn_advantages: ArrayLike, n_tokens: Sequence[int]) -> Doubles:
    """Assigns the advantage of each turn of one trajectory to each of its sampled tokens."""
    return np.array(_native.spread_over_tokens(_floats(turn_advantages), list(n_tokens)))


def _sequence(
    index: int, logprobs: Any, behavior: Any, advantages: Any, reference: Any, turns: Sequence[int] | None
) -> tuple[bytes, bytes, bytes, bool, bytes | None, list[int] | None]:
    own, is_uniform = _advantages(advantages)
    return (
        _doubles("logprobs", index, logprobs).tobytes(),
        _doubles("behavior", index, behavior).tobytes(),
        own.tobytes(),
        is_uniform,
        None if reference is None else _doubles("reference", index, reference).tobytes(),
        None if turns is None else [int(length) for length in turns],
    )


def _doubles(name: str, index: int, values: Any) -> Doubles:
    array = np.ascontiguousarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} of sequence {index} has {array.ndim} dimensions instead of one")
    return array


def _advantages(values: Any) -> tuple[Doubles, bool]:
    array = np.ascontiguousarray(values, dtype=np.float64)
    if np.ndim(values) > 1:
        raise ValueError(f"advantages of a sequence have {array.ndim} dimensions instead of one")
    return array.reshape(-1), np.ndim(values) == 0


def _floats(values: Any) -> list[float]:
    array: Doubles = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"an array of one dimension is needed, not of {array.ndim}")
    return [float(value) for value in array]


def _ragged(rows: Sequence[Any]) -> list[list[float]]:
    return [_floats(row) for row in rows]


def _arrays(rows: list[list[float]]) -> list[Doubles]:
    return [np.array(row, dtype=np.float64) for row in rows]
