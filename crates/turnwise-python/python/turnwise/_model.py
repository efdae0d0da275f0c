"""Policy, learner and tokenizer: the engine and the trainer in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from . import _native
from ._objective import Advantages, Loss, step_loss

Path = Union[str, "os.PathLike[str]"]
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Sample:
    """Tokens that a policy sampled.

    Attributes:
        ids: The tokens, a stop token included.
        logprobs: The log-probability that each was sampled with, after temperature and truncation.
        versions: The version of the weights that sampled each.
        stop: ``end_of_turn`` after a stop token, or ``max_tokens``.
        kept: The ids that top-k, top-p or min-p kept at each token; empty if every token came from the whole vocabulary.
    """

    ids: Ids
    logprobs: Floats
    versions: npt.NDArray[np.uint64]
    stop: str
    kept: list[list[int]]


@dataclass
class Row:
    """One sequence for a learner.

    Attributes:
        ids: All tokens, from the first of the prompt to the last that was sampled.
        targets: The positions in ``ids`` of the tokens whose log-probability is needed; at least 1 each.
        temperature: The temperature that divides the logits, as at sampling time: one number, or one for each target.
        kept: For a target that was sampled from a truncated distribution, by its index: the ids that truncation kept.
    """

    ids: npt.ArrayLike
    targets: npt.ArrayLike
    temperature: npt.ArrayLike = 1.0
    kept: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, prompt: npt.ArrayLike, sample: Sample, temperature: float = 1.0) -> Row:
        """Makes the row of a prompt and what was sampled after it; every sampled token is a target."""
        start = len(_ids(prompt))
        ids = np.concatenate([_ids(prompt), sample.ids])
        kept = {index: ids for index, ids in enumerate(sample.kept) if ids}
        return cls(ids, np.arange(start, start + len(sample.ids)), temperature, kept)

    def _columns(self) -> tuple[bytes, bytes, bytes, dict[int, list[int]]]:
        targets = _ids(self.targets)
        temperatures = np.broadcast_to(np.asarray(self.temperature, dtype=np.float32), targets.shape)
        kept = {int(index): [int(id) for id in ids] for index, ids in self.kept.items()}
        return _ids(self.ids).tobytes(), targets.tobytes(), temperatures.tobytes(), kept


@dataclass(frozen=True)
class Updated:
    """An optimiser step.

    Attributes:
        grad_norm: The Euclidean norm of the accumulated gradient, before it was scaled down.
        applied: False if the gradient was not finite; the weights are then unchanged.
        not_finite: The first parameter whose gradient was not finite, if it is known.
    """

    grad_norm: float
    applied: bool
    not_finite: str | None = None


class Policy:
    """An inference engine, which samples tokens from a model.

    Under fixed weights, the tokens are a function of prompt, sampling settings, seed and first index.
    """

    def __init__(self, model: Path, *, base: Path | None = None, engine: Mapping[str, Any] | None = None) -> None:
        """Loads a model: a Hugging Face directory, a GGUF file, an adapter, or a checkpoint of a run.

        Args:
            model: The path.
            base: The base of an adapter, if its files do not name it.
            engine: Settings of the engine, as in the table ``[engine]`` of a run.
        """
        self._native = _native.Policy.load(os.fspath(model), _path(base), _json(engine))

    @classmethod
    def _of(cls, native: _native.Policy) -> Policy:
        policy = cls.__new__(cls)
        policy._native = native
        return policy

    @property
    def version(self) -> int:
        """The newest version of the weights that the engine serves."""
        return self._native.version

    def sample(
        self,
        prompt: npt.ArrayLike,
        max_tokens: int,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        seed: int = 0,
        stop: Iterable[int] = (),
        first_index: int = 0,
    ) -> Sample:
        """Samples the next tokens.

        Args:
            prompt: The ids before the first token to sample.
            max_tokens: The most tokens; at least 1.
            temperature: The divisor of the logits; 0 takes the most likely token.
            top_p: Samples from the most likely tokens whose probabilities reach this sum.
            top_k: Samples from this many of the most likely tokens; 0 for all.
            min_p: Samples from tokens at least this fraction as likely as the most likely one.
            seed: The seed. Token i uses the random number at (seed, ``first_index`` + i).
            stop: Sampling ends after one of these ids.
            first_index: The number of tokens that were sampled before with this seed.
        """
        options = (temperature, top_p, top_k, min_p)
        return self._sample([prompt], [seed], max_tokens, options, stop, first_index)[0]

    def sample_many(
        self,
        prompts: Sequence[npt.ArrayLike],
        max_tokens: int,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        seeds: Sequence[int] | None = None,
        stop: Iterable[int] = (),
    ) -> list[Sample]:
        """Samples after several prompts at the same time, which takes much less time than one after the other.

        Args:
            prompts: The prompts.
            max_tokens: The most tokens of each.
            temperature: As in :meth:`sample`, like ``top_p``, ``top_k``, ``min_p`` and ``stop``.
            seeds: A seed for each prompt; by default 0, 1, 2 and so on.
        """
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts")
        return self._sample(prompts, list(seeds), max_tokens, (temperature, top_p, top_k, min_p), stop, 0)

    def _sample(
        self,
        prompts: Sequence[npt.ArrayLike],
        seeds: list[int],
        max_tokens: int,
        options: tuple[float, float, int, float],
        stop: Iterable[int],
        first_index: int,
    ) -> list[Sample]:
        columns = [_ids(prompt).tobytes() for prompt in prompts]
        answers = self._native.sample(columns, seeds, max_tokens, options, [int(id) for id in stop], first_index)
        return [
            Sample(
                ids=np.frombuffer(answer["ids"], dtype=np.uint32),
                logprobs=np.frombuffer(answer["logprobs"], dtype=np.float32),
                versions=np.frombuffer(answer["versions"], dtype=np.uint64),
                stop=answer["stop"],
                kept=answer["kept"],
            )
            for answer in answers
        ]


class Learner:
    """A model that computes log-probabilities and takes the gradient of a loss with respect to each of them.

    The loss crosses the boundary as numbers: :meth:`accumulate` shows log-probabilities to a function, which returns their
    gradient. Only :meth:`step` changes the weights, and only :meth:`publish` shows them to the policies.
    """

    def __init__(
        self,
        model: Path,
        *,
        base: Path | None = None,
        optimizer: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Loads a model: a Hugging Face directory, a GGUF file, an adapter, or a checkpoint of a run.

        Args:
            model: The path.
            base: The base of an adapter, if its files do not name it. The adapter trains, and nothing else.
            optimizer: Settings of AdamW: ``beta1``, ``beta2``, ``epsilon``, ``weight_decay``, ``moments``.
            settings: Settings of the computation: ``threads``, ``recompute_layers``, ``compute``, ``balance``.
        """
        self._native = _native.Learner.load(os.fspath(model), _path(base), _json(optimizer), _json(settings))

    @classmethod
    def random(
        cls,
        vocab_size: int,
        *,
        seed: int = 1,
        optimizer: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        **sizes: int,
    ) -> Learner:
        """Makes a small model with random weights, the same for the same seed on every machine.

        Args:
            vocab_size: The size of the vocabulary.
            seed: The seed of the weights.
            optimizer: Settings of AdamW.
            settings: Settings of the computation.
            sizes: ``hidden_size``, ``intermediate_size``, ``n_layers``, ``n_heads``, ``n_kv_heads``, ``head_dim``,
                ``max_positions``.
        """
        learner = cls.__new__(cls)
        learner._native = _native.Learner.random(vocab_size, seed, _json(sizes), _json(optimizer), _json(settings))
        return learner

    def policy(self, engine: Mapping[str, Any] | None = None) -> Policy:
        """Makes an engine that samples with the weights that this learner published last, now and later."""
        return Policy._of(self._native.policy(_json(engine)))

    @property
    def version(self) -> int:
        """The version that was published last."""
        return self._native.version

    @property
    def n_weights(self) -> int:
        """The number of the model's weights."""
        return self._native.n_weights

    @property
    def vocab_size(self) -> int:
        """The size of the model's vocabulary."""
        return self._native.vocab_size

    def logprobs(self, rows: Sequence[Row]) -> list[Floats]:
        """Returns the log-probability of each target of each row, under the current weights."""
        return _floats(self._native.logprobs([row._columns() for row in rows], False))

    def keep_reference(self) -> None:
        """Keeps a copy of the current weights as the reference policy."""
        self._native.keep_reference()

    def reference_logprobs(self, rows: Sequence[Row]) -> list[Floats]:
        """Returns the log-probability of each target of each row, under the weights that :meth:`keep_reference` kept."""
        return _floats(self._native.logprobs([row._columns() for row in rows], True))

    def check_gradients(self) -> None:
        """Raises an exception if a trainable parameter would get no gradient."""
        self._native.check_gradients()

    def accumulate(
        self, rows: Sequence[Row], gradient: Callable[[list[Floats]], Sequence[npt.ArrayLike]]
    ) -> None:
        """Adds to the gradient of the weights.

        Args:
            rows: The rows.
            gradient: A function that gets the log-probabilities of the targets, an array for each row, and returns
                ∂loss/∂log π for each of them, in the same shape.
        """

        def answer(columns: list[bytearray]) -> list[bytes]:
            return [np.ascontiguousarray(own, dtype=np.float32).tobytes() for own in gradient(_floats(columns))]

        self._native.accumulate([row._columns() for row in rows], answer)

    def step(self, learning_rate: float, *, max_grad_norm: float = 1.0) -> Updated:
        """Updates the weights by the accumulated gradient, and clears it."""
        return Updated(*self._native.step(learning_rate, max_grad_norm))

    def publish(self) -> int:
        """Publishes the current weights to the policies, and returns their version."""
        return self._native.publish()

    def update(
        self,
        rows: Sequence[Row],
        behavior: Sequence[npt.ArrayLike],
        advantages: Sequence[Advantages],
        *,
        learning_rate: float,
        max_grad_norm: float = 1.0,
        objective: str = "gspo_token",
        **settings: Any,
    ) -> tuple[Loss, Updated]:
        """Takes one step of an objective on rows, each of them a ratio group of its own, and publishes the weights.

        Args:
            rows: The rows.
            behavior: The log-probability that each target was sampled with, an array for each row.
            advantages: For each row one number, or an array with one for each target.
            learning_rate: The learning rate.
            max_grad_norm: The norm to which a larger gradient is scaled down.
            objective: The objective, with ``settings`` as :func:`turnwise.step_loss` takes them.

        Returns:
            The loss before the step, and the optimiser's report.
        """
        losses: list[Loss] = []

        def gradient(logprobs: list[Floats]) -> list[npt.NDArray[np.float64]]:
            losses.append(step_loss(objective, logprobs, behavior, advantages, **settings))
            return losses[-1].gradients

        self.accumulate(rows, gradient)
        updated = self.step(learning_rate, max_grad_norm=max_grad_norm)
        self.publish()
        return losses[-1], updated

    def save(self, directory: Path) -> None:
        """Writes the weights, in the form that transformers reads, and the optimiser's state. The directory is made."""
        self._native.save(os.fspath(directory))

    def load(self, directory: Path, version: int) -> None:
        """Reads what :meth:`save` wrote, and publishes it as ``version``."""
        self._native.restore(os.fspath(directory), version)


