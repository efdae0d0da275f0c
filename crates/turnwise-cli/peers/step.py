"""The work of `turnwise bench step` in TRL: one GSPO step, rollouts and training, with GRPOTrainer on transformers.

    python step.py                                    32 groups of 8, two turns of 64 tokens after a prompt of 256
    python step.py --model smollm2 --compute bf16     4 groups of 8, four turns of 24 tokens, 4 optimiser steps
    python step.py --peer-only                        without turnwise

GRPOTrainer plays the episodes through its `rollout_func`, which returns `env_mask` for what the environment said. Its own
loop over tools computes the whole history again in each turn; here the cache is kept over the turns, and a group's prompt is
computed once. Training is GRPOTrainer's with `importance_sampling_level="sequence"` and no KL. Where one batch of rollouts
has several optimiser steps, it computes the old log-probabilities anew, unless `--recorded` hands it those of the rollouts,
which turnwise trains on. Its head is replaced, which makes it faster: see `trainer_class`. Not part of CI.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time

from common import (add_model_arguments, add_run_arguments, machine, make_model, megabytes, model_flags, ratios,
                    reset_peak, run, run_peer, spread, status_bytes, with_sizes)

END, PADDING = 0, 1
# On the processor, and nothing beside the training itself.
QUIET = {
    "use_cpu": True,
    "gradient_checkpointing": False,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
# What a step is, by the model.
SHAPES = {
    "small": {"groups": 32, "turns": 2, "prompt": 256, "turn_tokens": 64, "mini_batches": 1},
    "smollm2": {"groups": 4, "turns": 4, "prompt": 128, "turn_tokens": 24, "mini_batches": 4},
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    add_run_arguments(parser)
    parser.set_defaults(repetitions=2)
    parser.add_argument("--groups", type=int)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--turns", type=int)
    parser.add_argument("--prompt", type=int)
    parser.add_argument("--turn-tokens", type=int)
    parser.add_argument("--observation", type=int, default=16, help="tokens that the environment adds between turns")
    parser.add_argument("--mini-batches", type=int, help="optimiser steps for each batch of rollouts")
    parser.add_argument("--micro-batch", type=int, default=32, help="the most rows that the peer trains at once")
    add_trl_arguments(parser)
    settings = with_sizes(parser.parse_args())
    for name, size in SHAPES.get(settings.model, SHAPES["small"]).items():
        if getattr(settings, name) is None:
            setattr(settings, name, size)
    return settings


def add_trl_arguments(parser):
    """What TRL is spared."""
    parser.add_argument("--stock-head", action="store_true", help="leave TRL its own head, which computes all logits")
    parser.add_argument("--recorded", action="store_true",
                        help="spare TRL the old log-probabilities: it takes those of the rollouts, as turnwise does")


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

    def __init__(self, settings, twin):
        self.settings, self.twin, self.seconds = settings, twin, []

    def __call__(self, texts, trainer):
        import torch

        began = time.perf_counter()
        model = sampler(trainer, self.twin)
        training = model.training
        model.eval()
        with torch.no_grad():
            played = self.play(texts, trainer.processing_class, model)
        model.train(training)
        trainer.note_rollouts(played["env_mask"], played["logprobs"])
        self.seconds.append(time.perf_counter() - began)
        return played

    def play(self, texts, tokenizer, model):
        import torch
        from transformers import DynamicCache

        settings = self.settings
        prompt = torch.tensor([tokenizer(text)["input_ids"] for text in texts])
        assert prompt.shape == (settings.groups * settings.group, settings.prompt), prompt.shape
        cache, ids, logprobs, mask = DynamicCache(config=model.config), prompt, [], []
        # The prompt of each group once; its last token stays for the first turn to begin with.
        model(prompt[:: settings.group, :-1], cache=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(settings.group)
        for turn in range(settings.turns):
            if turn > 0:
                said = torch.randint(2, settings.vocab_size, (len(texts), settings.observation))
                ids = torch.cat([ids, said], dim=1)
                logprobs.append(torch.zeros(said.shape))
                mask.append(torch.zeros(said.shape, dtype=torch.long))
            sampled, of_sampled = self.turn(model, ids[:, int(cache.get_seq_length()) :], cache)
            ids = torch.cat([ids, sampled], dim=1)
            logprobs.append(of_sampled)
            mask.append(torch.ones_like(sampled))
        return {
            "prompt_ids": prompt.tolist(),
            "completion_ids": ids[:, settings.prompt :].tolist(),
            "logprobs": torch.cat(logprobs, dim=1).tolist(),
            "env_mask": torch.cat(mask, dim=1).tolist(),
        }

    def turn(self, model, new, cache):
        """The plain decode loop, which is as fast as `generate`."""
        import torch

        sampled, logprobs = [], []
        for _ in range(self.settings.turn_tokens):
            # With a mask, even of nothing, transformers packs query heads by key head: a third less time for a token in bf16.
            length = cache.get_seq_length() + 1
            mask = torch.ones((len(new), 1, 1, length), dtype=torch.bool) if new.shape[1] == 1 else None
            logits = model(new, attention_mask=mask, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            distribution = torch.log_softmax(logits.float(), dim=-1)
            new = torch.multinomial(distribution.exp(), 1)
            sampled.append(new)
            logprobs.append(distribution.gather(1, new))
        return torch.cat(sampled, dim=1), torch.cat(logprobs, dim=1)


def sampler(trainer, twin):
    """The model that samples: the trained one, or its twin in bf16, which gets the trained weights."""
    import torch

    model = trainer.accelerator.unwrap_model(trainer.model)
    if twin is None:
        return model
    with torch.no_grad():
        for copied, weight in zip(twin.parameters(), model.parameters(), strict=True):
            copied.copy_(weight)
    return twin


def reward(completion_ids, **_):
    """Something that differs between the members of a group."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def trainer_class(settings):
    """GRPOTrainer, with logits computed only where sampled tokens stand.

    Where there is no Triton, its own head computes them at every position of prompts and answers, in tiles of half a
    gigabyte: most of a step, if the vocabulary is that of a real model.
    """
    import torch
    from trl import GRPOTrainer

    class Trainer(GRPOTrainer):
        def note_rollouts(self, masks, logprobs):
            """Says which tokens of a batch were sampled, and with what log-probability."""
            pad = lambda rows: torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
            self.sampled, self.recorded = pad(masks), pad(logprobs)

        def _compute_loss(self, model, inputs):
            self.sampled = inputs["tool_mask"] * inputs["completion_mask"]
            return super()._compute_loss(model, inputs)

        def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **more):
            # Without gradients, these are the old log-probabilities.
            if settings.recorded and not torch.is_grad_enabled():
                return self.recorded, None, None
            if settings.stock_head:
                return super()._get_per_token_logps_and_entropies(model, input_ids, attention_mask, logits_to_keep,
                                                                  batch_size, **more)
            rows = batch_size or len(input_ids)
            parts = zip(*(tensor.split(rows) for tensor in (input_ids, attention_mask, self.sampled.bool())))
            logps = torch.cat([self.logps(model, *part, logits_to_keep) for part in parts])
            # The entropy is for the log alone.
            return logps, torch.zeros_like(logps), None

        def logps(self, model, ids, mask, sampled, length):
            model = self.accelerator.unwrap_model(model)
            with self.accelerator.autocast():
                hidden = model.model(ids, attention_mask=mask, use_cache=False).last_hidden_state
                logits = model.lm_head(hidden[:, -length - 1 : -1][sampled])
            logps = torch.log_softmax(logits.float(), dim=-1).gather(1, ids[:, -length:][sampled][:, None])[:, 0]
            return logps.new_zeros(sampled.shape).masked_scatter(sampled, logps)

    return Trainer


