"""Plays the same actions on one environment in TRL's trainer and here, and compares what the model is shown and its reward.

    python crates/turnwise-python/peers/environment_trl.py

needs the package `turnwise`, `trl`, `datasets` and `torch`. The trainer's sampling is replaced by scripted answers; prompts, tool
calls, tool messages and rewards are TRL's own. Ends with status 1 if one differs.
"""

import json
import os
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", CUDA_VISIBLE_DEVICES="")

import torch
import trl
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import turnwise
from turnwise._suite import SuiteAdapter


class Counter:
    """Counts; each object is used again, as TRL does."""

    def __init__(self):
        self.value = 0

    def reset(self, start: int, **row) -> str:
        self.value = start
        return " Make it 7."

    def add(self, amount: int) -> str:
        """Adds to the counter.

        Args:
            amount: How much.
        """
        if amount > 100:
            raise ValueError("that is too much")
        self.value += amount
        return f"it is {self.value}"

    def read(self) -> dict:
        """Reads the counter."""
        return {"value": self.value}

    def get_reward(self) -> float:
        return float(self.value == 7)


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


ROW = {"prompt": [{"role": "user", "content": "A counter begins at 3."}], "start": 3}
#: What the model says, turn by turn, in each of two episodes.
SCRIPTS = [
    [call("add", amount=4), call("read"), "It is 7."],
    [call("add", amount=101), call("multiply", by=2), "I give up."],
]


def tokenizer(folder):
    own = turnwise.Tokenizer.train(["A counter begins at 3. Make it 7."], 300)
    own.save(folder)
    made = PreTrainedTokenizerFast(
        tokenizer_file=os.path.join(folder, "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    template = os.path.join(os.path.dirname(trl.__file__), "chat_templates", "qwen3.jinja")
    with open(template, encoding="utf-8") as file:
        made.chat_template = file.read()
    return made


def played_by_trl(folder):
    made = tokenizer(folder)
    config = Qwen3Config(
        vocab_size=len(made), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )
    arguments = trl.GRPOConfig(
        output_dir=folder, max_steps=1, num_generations=2, per_device_train_batch_size=2, max_completion_length=512,
        report_to=[], use_cpu=True, logging_steps=1, save_strategy="no", disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        Qwen3ForCausalLM(config), args=arguments, train_dataset=Dataset.from_list([ROW] * 2),
        processing_class=made, environment_factory=Counter,
    )
    turn, left, seen = [0], [0, 1], {}

    def sample(prompt_ids, *_, **__):
        # Only the episodes that called a tool are asked again; here both are, until both end.
        answers = [made(SCRIPTS[episode][turn[0]] + "<|im_end|>")["input_ids"] for episode in left[: len(prompt_ids)]]
        turn[0] += 1
        return answers, [[-1.0] * len(ids) for ids in answers]

    score = trainer._calculate_rewards

    def scored(inputs, prompts, completions, ids):
        rewards = score(inputs, prompts, completions, ids)
        seen.update(prompts=prompts, completions=completions, rewards=rewards)
        return rewards

    trainer._generate_single_turn, trainer._calculate_rewards = sample, scored
    trainer.train()
    return seen


def played_here(script):
    """Returns the prompt, the tool messages and the reward of an episode."""
    suite = SuiteAdapter(Counter, tasks=[ROW], held_out=[{**ROW, "start": 5}])
    episode = suite.begin(0)
    prompt = json.loads(episode.reset(1))["messages"]
    answers = []
    for text in script:
        calls = []
        if text.startswith("<tool_call>"):
            own = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
            calls = [{"call": {"id": "call_0", **own}}]
        step = json.loads(episode.step(json.dumps({"text": "" if calls else text, "calls": calls})))
        if "end" in step:
            return prompt, answers, step["end"]["reward"]
        answers += [message["content"] for message in step["next"]["observation"]["messages"]]
    raise AssertionError("the episode did not end")


def main():
    with tempfile.TemporaryDirectory() as folder:
        theirs = played_by_trl(folder)
    failed = False
    for index, script in enumerate(SCRIPTS):
        prompt, answers, reward = played_here(script)
        pairs = [
            ("prompt", prompt, theirs["prompts"][index]),
            ("answers", answers, [one["content"] for one in theirs["completions"][index] if one["role"] == "tool"]),
            ("reward", reward, torch.nansum(theirs["rewards"][index]).item()),
        ]
        for what, own, other in pairs:
            print(f"episode {index}: {what} {'the same' if own == other else 'differs'}: {own}")
            if own != other:
                print(f"    TRL: {other}")
                failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
