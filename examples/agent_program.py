"""An agent that is a program of its own: it plays an environment of turnwise with OpenAI's client.

    pip install openai
    turnwise train examples/agent_program.toml

`turnwise` starts it once for each episode. It finds the model that is trained at OPENAI_BASE_URL, which the client reads, and the
environment at TURNWISE_SESSION. What it says to the model, in what order, and with which tools, is its own business.
"""

import json
import os
import urllib.request

from openai import OpenAI


def environment(route, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"{os.environ['TURNWISE_SESSION']}/{route}", data) as answer:
        return json.load(answer)


model, task = OpenAI(), environment("task")
messages, done = task["messages"], False
tools = {"tools": task["tools"]} if task["tools"] else {}
while not done:
    reply = model.chat.completions.create(model="turnwise", messages=messages, **tools).choices[0].message
    calls = [{"id": call.id, "name": call.function.name, "arguments": json.loads(call.function.arguments)}
             for call in reply.tool_calls or []]
    step = environment("step", {"content": reply.content or "", "tool_calls": calls})
    messages += [reply.model_dump(exclude_none=True), *step["messages"]]
    done = step["done"]
