"""Plays an episode of the calculator with OpenEnv's own clients.

    turnwise serve calculator --protocol openenv operations=1
    pip install openenv==0.10.0
    python openenv_client.py http://127.0.0.1:8000
    openenv validate --url http://127.0.0.1:8000
"""

import asyncio
import re
import sys

from openenv.core.generic_client import GenericAction, GenericEnvClient
from openenv.core.mcp_client import MCPToolClient

OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


def task(text):
    a, op, b = re.findall(r"Compute (\d+) ([-+*]) (\d+)", text)[-1]
    return int(a), op, int(b)


async def main(url):
    async with GenericEnvClient(base_url=url) as client:
        first = await client.reset(seed=4)
        a, op, b = task(first.observation["text"])
        last = await client.step(GenericAction(message=str(OPERATIONS[op](a, b))))
        state = await client.state()
        print(f"{a} {op} {b}: reward {last.reward}, done {last.done}, state {state}")
        assert last.done and last.reward == 0.5
    async with MCPToolClient(base_url=url) as client:
        first = await client.reset(seed=4)
        tools = await client.list_tools()
        print("tools:", [tool.name for tool in tools])
        result = await client.call_tool("calc", a=a, op=op, b=b)
        print("calc:", result)
        last = await client.call_tool("answer", text=str(OPERATIONS[op](a, b)))
        print("answer:", last)


asyncio.run(main(sys.argv[1]))
