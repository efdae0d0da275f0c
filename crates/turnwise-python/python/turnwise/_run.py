"""Runs: reading what they wrote, and starting them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
import numpy.typing as npt

from . import _native
from ._errors import TurnwiseError
from ._model import Policy, Row
from ._progress import Printer
from ._suite import Factory, SuiteAdapter, Tasks

if TYPE_CHECKING:
    import pandas

Path = Union[str, "os.PathLike[str]"]
#: A function that is told what happens: the name of an event, and its content.
Observer = Callable[[str, dict[str, Any]], object]


@dataclass(frozen=True)
class Success:
    """A share of solved episodes with its 95 % confidence interval."""

    success_rate: float
    ci_low: float
    ci_high: float
    episodes: int

    def __str__(self) -> str:
        return f"{self.success_rate:.3f} [{self.ci_low:.3f}, {self.ci_high:.3f}] n={self.episodes}"

    @classmethod
    def _of(cls, fields: Mapping[str, Any]) -> Success:
        return cls(fields["success_rate"], fields["ci_low"], fields["ci_high"], fields["episodes"])


@dataclass(frozen=True)
class Turn:
    """One turn of the policy.

    Attributes:
        message: The turn as a message.
        reward: The environment's reward; ``None`` means not scored.
        score: A rubric's score, on the last turn of an episode that one has graded.
        penalty: The trainer's penalty, on the last turn of an episode that got one.
        faults: Malformed calls and answers.
        stop: Why sampling stopped: ``end_of_turn``, ``max_tokens`` or ``stop_text``.
        seconds: The time from the first request to the environment's answer.
        engine: The engine that sampled.
        prompt: All ids before the first sampled token.
        ids: The sampled ids.
        logprobs: The log-probability that each was sampled with.
        advantages: The advantage of each in training; NaN where it was not scored.
        versions: The version of the weights that sampled each.
        trains: Whether each trains.
    """

    message: dict[str, Any]
    reward: float | None
    score: float | None
    penalty: float | None
    faults: int
    stop: str
    seconds: float
    engine: str
    prompt: npt.NDArray[np.uint32]
    ids: npt.NDArray[np.uint32]
    logprobs: npt.NDArray[np.float32]
    advantages: npt.NDArray[np.float32]
    versions: npt.NDArray[np.uint64]
    trains: npt.NDArray[np.bool_]

    def row(self, temperature: float = 1.0) -> Row:
        """Returns the turn as a row for a :class:`turnwise.Learner`: its sampled tokens are the targets."""
        start = len(self.prompt)
        return Row(np.concatenate([self.prompt, self.ids]), np.arange(start, start + len(self.ids)), temperature)


@dataclass(frozen=True)
class Episode:
    """One episode, as a trajectory of one seat.

    Attributes:
        environment: The name of the environment.
        task: The key of the task's content.
        task_index: The index of the task in its set.
        group: The group whose episodes are compared.
        member: The index in the group.
        attempt: The number of attempts that broke before.
        environment_seed: The seed of ``reset``.
        sampling_seed: The seed of the sampler.
        outcome: How it ended, as a word: ``done``, ``truncated_turns``, ``infra_env_error`` and so on.
        fault: What broke, for an infrastructure fault.
        solved: Whether the task was solved.
        reward: The sum of its rewards; ``None`` if it was not scored.
        seat: The seat in an environment with several.
        messages: The conversation.
        turns: The turns of the policy.
    """

    environment: str
    task: str
    task_index: int
    group: int
    member: int
    attempt: int
    environment_seed: int
    sampling_seed: int
    outcome: str
    fault: str | None
    solved: bool
    reward: float | None
    seat: int
    messages: list[dict[str, Any]]
    turns: list[Turn]

    @property
    def ids(self) -> npt.NDArray[np.uint32]:
        """The sampled ids of all turns."""
        return _joined([turn.ids for turn in self.turns], np.uint32)

    @property
    def logprobs(self) -> npt.NDArray[np.float32]:
        """The log-probabilities of all sampled tokens."""
        return _joined([turn.logprobs for turn in self.turns], np.float32)

    @property
    def versions(self) -> npt.NDArray[np.uint64]:
        """The versions of all sampled tokens."""
        return _joined([turn.versions for turn in self.turns], np.uint64)

    @property
    def advantages(self) -> npt.NDArray[np.float32]:
        """The advantages of all sampled tokens; NaN where one was not scored."""
        return _joined([turn.advantages for turn in self.turns], np.float32)

    @classmethod
    def _of(cls, fields: Mapping[str, Any]) -> Episode:
        record = json.loads(fields["record"])
        identity = record["identity"]
        names = ("environment", "task", "task_index", "group", "member", "attempt", "environment_seed", "sampling_seed")
        return cls(
            **{name: identity[name] for name in names},
            **{name: record[name] for name in ("outcome", "fault", "solved", "reward", "seat", "messages")},
            turns=[_turn(turn) for turn in fields["turns"]],
        )


@dataclass(frozen=True)
class Check:
    """A check of an environment's contract.

    Attributes:
        name: What must hold.
        passed: Whether it does.
        detail: What was seen, or what is wrong.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of a model.

    Attributes:
        success: The share of solved episodes.
        reward_mean: The mean reward.
        n_broken: Episodes that broke in spite of new attempts; they are not scored.
        episodes: The episodes.
    """

    success: Success
    reward_mean: float
    n_broken: int
    episodes: list[Episode]


class Run:
    """A run, by its directory: finished, stopped, or going on."""

    def __init__(self, path: Path) -> None:
        """Opens the directory of a run.

        Raises:
            ValueError: If it holds no run.
        """
        self.path = os.fspath(path)
        self._reader = _native.RunReader(self.path)

    def __repr__(self) -> str:
        return f"turnwise.Run({self.path!r})"

    @property
    def state(self) -> Literal["going", "stopped", "finished"]:
        """What the run is doing."""
        return self._reader.state  # type: ignore[return-value]

    @property
    def config(self) -> dict[str, Any]:
        """Every setting of the run, defaults included."""
        settings: dict[str, Any] = json.loads(self._reader.settings())
        return settings

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the run wrote at its end: both evaluations, their difference, a verdict, warnings; ``None`` before it."""
        try:
            with open(os.path.join(self.path, "summary.json"), encoding="utf-8") as file:
                summary: dict[str, Any] = json.load(file)
        except FileNotFoundError:
            return None
        return summary

    @property
    def before(self) -> Success | None:
        """Success on held-out tasks before reinforcement learning."""
        return dict(self._successes()).get("before")

    @property
    def after(self) -> Success | None:
        """Success on held-out tasks at the end."""
        return dict(self._successes()).get("after")

    def metrics(self) -> pandas.DataFrame | dict[str, npt.NDArray[np.float64]]:
        """Returns the metrics of every step: a pandas ``DataFrame`` with the step as its index, or, without pandas, a
        dictionary of arrays with the key ``step`` among them. A metric that a step lacks is NaN.
        """
        columns = self.metric_arrays()
        try:
            import pandas
        except ImportError:
            return columns
        steps = columns.pop("step")
        return pandas.DataFrame(columns, index=pandas.Index(steps.astype(np.int64), name="step"))

    def metric_arrays(self) -> dict[str, npt.NDArray[np.float64]]:
        """Returns the metrics of every step as NumPy arrays, by name."""
        rows = json.loads(self._reader.metrics())
        names = dict.fromkeys(name for row in rows for name, value in row.items() if _is_number(value))
        values = {name: [row.get(name) for row in rows] for name in names}
        return {
            name: np.array([value if _is_number(value) else np.nan for value in column], dtype=np.float64)
            for name, column in values.items()
        }

    def events(self) -> list[dict[str, Any]]:
        """Returns the events of the run, such as ``start``, ``checkpoint``, ``eval`` and ``end``."""
        events: list[dict[str, Any]] = json.loads(self._reader.events())
        return events

    def evaluations(self) -> pandas.DataFrame | list[dict[str, Any]]:
        """Returns the evaluations, oldest first: a ``DataFrame``, or, without pandas, a list of dictionaries, with the
        columns ``name``, ``success_rate``, ``ci_low``, ``ci_high`` and ``episodes``.
        """
        rows = [{"name": name, **vars(success)} for name, success in self._successes()]
        try:
            import pandas
        except ImportError:
            return rows
        return pandas.DataFrame(rows, columns=["name", "success_rate", "ci_low", "ci_high", "episodes"])

    def _successes(self) -> list[tuple[str, Success]]:
        return [(name, Success._of(record)) for name, record in json.loads(self._reader.evaluations())]

    def steps(self) -> list[int]:
        """Returns the steps of which the run kept episodes (``log.rollouts_per_step`` of each)."""
        return self._reader.episode_files()[0]

    def episodes(self, *, step: int | None = None, evaluation: str | None = None) -> list[Episode]:
        """Returns the episodes that the run kept.

        Args:
            step: Those of one training step; by default those of all steps.
            evaluation: Those of an evaluation: ``before``, ``after`` or ``step-000100``.
        """
        if evaluation is not None:
            if step is not None:
                raise ValueError("name a step or an evaluation, not both")
            return [Episode._of(fields) for fields in self._reader.episodes(evaluation=evaluation)]
        steps = self.steps() if step is None else [step]
        return [Episode._of(fields) for one in steps for fields in self._reader.episodes(step=one)]

    def damage(self) -> list[str]:
        """Returns what is damaged in the run's files and left out by the other methods, as sentences."""
        return self._reader.damage()

    def checkpoint(self) -> str:
        """Returns the directory of the newest checkpoint, which is a model directory."""
        folder = os.path.join(self.path, "checkpoints")
        names = sorted(name for name in _listed(folder) if os.path.isfile(os.path.join(folder, name, "config.json")))
        if not names:
            raise FileNotFoundError(f"the run {self.path} has no checkpoint yet")
        return os.path.join(folder, names[-1])

    def policy(self, engine: Mapping[str, Any] | None = None) -> Policy:
        """Loads the newest checkpoint as a policy."""
        return Policy(self.checkpoint(), engine=engine)


