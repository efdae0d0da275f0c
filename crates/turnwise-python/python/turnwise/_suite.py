"""Environments in Python for the runtime: what it calls, and how their values become its messages.

An environment is one of two kinds. A class with ``step`` follows the contract of :class:`turnwise.Environment`. A class
without it follows TRL's ``environment_factory``: its public methods are tools, and ``get_reward`` scores the episode.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import random
import re
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, Union

from ._environment import Action, Observation, Step, ToolCall
from ._tools import tool_spec

#: A class that is made without arguments, or a function that makes an environment.
Factory = Callable[[], Any]
#: Tasks: values that JSON can express.
Tasks = Iterable[Any]

#: The number of tasks of an environment that names none.
_N_TASKS = 256
#: Functions of a class of TRL's contract that are no tools: its own two, and the players of this package.
_NOT_TOOLS = frozenset({"reset", "get_reward", "expert", "random"})


class SuiteAdapter:
    """An environment with its tasks, players and tools, as the runtime reads it."""

    def __init__(
        self,
        factory: Factory,
        *,
        tasks: Tasks | None = None,
        held_out: float | Tasks = 0.25,
        expert: Any = None,
        random: Any = None,
        name: str | None = None,
    ) -> None:
        if not callable(factory):
            raise TypeError(
                f"the environment is a {type(factory).__name__}, which cannot be called: pass its class, or a function "
                "that makes one"
            )
        self.factory = factory
        probe = factory()
        kind = type(probe)
        self.is_tools_only = not callable(getattr(probe, "step", None))
        _check(kind, probe, self.is_tools_only)
        self.reset_takes, self.reset_takes_all = _parameters(probe.reset)
        default = getattr(factory, "__name__", kind.__name__) if inspect.isclass(factory) else kind.__name__
        self.name = _name(name or _text(probe, "name") or default)
        self.description = _text(probe, "description") or _first_line(kind) or self.name
        self.instructions = _text(probe, "instructions")
        self.max_turns = getattr(probe, "max_turns", None)
        #: The most turns that the settings allow; TRL's contract scores an episode that ends there.
        self.turn_limit: int | None = None
        self._specs = _tools_of(kind) if self.is_tools_only else _specs(getattr(probe, "tools", ()))
        self.tools = json.dumps(self._specs)
        self._expert = expert if expert is not None else getattr(probe, "expert", None)
        self._random = random if random is not None else getattr(probe, "random", None)
        self.has_expert = self._expert is not None
        self.has_random = self._random is not None
        own = tasks if tasks is not None else getattr(probe, "tasks", None)
        self._divide(own, held_out)

    def _divide(self, tasks: Any, held_out: float | Tasks) -> None:
        train = _contents(range(_N_TASKS) if tasks is None else tasks() if callable(tasks) else tasks)
        if isinstance(held_out, (int, float)):
            if not 0 < held_out < 1:
                raise ValueError(f"held_out is {held_out}, and must lie between 0 and 1, or be tasks of their own")
            self.share: float | None = float(held_out)
            later: list[str] = []
        else:
            self.share = None
            later = _contents(held_out)
            twice = set(train) & set(later)
            if twice:
                raise ValueError(f"{len(twice)} tasks are in both tasks and held_out, such as {min(twice)}")
        if not train or (self.share is None and not later):
            raise ValueError("an environment needs at least one task to train on, and one that is held out")
        self.train, self.held_out = train, later

    def begin(self, index: int) -> Episode:
        """Makes the episode of a task."""
        n = len(self.train)
        content = self.train[index] if index < n else self.held_out[index - n]
        kind = ToolEpisode if self.is_tools_only else StepEpisode
        return kind(self, self.factory(), json.loads(content))

    def player(self, kind: str, seed: int) -> Callable[[str], str]:
        """Makes a player: a function from an observation to an action, both JSON."""
        player: Any = self._expert if kind == "expert" else self._random
        numbers = random.Random(seed)
        act: Callable[[str], Any]
        if isinstance(player, type):
            own: Any = player(numbers)
            act = own.act
        else:

            def act(observation: str) -> Any:
                return player(observation, numbers)

        def play(observation: str) -> str:
            messages = json.loads(observation)["messages"]
            return _to_action(act("\n".join(message["content"] for message in messages)))

        return play

    def arguments(self, task: Any, seed: int) -> dict[str, Any]:
        """Returns what ``reset`` is called with: of task, seed and a task's own keys, those that it names."""
        row = dict(task) if isinstance(task, Mapping) else {}
        known = {**row} if self.is_tools_only else {"task": task, "seed": seed, **row}
        if self.reset_takes_all:
            return known
        return {name: value for name, value in {"task": task, "seed": seed, **row}.items() if name in self.reset_takes}


