"""Asks for turns in every way that OpenAI's client has. An assertion that fails makes the episode a fault."""

import asyncio
import json
import os
import urllib.request

from openai import AsyncOpenAI, BadRequestError, OpenAI

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"name": "calc", "description": "Doubles a number.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": TOOL}]
SAID = [{"role": "system", "content": "Call calc."}, {"role": "user", "content": "4"}]
client = OpenAI(max_retries=0)
assert client.models.list().data[0].id == "turnwise"


def result(call_id):
    return {"role": "tool", "tool_call_id": call_id, "content": "8"}


def chat(messages, **more):
    return client.chat.completions.create(model="any", messages=messages, tools=TOOLS, **more)


# A turn that calls a tool, and one that continues the conversation.
whole = chat(SAID, logprobs=True)
choice = whole.choices[0]
assert choice.finish_reason == "tool_calls", whole
call = choice.message.tool_calls[0]
assert call.function.name == "calc" and isinstance(json.loads(call.function.arguments)["a"], int), call
logprobs = choice.logprobs.content
assert len(logprobs) == whole.usage.completion_tokens > 0 and all(token.logprob <= 0 for token in logprobs)
continued = [*SAID, choice.message.model_dump(exclude_none=True), result(call.id)]
again = chat(continued)
assert again.usage.prompt_tokens > whole.usage.total_tokens, (whole.usage, again.usage)

# The same in pieces.
with client.chat.completions.stream(model="any", messages=continued, tools=TOOLS,
                                    stream_options={"include_usage": True}) as stream:
    for _ in stream:
        pass
    streamed = stream.get_final_completion()
assert streamed.choices[0].message.tool_calls[0].function.name == "calc", streamed
assert streamed.usage.completion_tokens > 0

# Two answers, a turn of few tokens, one that ends at a text.
assert [choice.index for choice in chat(SAID, n=2).choices] == [0, 1]
short = chat(SAID, max_completion_tokens=3)
assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3, short
stopped = chat(SAID, stop=["name"])
assert "name" not in stopped.choices[0].message.content and stopped.choices[0].finish_reason == "stop", stopped


async def at_once():
    client = AsyncOpenAI(max_retries=0)
    asked = [client.chat.completions.create(model="any", messages=[{"role": "user", "content": str(n)}], tools=TOOLS)
             for n in range(3)]
    return await asyncio.gather(*asked)


assert all(one.choices[0].message.tool_calls for one in asyncio.run(at_once()))

# Responses: the items of a turn come back.
tools = [{"type": "function", "strict": False, **TOOL}]
asked = [{"role": "user", "content": "5"}]
response = client.responses.create(model="any", instructions="Call calc.", input=asked, tools=tools)
assert response.status == "completed" and response.output[0].type == "function_call", response
asked += [item.model_dump(exclude_none=True) for item in response.output]
asked.append({"type": "function_call_output", "call_id": response.output[0].call_id, "output": "10"})
with client.responses.stream(model="any", instructions="Call calc.", input=asked, tools=tools) as stream:
    for _ in stream:
        pass
    streamed = stream.get_final_response()
assert streamed.output[0].name == "calc" and streamed.usage.input_tokens > response.usage.total_tokens, streamed

# What cannot be done says so.
image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]
try:
    chat([{"role": "user", "content": image}])
except BadRequestError as error:
    assert "image_url" in error.message, error
else:
    raise AssertionError("images are refused")

reward = urllib.request.Request(f"{os.environ['TURNWISE_SESSION']}/reward", json.dumps({"reward": 1.0}).encode())
urllib.request.urlopen(reward).close()