def train(
    environment: str | Factory | None = None,
    config: Path | Mapping[str, Any] | None = None,
    *,
    tasks: Tasks | None = None,
    held_out: float | Tasks = 0.25,
    expert: Any = None,
    random: Any = None,
    name: str | None = None,
    directory: Path | None = None,
    quiet: bool = False,
    observer: Observer | None = None,
    **settings: Any,
) -> Run:
    """Trains a model on an environment, and returns the run.

    Ctrl-C stops the run after its current work, with a checkpoint, and raises ``KeyboardInterrupt``; :func:`resume` goes on
    with it. A second Ctrl-C ends the wait.

    Args:
        environment: A class with ``reset`` and ``step`` (:class:`Environment`), one of TRL's ``environment_factory``, a
            function that makes either, or the name of an environment of turnwise; by default the one in the settings.
        config: A TOML file, as ``turnwise train`` takes it, or settings as a dictionary of tables. Keys may be dotted:
            ``{"run.steps": 20}``.
        tasks: The tasks, values that JSON can express; by default the ``tasks`` of the class, or 256 numbers.
        held_out: The share of tasks that are never trained on, or tasks of their own.
        expert: Plays episodes that are worth imitating, for ``warm_start``: a function of an observation and a
            ``random.Random`` that returns a text, or a :func:`turnwise.call`; or a class with ``act(observation)``.
        random: The same for a player that knows the form of an answer and no more.
        name: The name of the environment; by default that of the class.
        directory: The directory of the run; by default ``runs/NAME-0001``, counted up.
        quiet: Whether nothing is printed.
        observer: A function that is told what happens. Its exceptions end the run.
        **settings: Further tables of settings, which win over ``config``: ``run={"steps": 20}``.

    Returns:
        The finished run, with ``before`` and ``after``.

    Raises:
        Refused: If the settings, the model and the environment do not fit. Nothing has begun.
        TooManyFaults: If the environment breaks too often; the text has the last exception.
        TurnwiseError: If the run fails otherwise.
    """
    adapter, overrides = _environment(environment, tasks, held_out, expert, random, name)
    file, text, more = _settings(config, settings)
    read = _native.Settings(file=file, json=text, overrides=more + overrides, environment=adapter)
    if adapter is not None:
        adapter.turn_limit = read.max_turns
    label = _label(environment, adapter, file)
    told = _told(quiet, observer, adapter)
    where = None if directory is None else os.fspath(directory)
    with _in_python(adapter):
        path, _ = _native.train(read, name=label, directory=where, observer=told)
    return Run(path)