def make_trainer(settings, directory):
    from datasets import Dataset
    from trl import GRPOConfig

    n_rows = settings.groups * settings.group // settings.mini_batches
    micro_batch = min(settings.micro_batch, n_rows)
    length = settings.prompt + settings.turns * (settings.turn_tokens + settings.observation)
    config = GRPOConfig(
        output_dir=directory,
        importance_sampling_level="sequence",
        loss_type="grpo",
        epsilon=3e-4,
        epsilon_high=4e-4,
        beta=0.0,
        num_generations=settings.group,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=n_rows // micro_batch,
        steps_per_generation=n_rows // micro_batch * settings.mini_batches,
        num_iterations=1,
        max_completion_length=length - settings.prompt,
        temperature=1.0,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        max_steps=(1 + settings.repetitions) * settings.mini_batches,
        bf16=settings.compute == "bf16",
        **QUIET,
        shuffle_dataset=False,
    )
    model = make_model(settings, length)
    twin = copy.deepcopy(model).bfloat16().eval() if settings.compute == "bf16" else None
    return trainer_class(settings)(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts(settings)}),
        processing_class=make_tokenizer(settings),
        rollout_func=Rollout(settings, twin),
    )


def measure(settings):
    import torch
    import trl  # noqa: F401
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Notes how long the optimiser steps of each batch of rollouts took, the rollouts included."""

        def __init__(self):
            self.began, self.seconds = None, []

        def on_step_begin(self, _, state, __, **___):
            if state.global_step % settings.mini_batches == 0:
                self.began = time.perf_counter()

        def on_step_end(self, _, state, __, **___):
            if state.global_step % settings.mini_batches > 0:
                return
            self.seconds.append(time.perf_counter() - self.began)
            if len(self.seconds) == 1:
                reset_peak()

    torch.set_num_threads(settings.threads)
    start = status_bytes("VmRSS")
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        trainer = make_trainer(settings, directory)
        trainer.add_callback(clock)
        trainer.train()
    rollout = trainer.rollout_func
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
          f"{settings.observation} between turns, after prompts of {settings.prompt}; optimiser steps: {settings.mini_batches}")
    command = [settings.turnwise, "bench", "step", "--json", *model_flags(settings)]
    for name in ["groups", "group", "turns", "prompt", "turn_tokens", "observation"]:
        command += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
    if settings.mini_batches > 1:
        command += ["--mini-batches", str(settings.mini_batches)]
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
