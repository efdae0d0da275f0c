"""What an environment in Python is: the values that it takes and returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Union

#: A message: ``{"role": "user", "content": "…"}``, with ``"tool_call_id"`` for the answer to a call.
Message = Mapping[str, Any]
#: What the agent sees next: a text of the user, a message, or several of either.
Observation = Union[str, Message, Sequence[Union[str, Message]]]


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, as the agent attempted it.

    Attributes:
        name: The tool's name as the agent wrote it; it may not exist.
        arguments: The arguments as the agent wrote them; they may not fit.
        id: The call's id, which the answer carries.
        error: What is wrong with a call that could not be read; ``None`` for one that could.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str = "call_0"
    error: str | None = None


def call(name: str, **arguments: Any) -> ToolCall:
    """Makes a call, as an expert's action: ``turnwise.call("guess", number=5)``."""
    return ToolCall(name, arguments)


class Action(str):
    """What the agent did in one turn: its text, which is the string itself.

    Attributes:
        reasoning: The thinking before the answer, if the model marks it.
        calls: The tool calls in the order in which they were written.
    """

    reasoning: str | None
    calls: tuple[ToolCall, ...]

    def __new__(cls, text: str = "", *, reasoning: str | None = None, calls: Sequence[ToolCall] = ()) -> Action:
        action = super().__new__(cls, text)
        action.reasoning = reasoning
        action.calls = tuple(calls)
        return action


@dataclass(frozen=True)
class Step:
    """The result of one action, where the three values ``(observation, reward, done)`` do not say enough.

    Attributes:
        observation: What the agent sees next; ignored at the end.
        reward: The reward of this turn. ``None`` means not scored, which is not 0.
        done: Whether the episode is over.
        solved: Whether the task was solved, for success rates; by default, whether the last reward is 1 or more.
        truncated: Whether the environment's own limit ended the episode.
        faults: Mistakes of form in this turn; each costs one unit of the agent's fault budget.
    """

    observation: Observation | None = None
    reward: float | None = None
    done: bool = False
    solved: bool | None = None
    truncated: bool = False
    faults: int = 0


class Environment(Protocol):
    """The contract of an environment: a class that is made without arguments, once for each episode.

    ``reset`` may also take ``task``, ``seed``, both, or the keys of a task that is a dictionary: what it names is passed.
    All randomness comes from the seed. Any action may come, and the answer to an agent's mistake is an observation: an
    exception means that the environment itself is broken, and the episode is tried again and never rewarded.

    The class may have the attributes ``name``, ``description``, ``instructions`` (the system prompt of a trained model),
    ``max_turns``, ``tasks``, ``tools``, ``expert`` and ``random``.
    """

    def reset(self) -> Observation:
        """Begins the episode and returns the first observation."""
        ...

    def step(self, action: Action) -> tuple[Observation | None, float | None, bool] | Step:
        """Answers one action."""
        ...
