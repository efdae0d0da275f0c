"""Serves two environments with OpenEnv's own server, for `turnwise`'s client.

    pip install openenv==0.10.0 uvicorn            # or openenv-core==0.3.0
    python openenv_server.py count 18001           # actions: say as many digits as you can
    turnwise env check openenv url=http://127.0.0.1:18001 replay=true
    turnwise train openenv.toml
    python openenv_server.py tools 18002           # tools of MCP: guess a number
    turnwise env check openenv url=http://127.0.0.1:18002 text_tool=""
"""

import random
import sys
from uuid import uuid4

import uvicorn
from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


class Say(Action):
    text: str


class Heard(Observation):
    hint: str = ""


class Count(Environment):
    """The reward is the share of digits in what is said; a task is a seed."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self._state = State(episode_id=str(uuid4()), step_count=0)

    def reset(self, seed=None, episode_id=None, **_):
        self._state = State(episode_id=episode_id, step_count=0)
        self._word = random.Random(seed).choice(["digits", "numbers", "figures"])
        return Heard(hint=f"Write {self._word}.", done=False, reward=None)

    def step(self, action, timeout_s=None, **_):
        self._state.step_count += 1
        share = sum(one.isdigit() for one in action.text) / max(len(action.text), 1)
        if action.text == "raise":
            raise ValueError("boom!")
        return Heard(hint=f"{share:.2f}", done=self._state.step_count == 2, reward=share / 2)

    @property
    def state(self):
        return self._state


def tools_app():
    from fastmcp import FastMCP
    from openenv.core.env_server.mcp_environment import MCPEnvironment
    from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation

    class Guess(MCPEnvironment):
        """A number from 0 to 9 is guessed by a tool; the third guess is the last."""

        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self):
            mcp = FastMCP("guess")

            @mcp.tool
            def guess(number: int) -> str:
                """Guesses the number.

                Args:
                    number: From 0 to 9.
                """
                if not 0 <= number <= 9:
                    raise ValueError("the number lies from 0 to 9")
                return "right" if number == self._secret else "wrong"

            super().__init__(mcp)
            self._state = State(episode_id=str(uuid4()), step_count=0)
            self._secret = 0

        def reset(self, seed=None, episode_id=None, **_):
            self._state = State(episode_id=episode_id, step_count=0)
            self._secret = random.Random(seed).randrange(10)
            return Observation(done=False, reward=0.0)

        def _step_impl(self, action, timeout_s=None, **_):
            return Observation(done=False, reward=None, metadata={"error": "call a tool"})

        def _scored(self, observation):
            self._state.step_count += 1
            right = "right" in str(getattr(observation, "result", None))
            observation.reward = right
            observation.done = right or self._state.step_count >= 3
            return observation

        def step(self, action, timeout_s=None, **kwargs):
            observation = super().step(action, timeout_s=timeout_s, **kwargs)
            return self._scored(observation) if isinstance(action, CallToolAction) else observation

        async def step_async(self, action, timeout_s=None, **kwargs):
            observation = await super().step_async(action, timeout_s=timeout_s, **kwargs)
            return self._scored(observation) if isinstance(action, CallToolAction) else observation

        @property
        def state(self):
            return self._state

    return create_app(Guess, CallToolAction, CallToolObservation, env_name="guess", max_concurrent_envs=64)


kind, port = sys.argv[1], int(sys.argv[2])
app = tools_app() if kind == "tools" else create_app(Count, Say, Heard, env_name="count", max_concurrent_envs=int((sys.argv + ["64"])[3]))
uvicorn.run(app, port=port, log_level="warning")