class Episode:
    """One episode: the runtime calls ``reset`` once and then ``step``, with JSON in both directions."""

    def __init__(self, suite: SuiteAdapter, environment: Any, task: Any) -> None:
        self.suite = suite
        self.environment = environment
        self.task = task

    def reset(self, seed: int) -> str:
        """Begins the episode."""
        told = wait_for(self.environment.reset(**self.suite.arguments(self.task, seed)))
        return json.dumps({"messages": self.opening(told)})

    def opening(self, told: Any) -> list[dict[str, Any]]:
        """Returns the first messages."""
        return _messages(told)

    def step(self, action: str) -> str:
        """Answers one action."""
        return json.dumps(_to_step(self.answer(_from_action(json.loads(action)))))

    def answer(self, action: Action) -> Step:
        """Answers one action."""
        raise NotImplementedError


class StepEpisode(Episode):
    """An episode of an environment with ``step``."""

    def answer(self, action: Action) -> Step:
        """Passes the action on."""
        result = wait_for(self.environment.step(action))
        if isinstance(result, Step):
            return result
        if isinstance(result, tuple) and len(result) == 3:
            observation, reward, done = result
            return Step(observation, reward, bool(done))
        raise TypeError(
            f"step returned {_brief(result)}, and must return (observation, reward, done) or a turnwise.Step"
        )


class ToolEpisode(Episode):
    """An episode of TRL's contract: calls of tools, until the agent answers without one."""

    n_turns = 0

    def opening(self, told: Any) -> list[dict[str, Any]]:
        """Returns the prompt of the row with the text of ``reset`` at the end of its last message."""
        prompt = self.task.get("prompt") if isinstance(self.task, Mapping) else None
        messages = _messages(prompt) if prompt is not None else []
        text = _plain(told)
        if text:
            if messages:
                messages[-1]["content"] += text
            else:
                messages.append({"role": "user", "content": text})
        if not messages:
            raise TypeError(
                "the agent sees nothing: the task has no `prompt`, and reset returned no text"
            )
        return messages

    def answer(self, action: Action) -> Step:
        """Calls the tools, or ends the episode with its reward."""
        self.n_turns += 1
        messages, faults = [], 0
        for own in action.calls:
            text, is_fault = self._call(own)
            messages.append({"role": "tool", "tool_call_id": own.id, "content": text})
            faults += is_fault
        at_limit = self.suite.turn_limit is not None and self.n_turns >= self.suite.turn_limit
        if messages and not at_limit:
            return Step(messages, None, faults=faults)
        return Step(reward=self._reward(), done=True, truncated=bool(messages))

    def _reward(self) -> float | None:
        score = getattr(self.environment, "get_reward", None)
        if score is None:
            raise TypeError(f"{type(self.environment).__name__} has no get_reward, which scores an episode")
        reward = wait_for(score())
        return None if reward is None else float(reward)

    def _call(self, own: ToolCall) -> tuple[str, bool]:
        """Returns the text that answers a call, and whether the call was a mistake of form."""
        if own.error is not None:
            return _tool_error(own.error), True
        if own.name not in {spec["name"] for spec in self.suite._specs}:
            return _tool_error(f"Tool {own.name} not found."), True
        tool = getattr(self.environment, own.name)
        try:
            bound = inspect.signature(tool).bind(**own.arguments)
        except TypeError as error:
            return _tool_error(str(error)), True
        try:
            return _result(wait_for(tool(*bound.args, **bound.kwargs))), False
        except Exception as error:
            return _tool_error(str(error)), False


def wait_for(value: Union[Any, Awaitable[Any]]) -> Any:
    """Returns a value, or what an awaitable gives: async environments share one event loop on a thread of its own."""
    if not inspect.isawaitable(value):
        return value

    async def awaited() -> Any:
        return await value

    return _run(awaited())


_loop: asyncio.AbstractEventLoop | None = None
_loop_lock = threading.Lock()


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    global _loop
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="turnwise-asyncio", daemon=True).start()
    return asyncio.run_coroutine_threadsafe(coroutine, _loop).result()


def _check(kind: type, probe: Any, is_tools_only: bool) -> None:
    if not callable(getattr(probe, "reset", None)):
        raise TypeError(f"{kind.__name__} has no `reset`, so it is no environment")
    if is_tools_only and not callable(getattr(probe, "get_reward", None)):
        raise TypeError(
            f"{kind.__name__} has neither `step`, as an environment of turnwise, nor `get_reward`, as one of TRL"
        )


