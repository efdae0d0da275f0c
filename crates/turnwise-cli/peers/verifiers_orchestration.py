"""The work of `turnwise bench orchestration` through verifiers' own loop: MultiTurnEnv with a client that answers at once.

pip install 'verifiers<0.2'   (measured with 0.1.14, the last series with MultiTurnEnv in one process)
python verifiers_orchestration.py --episodes 10000 --turns 8 --repetitions 3

Not part of CI. Each response carries token ids and log-probabilities, as a trainer needs them.
"""

import argparse
import asyncio
import json
import resource
import statistics
import time

import verifiers as vf
from datasets import Dataset
from verifiers.clients import Client
from verifiers.types import Response, ResponseMessage, ResponseTokens


class Instantly(Client):
    """Answers every prompt with the same three tokens."""

    def setup_client(self, config):
        return None

    async def to_native_tool(self, tool):
        return tool

    async def to_native_prompt(self, messages):
        return messages, {}

    async def get_native_response(self, prompt, model, sampling_args, tools=None, **kwargs):
        return None

    async def raise_from_native_response(self, response):
        pass

    async def from_native_response(self, response):
        tokens = ResponseTokens(
            prompt_ids=[1001],
            prompt_mask=[0],
            completion_ids=[1, 2, 0],
            completion_mask=[1, 1, 1],
            completion_logprobs=[-1.0, -1.0, -1.0],
        )
        message = ResponseMessage(
            content="ab", finish_reason="stop", is_truncated=False, tokens=tokens
        )
        return Response(id="0", created=0, model="instant", message=message)

    async def close(self):
        pass


class Plain(vf.MultiTurnEnv):
    """Says the same until the turns are used up."""

    async def env_response(self, messages, state, **kwargs):
        return [vf.UserMessage(content="Go on.")]


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(episodes, turns):
    prompt = [{"role": "user", "content": "Begin."}]
    dataset = Dataset.from_list([{"prompt": prompt, "answer": "", "example_id": 0}])
    env = Plain(dataset=dataset, rubric=vf.Rubric(), max_turns=turns)
    client = Instantly(None)
    task = {"prompt": prompt, "answer": "", "example_id": 0}
    cpu, wall = processor_seconds(), time.perf_counter()
    runs = (env.rollout(dict(task), client, "instant", {}) for _ in range(episodes))
    states = await asyncio.gather(*runs)
    cpu, wall = processor_seconds() - cpu, time.perf_counter() - wall
    n_turns = sum(len(state["trajectory"]) for state in states)
    if n_turns != episodes * turns:
        raise SystemExit(f"{n_turns} turns where {episodes * turns} were expected")
    return 1e6 * cpu / n_turns, 1e6 * wall / n_turns


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    figures = [
        asyncio.run(measure(settings.episodes, settings.turns))
        for _ in range(settings.repetitions)
    ]
    cpu, wall = (list(values) for values in zip(*figures))
    if settings.json:
        print(json.dumps({"cpu_us_per_turn": cpu, "wall_us_per_turn": wall}))
        return
    print(f"{settings.episodes} episodes of {settings.turns} turns, {settings.repetitions} times")
    for name, values in [("processor time", cpu), ("wall time", wall)]:
        median = statistics.median(values)
        print(f"  {name} per turn {median:.2f} us ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
