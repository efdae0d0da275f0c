"""The work of `turnwise bench step` in TRL: one GSPO step, rollouts and training, with GRPOTrainer on transformers.

python step.py                        32 groups of 8, two turns of 64 tokens after a prompt of 256
python step.py --peer-only            without turnwise

GRPOTrainer plays the episodes through its `rollout_func`, which returns `env_mask` for what the environment said. Its own
loop over tools computes the whole history again in each turn; here the cache is kept over the turns, which is as fast as
transformers can be driven. Everything else is GRPOTrainer's: `importance_sampling_level="sequence"`, one optimiser step for
the batch, no KL, so that it computes no old log-probabilities. Not part of CI.
"""

import argparse
import json
import statistics
import tempfile
import time

from common import (add_model_arguments, add_run_arguments, machine, make_model, megabytes, model_flags, ratios,
                    reset_peak, run, run_peer, spread, status_bytes, with_sizes)

END, PADDING = 0, 1


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    add_run_arguments(parser)
    parser.set_defaults(repetitions=2)
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--turn-tokens", type=int, default=64)
    parser.add_argument("--observation", type=int, default=16, help="tokens that the environment adds between turns")
    parser.add_argument("--micro-batch", type=int, default=32, help="rows that the peer trains at once")
    return with_sizes(parser.parse_args())


def make_tokenizer(settings):
    """Words are the numbers of tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<end>": END, "<pad>": PADDING} | {str(index): index for index in range(2, settings.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>",
                                   padding_side="left")


def prompts(settings):
    import torch

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, settings.vocab_size, (settings.groups, settings.prompt), generator=generator)
    return [" ".join(str(token) for token in row) for row in ids.tolist()]


class Rollout:
    """Plays the episodes of a batch and notes how long it took."""

    def __init__(self, settings):
        self.settings, self.seconds = settings, []

    def __call__(self, texts, trainer):
        import torch

        began = time.perf_counter()
        model, training = trainer.accelerator.unwrap_model(trainer.model), trainer.model.training
        model.eval()
        with torch.inference_mode():
            played = self.play(texts, trainer.processing_class, model)
        model.train(training)
        self.seconds.append(time.perf_counter() - began)
        return played

    def play(self, texts, tokenizer, model):
        import torch
        from transformers import DynamicCache

        settings = self.settings
        prompt = torch.tensor([tokenizer(text)["input_ids"] for text in texts])
        assert prompt.shape == (settings.groups * settings.group, settings.prompt), prompt.shape
        cache, ids, logprobs, mask = DynamicCache(config=model.config), prompt, [], []
        for turn in range(settings.turns):
            if turn > 0:
                said = torch.randint(2, settings.vocab_size, (len(texts), settings.observation))
                ids = torch.cat([ids, said], dim=1)
                logprobs.append(torch.zeros(said.shape))
                mask.append(torch.zeros(said.shape, dtype=torch.long))
            answer = self.turn(model, ids, cache)
            ids = answer.sequences
            sampled = ids[:, -settings.turn_tokens :]
            per_token = [
                torch.log_softmax(logits, dim=-1).gather(1, sampled[:, [index]])
                for index, logits in enumerate(answer.logits)
            ]
            logprobs.append(torch.cat(per_token, dim=1))
            mask.append(torch.ones_like(sampled))
        return {
            "prompt_ids": prompt.tolist(),
            "completion_ids": ids[:, settings.prompt :].tolist(),
            "logprobs": torch.cat(logprobs, dim=1).tolist(),
            "env_mask": torch.cat(mask, dim=1).tolist(),
        }

    def turn(self, model, ids, cache):
        import torch

        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            cache=cache,
            max_new_tokens=self.settings.turn_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=PADDING,
            return_dict_in_generate=True,
            output_logits=True,
        )


def reward(completion_ids, **_):
    """Something that differs between the members of a group."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def make_trainer(settings, rollout, directory):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    n_rows = settings.groups * settings.group
    length = settings.prompt + settings.turns * (settings.turn_tokens + settings.observation)
    config = GRPOConfig(
        output_dir=directory,
        importance_sampling_level="sequence",
        loss_type="grpo",
        epsilon=3e-4,
        epsilon_high=4e-4,
        beta=0.0,
        num_generations=settings.group,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=n_rows // settings.micro_batch,
        num_iterations=1,
        max_completion_length=length - settings.prompt,
        temperature=1.0,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        max_steps=1 + settings.repetitions,
        use_cpu=True,
        bf16=settings.compute == "bf16",
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        shuffle_dataset=False,
    )
    return GRPOTrainer(
        model=make_model(settings, length),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts(settings)}),
        processing_class=make_tokenizer(settings),
        rollout_func=rollout,
    )


def measure(settings):
    import torch
    import trl  # noqa: F401
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Notes how long each step took."""

        def __init__(self):
            self.began, self.seconds = None, []

        def on_step_begin(self, *_, **__):
            self.began = time.perf_counter()

        def on_step_end(self, *_, **__):
            self.seconds.append(time.perf_counter() - self.began)
            if len(self.seconds) == 1:
                reset_peak()

    torch.set_num_threads(settings.threads)
    start = status_bytes("VmRSS")
    rollout, clock = Rollout(settings), Clock()
    with tempfile.TemporaryDirectory() as directory:
        trainer = make_trainer(settings, rollout, directory)
        trainer.add_callback(clock)
        trainer.train()
    assert len(rollout.seconds) == len(clock.seconds) == 1 + settings.repetitions
    # The first step warms up.
    rollout_s, step_s = rollout.seconds[1:], clock.seconds[1:]
    return {
        "step_s": step_s,
        "rollout_s": rollout_s,
        "training_s": [step - rollout for step, rollout in zip(step_s, rollout_s)],
        "peak_bytes": status_bytes("VmHWM"),
        "start_bytes": start,
    }


def show(name, result):
    print(f"  {name:<10}{spread(result['step_s'])} s a step, {spread(result['rollout_s'])} s of it rollouts, "
          f"{spread(result['training_s'])} s training; {megabytes(result['peak_bytes']):.0f} MB at its peak", flush=True)


def main():
    settings = arguments()
    if settings.measure:
        print(json.dumps(measure(settings)))
        return
    print(machine(settings.threads))
    print(f"{settings.groups} groups of {settings.group}, {settings.turns} turns of {settings.turn_tokens} tokens, "
          f"{settings.observation} between turns, after prompts of {settings.prompt}")
    command = [settings.turnwise, "bench", "step", "--json", *model_flags(settings)]
    for name in ["groups", "group", "turns", "prompt", "turn_tokens", "observation"]:
        command += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
    pairs = []
    for _ in range(settings.rounds):
        theirs = run_peer()
        show("TRL", theirs)
        if not settings.peer_only:
            ours = run(command)
            show("turnwise", ours)
            pairs.append((ours, theirs))
    if pairs:
        for name, key in [("a step", "step_s"), ("rollouts", "rollout_s"), ("training", "training_s")]:
            measured = [tuple(statistics.median(side[key]) for side in pair) for pair in pairs]
            ratios(f"seconds of {name}, TRL over turnwise", measured, "less")
        ratios("peak memory, TRL over turnwise", [(o["peak_bytes"], t["peak_bytes"]) for o, t in pairs], "less")


if __name__ == "__main__":
    main()
