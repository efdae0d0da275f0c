"""Trains two steps of TRL's GRPOTrainer on the calculator that turnwise serves.

    pip install "trl[openreward]==1.16.0" "transformers>=5.2" jmespath datasets openenv==0.10.0
    turnwise serve calculator --protocol ors --reward total operations=1
    python trl_trainer.py ors http://127.0.0.1:8000
    turnwise serve calculator --protocol openenv --reward total operations=1
    python trl_trainer.py openenv http://127.0.0.1:8000

A task is solved by hand first, through the same objects that the trainer uses. The model that is trained is a tiny Qwen3 that has
learnt, in this script, to call the tool `answer` with some number.
"""

import os
import random
import re
import sys
import tempfile

PROTOCOL, URL = sys.argv[1:]
# Without both, the SDK talks to its hosted service.
os.environ["OPENREWARD_API_URL"] = os.environ["OPENREWARD_SESSION_URL"] = URL

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


class OpenEnvCalculator:
    """The calculator behind OpenEnv, as TRL takes an environment."""

    def __init__(self):
        from openenv.core.generic_client import GenericEnvClient

        self.client = GenericEnvClient(base_url=URL).sync()
        self.client.connect()
        self.reward = None

    def reset(self, **row):
        self.reward = None
        return self.client.reset(task=row["task_index"]).observation["text"]

    def _call(self, name, **arguments):
        result = self.client.step({"type": "call_tool", "tool_name": name, "arguments": arguments})
        self.reward = self.reward if result.reward is None else result.reward
        return result.observation["result"]["content"][0]["text"]

    def calc(self, a: int, op: str, b: int) -> str:
        """Computes a op b.

        Args:
            a: The first number.
            op: One of +, - and *.
            b: The second number.
        """
        return self._call("calc", a=a, op=op, b=b)

    def answer(self, text: str) -> str:
        """Gives the answer.

        Args:
            text: The number.
        """
        return self._call("answer", text=text)


def environment():
    """Returns the dataset, the factory and the reward functions."""
    if PROTOCOL == "ors":
        from trl.experimental.openreward import OpenRewardSpec

        spec = OpenRewardSpec(URL, env_name="calculator", num_tasks=4)
        return spec.train_dataset, spec.environment_factory, spec.reward_funcs
    rows = {"prompt": [[{"role": "user", "content": ""}]] * 4, "task_index": list(range(4))}
    return Dataset.from_dict(rows), OpenEnvCalculator, lambda environments, **_: [env.reward for env in environments]


def play(factory, row):
    """Solves a task as a model would, through the tools."""
    env = factory()
    prompt = str(env.reset(**row))
    a, op, b = re.findall(r"Compute (\d+) ([-+*]) (\d+)", prompt)[-1]
    result = env.calc(a=int(a), op=op, b=int(b))
    assert str(OPERATIONS[op](int(a), int(b))) in str(result), result
    env.answer(text=str(OPERATIONS[op](int(a), int(b))))
    print(f"{PROTOCOL}: {a} {op} {b} by its tools: reward {env.reward}")
    assert env.reward == 1.0


def tokenizer():
    """Bytes, the tokens of Qwen3's turns, and its template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(special)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    with open(os.path.join(os.path.dirname(trl.__file__), "chat_templates", "qwen3.jinja")) as file:
        made.chat_template = file.read()
    return made


def teach(model, words, factory, dataset):
    """Teaches the model to call `answer` with a number of one or two digits, whatever the task."""
    dice, env = random.Random(1), factory()
    prompts = [words.apply_chat_template([{"role": "user", "content": str(env.reset(**row))}], tools=[env.answer, env.calc],
                                         add_generation_prompt=True, tokenize=False) for row in dataset]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        number = dice.randint(0, 40)
        call = f'<tool_call>\n{{"name": "answer", "arguments": {{"text": "{number}"}}}}\n</tool_call><|im_end|>'
        before, after = words(dice.choice(prompts))["input_ids"], words(call)["input_ids"]
        loss = model(torch.tensor([before + after]), labels=torch.tensor([[-100] * len(before) + after])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"the model calls answer: loss {loss.item():.2f}")


def main():
    dataset, factory, rewards = environment()
    play(factory, dataset[0])
    words = tokenizer()
    model = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id))
    teach(model, words, factory, dataset)
    with tempfile.TemporaryDirectory() as directory:
        config = GRPOConfig(output_dir=directory, max_steps=2, num_generations=8, per_device_train_batch_size=8,
                            max_completion_length=160, max_tool_calling_iterations=2, use_cpu=True, bf16=False, report_to="none", logging_steps=1)
        trainer = GRPOTrainer(model=model, args=config, train_dataset=dataset, processing_class=words,
                              environment_factory=factory, reward_funcs=rewards)
        trainer.train()
    for step in trainer.state.log_history:
        if "reward" in step:
            print(f"{PROTOCOL}: step {step['step']}: reward {step['reward']}, tool calls {step['tools/call_frequency']}")


main()
