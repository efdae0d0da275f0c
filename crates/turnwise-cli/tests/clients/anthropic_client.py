"""Asks for turns in every way that Anthropic's client has. An assertion that fails makes the episode a fault."""

import json
import os
import urllib.request

from anthropic import Anthropic, BadRequestError

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOLS = [{"name": "calc", "description": "Doubles a number.", "input_schema": PARAMETERS}]
SAID = [{"role": "user", "content": "4"}]
client = Anthropic(max_retries=0)
common = {"model": "any", "system": "Call calc.", "tools": TOOLS}

# A turn that calls a tool, and one that continues the conversation.
message = client.messages.create(messages=SAID, max_tokens=128, **common)
assert message.stop_reason == "tool_use", message
call = message.content[-1]
assert call.name == "calc" and isinstance(call.input["a"], int), call
result = {"type": "tool_result", "tool_use_id": call.id, "content": "8"}
continued = [*SAID, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
again = client.messages.create(messages=continued, max_tokens=128, **common)
assert again.usage.input_tokens > message.usage.input_tokens + message.usage.output_tokens

# The same in pieces.
with client.messages.stream(messages=continued, max_tokens=128, **common) as stream:
    for _ in stream:
        pass
    streamed = stream.get_final_message()
assert streamed.content[-1].name == "calc" and isinstance(streamed.content[-1].input["a"], int), streamed
assert streamed.usage.output_tokens > 0

# A turn of few tokens, and one that ends at a text.
assert client.messages.create(messages=SAID, max_tokens=3, **common).stop_reason == "max_tokens"
stopped = client.messages.create(messages=SAID, max_tokens=128, stop_sequences=["name"], **common)
assert stopped.stop_reason == "stop_sequence" and "name" not in stopped.content[0].text, stopped

# What cannot be done says so.
image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
try:
    client.messages.create(messages=[{"role": "user", "content": [image]}], max_tokens=128, **common)
except BadRequestError as error:
    assert "text" in str(error), error
else:
    raise AssertionError("images are refused")

reward = urllib.request.Request(f"{os.environ['TURNWISE_SESSION']}/reward", json.dumps({"reward": 1.0}).encode())
urllib.request.urlopen(reward).close()
