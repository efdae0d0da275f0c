"""An agent of a framework, OpenAI's Agents SDK, with a tool, tasks and rewards of its own.

    pip install openai-agents
    turnwise train examples/agent_framework.toml

The framework keeps the conversation, runs the tool, and decides when the agent is done; nothing in it knows of turnwise. This file
alone knows that TURNWISE_TASK numbers the tasks and that /reward takes the reward.
"""

import json
import os
import random
import re
import urllib.request

from agents import Agent, ModelSettings, Runner, function_tool, set_tracing_disabled
from agents.exceptions import AgentsException

set_tracing_disabled(True)
OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


@function_tool
def calc(a: int, b: int, op: str) -> str:
    """Computes a op b, where op is + or - or *."""
    return str(OPERATIONS[op](a, b)) if op in OPERATIONS else "error: op is + or - or *"


def call(a, op, b):
    return json.dumps({"name": "calc", "arguments": {"a": a, "b": b, "op": op}})


def example(a, op, b):
    """A task as it should go. The template of SmolLM2 does not know tools, and this is how it writes a call."""
    result = OPERATIONS[op](a, b)
    return [{"role": "user", "content": f"Compute {a} {op} {b}."},
            {"role": "assistant", "content": f"<tool_call>\n{call(a, op, b)}\n</tool_call>"},
            {"role": "user", "content": f"<tool_response>\n{result}\n</tool_response>"},
            {"role": "assistant", "content": str(result)}]


dice = random.Random(int(os.environ["TURNWISE_TASK"]))
a, op, b = dice.randint(11, 39), dice.choice("+-*"), dice.randint(11, 39)
agent = Agent(name="Calculator", model="turnwise", tools=[calc], model_settings=ModelSettings(max_tokens=48),
              instructions="Compute with the tool calc, then answer with the number.")
asked = [*example(3, "+", 4), *example(5, "*", 6), {"role": "user", "content": f"Compute {a} {op} {b}."}]
try:
    answer = str(Runner.run_sync(agent, asked, max_turns=4).final_output)
except AgentsException:  # Too many turns, or a call of a tool that there is not.
    answer = ""
right = re.findall(r"-?\d+", answer)[-1:] == [str(OPERATIONS[op](a, b))]
reward = json.dumps({"reward": float(right), "solved": right}).encode()
urllib.request.urlopen(f"{os.environ['TURNWISE_SESSION']}/reward", reward).close()
