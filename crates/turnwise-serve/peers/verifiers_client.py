"""Asks for episodes with the client of verifiers; the model's endpoint is in this script, and samples any tokens.

    turnwise serve calculator --protocol verifiers --model MODEL --address 127.0.0.1:5000 operations=1
    pip install verifiers==0.4.0                   # Python 3.11 or newer
    python verifiers_client.py tcp://127.0.0.1:5000
"""

import asyncio
import json
import random
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import verifiers.v1 as vf
from verifiers.v1.configs.client import TrainClientConfig
from verifiers.v1.serve import EnvClient


class Endpoint(BaseHTTPRequestHandler):
    """vLLM's route for token ids: two tokens and the end of the turn."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert self.path == "/inference/v1/generate", self.path
        params = body["sampling_params"]
        chance = random.Random(params["seed"])
        ids = [id for id in range(1, 8) if id not in params["stop_token_ids"]]
        ids = chance.sample(ids, 2) + params["stop_token_ids"][:1]
        content = [{"token_id": id, "logprob": -chance.random()} for id in ids]
        choice = {"index": 0, "finish_reason": "stop", "token_ids": ids, "logprobs": {"content": content}}
        answer = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


async def main(address, base_url):
    client = EnvClient(address)
    assert await client.health()
    config = TrainClientConfig(base_url=base_url, api_key_var="X")

    async def episode(index):
        return await client.run(client=config, model="m", sampling=vf.SamplingConfig(temperature=1.0), task_data={"idx": index})

    one = await episode(0)
    branch = one.traces[0].branches[0]
    print(one.ok, one.traces[0].reward, len(branch.token_ids), sum(branch.sampled_mask), branch.logprobs[-3:])
    assert len(branch.token_ids) == len(branch.sampled_mask) == len(branch.logprobs)
    many = await asyncio.gather(*[episode(index % 4) for index in range(16)])
    print(f"{sum(one.ok for one in many)} of {len(many)} side by side")
    try:
        await episode(10**9)
    except RuntimeError as error:
        print("refused:", error)
    else:
        raise AssertionError("there is no such task")
    await client.close()


server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
threading.Thread(target=server.serve_forever, daemon=True).start()
asyncio.run(main(sys.argv[1], f"http://127.0.0.1:{server.server_address[1]}/v1"))