def resume(
    run: Run | Path,
    environment: Factory | None = None,
    *,
    steps: int | None = None,
    tasks: Tasks | None = None,
    held_out: float | Tasks = 0.25,
    expert: Any = None,
    random: Any = None,
    name: str | None = None,
    quiet: bool = False,
    observer: Observer | None = None,
) -> Run:
    """Resumes a run that was stopped or killed, up to its number of steps or to ``steps`` instead.

    The environment and its tasks must be those of the run.
    """
    path = run.path if isinstance(run, Run) else os.fspath(run)
    adapter, _ = _environment(environment, tasks, held_out, expert, random, name)
    if adapter is not None:
        adapter.turn_limit = Run(path).config["limits"]["max_turns"]
    with _in_python(adapter):
        _native.resume(path, steps=steps, environment=adapter, observer=_told(quiet, observer, adapter))
    return Run(path)


def evaluate(
    model: Run | Path,
    environment: str | Factory | None = None,
    *,
    tasks: Tasks | None = None,
    held_out: float | Tasks = 0.25,
    expert: Any = None,
    random: Any = None,
    name: str | None = None,
    quiet: bool = True,
    observer: Observer | None = None,
    **settings: Any,
) -> Evaluated:
    """Measures a model's success on held-out tasks.

    Args:
        model: A run (its newest checkpoint), a checkpoint, a model directory, or the name of a model in the Hugging Face
            cache. The settings beside the model count, followed by ``settings``.
        environment: As for :func:`train`, like ``tasks``, ``held_out`` and ``name``.
        expert: Not needed, unless the settings name the expert as the opponent.
        random: The same for the random player.
        quiet: Whether nothing is printed.
        observer: A function that is told what happens.
        **settings: Tables of settings: ``eval={"episodes": 64}``.
    """
    path = model.path if isinstance(model, Run) else os.fspath(model)
    adapter, overrides = _environment(environment, tasks, held_out, expert, random, name)
    _, _, more = _settings(None, settings)
    if adapter is not None:
        adapter.turn_limit = settings.get("limits", {}).get("max_turns")
    with _in_python(adapter):
        result, lines = _native.evaluate(
            path, overrides=more + overrides, environment=adapter, observer=_told(quiet, observer, adapter)
        )
    fields = json.loads(result)
    episodes = [Episode._of(one) for one in _native.read_episodes(lines)]
    return Evaluated(Success._of(fields["record"]), fields["reward_mean"], fields["n_broken"], episodes)