class Tokenizer:
    """A tokenizer. Text never becomes a control token unless ``markers`` asks for it."""

    def __init__(self, path: Path) -> None:
        """Reads ``tokenizer.json`` in a directory, or a file of that form."""
        self._native = _native.Tokenizer.read(os.fspath(path))

    @classmethod
    def train(cls, texts: Iterable[str], n_ids: int) -> Tokenizer:
        """Trains a byte-level tokenizer with at most ``n_ids`` ids, at least 265."""
        tokenizer = cls.__new__(cls)
        tokenizer._native = _native.Tokenizer.train(list(texts), n_ids)
        return tokenizer

    @property
    def n_ids(self) -> int:
        """The number of ids."""
        return self._native.n_ids

    def token_id(self, token: str) -> int | None:
        """Returns the id of a token such as ``<|im_end|>``, if the tokenizer has it."""
        return self._native.token_id(token)

    def encode(self, text: str, *, markers: bool = False) -> Ids:
        """Returns the ids of a text; with ``markers``, control tokens in the text are read as such."""
        return np.array(self._native.encode(text, markers), dtype=np.uint32)

    def decode(self, ids: npt.ArrayLike, *, skip_special: bool = False) -> str:
        """Returns the text of ids."""
        return self._native.decode([int(id) for id in _ids(ids)], skip_special)

    def save(self, directory: Path) -> None:
        """Writes ``tokenizer.json`` and the files beside it into a directory, which is made."""
        os.makedirs(directory, exist_ok=True)
        self._native.save(os.fspath(directory))


def _ids(values: Any) -> Ids:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"ids have {array.ndim} dimensions instead of one")
    if array.size and not (np.issubdtype(array.dtype, np.integer) and array.min() >= 0 and array.max() < 2**32):
        raise ValueError("ids are integers from 0 to below 2^32")
    return np.ascontiguousarray(array, dtype=np.uint32)


def _floats(columns: list[bytearray]) -> list[Floats]:
    return [np.frombuffer(column, dtype=np.float32) for column in columns]


def _path(path: Path | None) -> str | None:
    return None if path is None else os.fspath(path)


def _json(settings: Mapping[str, Any] | None) -> str:
    return json.dumps(dict(settings or {}))