def _parameters(reset: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Returns the names that ``reset`` takes, and whether it takes every name."""
    parameters = inspect.signature(reset).parameters.values()
    names = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    return frozenset(names), any(one.kind is one.VAR_KEYWORD for one in parameters)


def _tools_of(kind: type) -> list[dict[str, Any]]:
    """Describes the public functions of a class, as TRL finds them."""
    functions = inspect.getmembers(kind, inspect.isfunction)
    public = [one for name, one in functions if not name.startswith("_") and name not in _NOT_TOOLS]
    return [tool_spec(function) for function in public]


def _specs(tools: Any) -> list[dict[str, Any]]:
    tools = tools() if callable(tools) else tools
    return [dict(tool) if isinstance(tool, Mapping) else tool_spec(tool) for tool in tools]


def _contents(tasks: Any) -> list[str]:
    """Returns tasks as JSON, each once."""
    if hasattr(tasks, "to_dict") and hasattr(tasks, "columns"):
        tasks = tasks.to_dict("records")
    contents = []
    for task in tasks:
        try:
            contents.append(json.dumps(task, sort_keys=True, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise TypeError(f"a task must be a value that JSON can express, unlike {_brief(task)}: {error}") from None
    return list(dict.fromkeys(contents))


def _messages(told: Any) -> list[dict[str, Any]]:
    if isinstance(told, (str, Mapping)):
        return [_message(told)]
    if isinstance(told, (list, tuple)):
        return [_message(one) for one in told]
    raise TypeError(f"an observation is a text, a message, or a list of them, not {_brief(told)}")


def _message(told: Any) -> dict[str, Any]:
    if isinstance(told, str):
        return {"role": "user", "content": str(told)}
    if not isinstance(told, Mapping) or not isinstance(told.get("role"), str):
        raise TypeError(f'a message is a text or {{"role": "user", "content": "…"}}, not {_brief(told)}')
    message = {key: told[key] for key in ("role", "tool_call_id") if key in told}
    return {**message, "content": _plain(told.get("content"))}


def _plain(content: Any) -> str:
    """Returns the text of a content: a text, or a list of parts that are texts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return str(content)
    parts = content if isinstance(content, (list, tuple)) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if any(not isinstance(text, str) for text in texts):
        raise TypeError(f"only text can be shown to the model, not {_brief(content)}")
    return "".join(str(text) for text in texts)


def _to_step(step: Step) -> dict[str, Any]:
    reward = None if step.reward is None else float(step.reward)
    if reward is not None and not math.isfinite(reward):
        raise ValueError(f"the reward is {reward}, which is not a finite number")
    if step.done or step.truncated:
        solved = step.solved if step.solved is not None else reward is not None and reward >= 1.0
        ending = "truncated" if step.truncated else "terminated"
        return {"end": {"reward": reward, "ending": ending, "solved": bool(solved)}}
    observation = {"messages": _messages(step.observation)}
    return {"next": {"observation": observation, "reward": reward, "faults": int(step.faults)}}


def _from_action(action: Mapping[str, Any]) -> Action:
    calls = []
    for attempt in action.get("calls", ()):
        own = attempt.get("call")
        if own is not None:
            arguments = own["arguments"]
            wrong = None if isinstance(arguments, dict) or arguments is None else "the arguments must be an object"
            calls.append(ToolCall(own["name"], arguments if isinstance(arguments, dict) else {}, own["id"], wrong))
        else:
            own = attempt["malformed"]
            calls.append(ToolCall("", {}, own["id"], own["message"]))
    return Action(action["text"], reasoning=action.get("reasoning"), calls=calls)


def _to_action(action: Any) -> str:
    """Writes the action of a player: a text, a call, or a list of calls."""
    if isinstance(action, ToolCall):
        action = [action]
    text, calls = "", ()
    if isinstance(action, str):
        text, calls = str(action), getattr(action, "calls", ())
    elif isinstance(action, (list, tuple)) and all(isinstance(one, ToolCall) for one in action):
        calls = tuple(action)
    else:
        raise TypeError(f"a player returns a text, a turnwise.call or a list of calls, not {_brief(action)}")
    attempts = [
        {"call": {"id": f"call_{index}", "name": own.name, "arguments": dict(own.arguments)}}
        for index, own in enumerate(calls)
    ]
    return json.dumps({"text": text, "calls": attempts})


def _tool_error(text: str) -> str:
    """Returns the text of an error, which TRL writes as a dictionary of Python."""
    return str({"error": text})


def _result(value: Any) -> str:
    """Returns the text of a tool's result: a list of parts that are texts is joined, and anything else written by ``str``."""
    if isinstance(value, list) and value and all(isinstance(one, Mapping) and "text" in one for one in value):
        return _plain(value)
    return str(value)


def _name(name: str) -> str:
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return re.sub(r"[^a-z0-9._-]+", "_", snake)[:64]


def _text(probe: Any, name: str) -> str | None:
    value = getattr(probe, name, None)
    return value if isinstance(value, str) and value else None


def _first_line(kind: type) -> str | None:
    doc = (kind.__doc__ or "").strip()
    return doc.splitlines()[0] if doc else None


def _brief(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else shown[:99] + "…"