def check(
    environment: Factory,
    *,
    tasks: Tasks | None = None,
    held_out: float | Tasks = 0.25,
    expert: Any = None,
    random: Any = None,
    name: str | None = None,
) -> list[Check]:
    """Plays sampled tasks of an environment and checks its contract: equal seeds give equal episodes, rewards are finite,
    hostile actions are answered, and so on. Arguments are those of :func:`train`; an ``expert`` must solve its tasks.
    """
    adapter = SuiteAdapter(environment, tasks=tasks, held_out=held_out, expert=expert, random=random, name=name)
    return [Check(*found) for found in _native.check(adapter)]


@contextmanager
def _in_python(adapter: SuiteAdapter | None) -> Iterator[None]:
    """Names functions where an error's help names commands, which do not know an environment in Python."""
    try:
        yield
    except TurnwiseError as error:
        if adapter is None:
            raise
        text = re.sub(r"\bturnwise env check \S+", "turnwise.check(environment)", str(error))
        text = re.sub(r"\bturnwise resume (\S+)", r'turnwise.resume("\1", environment)', text)
        raise type(error)(text, error.exit_code) from None


def _environment(
    environment: str | Factory | None,
    tasks: Tasks | None,
    held_out: float | Tasks,
    expert: Any,
    random: Any,
    name: str | None,
) -> tuple[SuiteAdapter | None, list[str]]:
    """Returns the adapter of an environment in Python, and the setting that names the environment."""
    if environment is None:
        return None, []
    if isinstance(environment, str):
        return None, [f"environment.name={_toml(environment)}"]
    adapter = SuiteAdapter(environment, tasks=tasks, held_out=held_out, expert=expert, random=random, name=name)
    return adapter, [f"environment.name={_toml(adapter.name)}"]


