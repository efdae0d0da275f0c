"""Serves an environment with verifiers' own server, for `turnwise`'s client.

    pip install verifiers==0.4.0                   # Python 3.11 or newer
    python verifiers_server.py 5000                # writes verifiers_tasks.jsonl and serves; a second argument is the number of workers
    turnwise train verifiers.toml

A task asks for digits, and a second time after the answer; the reward is the share of digits in both answers.
"""

import json
import sys

import verifiers.v1 as vf
from openai import AsyncOpenAI
from verifiers.v1.runtimes import ProgramResult
from verifiers.v1.serve.pool import serve_env
from verifiers.v1.utils.loaders import env_config_type

__all__ = ["CountHarness", "CountTaskset"]

WORDS = ["digits", "numbers", "figures", "numerals", "ciphers", "integers"]


class CountData(vf.TaskData):
    turns: int = 2


class CountTask(vf.Task[CountData]):
    @vf.reward(weight=0.5)
    async def digits(self, trace: vf.Trace) -> float:
        said = [message.content or "" for message in trace.assistant_messages]
        return sum(share(text) for text in said) * 2 / self.data.turns

    @vf.metric
    async def length(self, trace: vf.Trace) -> float:
        return float(sum(len(message.content or "") for message in trace.assistant_messages))


class CountTaskset(vf.Taskset[CountTask]):
    def load(self):
        for number in range(60):
            word = WORDS[number % len(WORDS)]
            yield CountTask(CountData(prompt=f"Write {word} {number}.", turns=1 + number % 2), self.config.task)


class CountHarness(vf.Harness[vf.HarnessConfig]):
    """Asks in this process, and says so once more after an answer."""

    NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data, **_):
        _, prompt = self.resolve_text_prompt(data)
        messages = [{"role": "user", "content": prompt}]
        async with AsyncOpenAI(base_url=endpoint, api_key=secret, max_retries=0, timeout=120) as client:
            for _ in range(data.turns):
                answer = await client.chat.completions.create(model=ctx.model, messages=messages)
                text = answer.choices[0].message.content or ""
                messages += [{"role": "assistant", "content": text}, {"role": "user", "content": f"{share(text):.2f}, again."}]
        return ProgramResult(exit_code=0, stdout="", stderr="")


def share(text):
    return sum(one.isdigit() for one in text) / max(len(text), 1)


def main(port, workers):
    config = env_config_type("verifiers_server").model_validate(
        {"taskset": {"id": "verifiers_server"}, "agent": {"runtime": {"type": "subprocess"}}}
    )
    import verifiers_server

    taskset = verifiers_server.CountTaskset(config.taskset)
    with open("verifiers_tasks.jsonl", "w") as file:
        for task in taskset:
            file.write(json.dumps(task.data.model_dump(mode="json")) + "\n")
    serve_env(max_workers=workers, address=f"tcp://127.0.0.1:{port}", config=config)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
