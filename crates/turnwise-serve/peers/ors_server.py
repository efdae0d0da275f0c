"""Serves an environment with the Open Reward Standard's own server, for `turnwise`'s client.

    pip install openreward==0.1.167 fastapi uvicorn
    python ors_server.py 18004
    turnwise env check ors url=http://127.0.0.1:18004 replay=true
"""

import sys

import uvicorn
from openreward.environments import Environment, Server, TextBlock, ToolOutput, terminal, tool
from pydantic import BaseModel


class Text(BaseModel):
    text: str


class Digits(Environment):
    """The reward is the share of digits in the answer; `hint` may be called before it."""

    @classmethod
    def list_splits(cls):
        return ["train", "test"]

    @classmethod
    def list_tasks(cls, split):
        return [{"id": f"{split}-{number}", "word": f"digits {number}"} for number in range(20 if split == "train" else 5)]

    def get_prompt(self):
        return [TextBlock(text=f"Write {self.task_spec['word']}.")]

    @tool
    async def hint(self, params: Text) -> ToolOutput:
        """Says how much of a text is digits."""
        if params.text == "raise":
            raise RuntimeError("boom!")
        return ToolOutput(blocks=[TextBlock(text=f"{self._share(params.text):.2f} " + "x" * 5000)], reward=None, finished=False)

    @tool
    @terminal
    async def submit(self, params: Text) -> ToolOutput:
        """Ends the episode with an answer."""
        return ToolOutput(blocks=[TextBlock(text="graded")], reward=self._share(params.text), finished=True)

    @staticmethod
    def _share(text):
        return sum(one.isdigit() for one in text) / max(len(text), 1)


uvicorn.run(Server([Digits]).app, port=int(sys.argv[1]), log_level="warning")