def _label(environment: str | Factory | None, adapter: SuiteAdapter | None, file: str | None) -> str:
    """Returns the name of a run's directory, without its number."""
    if adapter is not None:
        return adapter.name
    if isinstance(environment, str):
        return environment
    return os.path.splitext(os.path.basename(file))[0] if file else "run"


def _settings(
    config: Path | Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> tuple[str | None, str | None, list[str]]:
    """Returns the file, the settings as JSON, and the overrides."""
    overrides = [f"{key}={_toml(value)}" for key, value in _leaves(settings)]
    if config is None:
        return None, None, overrides
    if not isinstance(config, Mapping):
        return os.fspath(config), None, overrides
    tables: dict[str, Any] = {}
    for key, value in _leaves(config):
        *parents, last = key.split(".")
        table = tables
        for parent in parents:
            table = table.setdefault(parent, {})
        table[last] = value
    return None, json.dumps(tables, default=os.fspath), overrides


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Iterates over dotted keys and values; ``None`` leaves a setting at its default."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def _toml(value: Any) -> str:
    """Writes a value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float, np.integer, np.floating)):
        return repr(value.item() if isinstance(value, (np.integer, np.floating)) else value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(own)}" for key, own in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return json.dumps(value if isinstance(value, str) else os.fspath(value), ensure_ascii=False)


def _told(
    quiet: bool, observer: Observer | None, adapter: SuiteAdapter | None
) -> Callable[[str, str], None] | None:
    """Returns the function that the runtime calls with the name of an event and its content as JSON."""
    told: list[Observer] = [] if quiet else [Printer(is_in_python=adapter is not None)]
    if observer is not None:
        told.append(observer)
    if not told:
        return None

    def tell(event: str, content: str) -> None:
        fields = json.loads(content)
        for one in told:
            one(event, fields)

    return tell


def _turn(fields: Mapping[str, Any]) -> Turn:
    return Turn(
        **json.loads(fields["record"]),
        prompt=np.frombuffer(fields["prompt"], dtype=np.uint32),
        ids=np.frombuffer(fields["ids"], dtype=np.uint32),
        logprobs=np.frombuffer(fields["logprobs"], dtype=np.float32),
        advantages=np.frombuffer(fields["advantages"], dtype=np.float32),
        versions=np.frombuffer(fields["versions"], dtype=np.uint64),
        trains=np.frombuffer(fields["trains"], dtype=np.uint8).astype(np.bool_),
    )


def _joined(columns: list[npt.NDArray[Any]], kind: Any) -> npt.NDArray[Any]:
    return np.concatenate(columns) if columns else np.array([], dtype=kind)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
