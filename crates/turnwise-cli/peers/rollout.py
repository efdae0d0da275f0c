"""The work of `turnwise bench rollout` in transformers: episodes of several turns, side by side, turn by turn.

python rollout.py                     32 episodes of 4 turns of 48 tokens after a shared prompt of 512
python rollout.py --peer-only         without turnwise

The cache is kept over the turns. All episodes have turns of the same length and there is no stop token, so that the peer
needs no padding and no row ever idles: its best case. It draws at temperature 1 and returns each token with its
log-probability. Several ways are measured, and the fastest of each round counts: a plain decode loop with a cache that
grows or one that is allocated at its full size, and `generate`; the prompt computed for every episode, or once and its
cache copied. Not part of CI.
"""

import argparse
import json
import statistics
import time

from common import (add_model_arguments, add_run_arguments, machine, make_model, megabytes, model_flags, ratios,
                    reset_peak, run, run_peer, spread, status_bytes, with_sizes)

# How tokens are decoded, what cache they have, and for whom the prompt is computed.
WAYS = [("loop", "dynamic", "every"), ("loop", "dynamic", "once"), ("loop", "static", "every"),
        ("generate", "dynamic", "every")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    add_run_arguments(parser)
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=512, help="tokens that all episodes begin with")
    parser.add_argument("--turn-tokens", type=int, default=48, help="tokens drawn in a turn")
    parser.add_argument("--observation", type=int, default=16, help="tokens that the environment adds between turns")
    parser.add_argument("--decode", choices=["loop", "generate"], default="loop")
    parser.add_argument("--cache", choices=["dynamic", "static"], default="dynamic")
    parser.add_argument("--prefill", choices=["every", "once"], default="every")
    return with_sizes(parser.parse_args())


class Episodes:
    """Drives a model through the turns of all episodes."""

    def __init__(self, model, settings):
        import torch

        self.model, self.settings = model, settings
        self.prompt = torch.randint(settings.vocab_size, (1, settings.prompt))
        shape = (settings.turns, settings.episodes, settings.observation)
        self.observations = torch.randint(settings.vocab_size, shape)

    def play(self):
        import torch
        from transformers import DynamicCache, StaticCache

        settings, config = self.settings, self.model.config
        if settings.cache == "static":
            cache = StaticCache(config=config, max_cache_len=config.max_position_embeddings)
        else:
            cache = DynamicCache(config=config)
        ids = self.prompt.repeat(settings.episodes, 1)
        if settings.prefill == "once":
            # The last token stays for the first turn to begin with.
            self.model(self.prompt[:, :-1], cache=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(settings.episodes)
        turn = self.loop if settings.decode == "loop" else self.generate
        n_sampled = 0
        for index in range(settings.turns):
            sampled, logprobs = turn(ids, cache)
            assert sampled.shape == logprobs.shape == (settings.episodes, settings.turn_tokens)
            n_sampled += sampled.numel()
            ids = torch.cat([ids, sampled, self.observations[index]], dim=1)
        return n_sampled

    def loop(self, ids, cache):
        """The plain decode loop."""
        import torch

        new = ids[:, int(cache.get_seq_length()) :]
        sampled, logprobs = [], []
        for _ in range(self.settings.turn_tokens):
            logits = self.model(new, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            distribution = torch.log_softmax(logits.float(), dim=-1)
            new = torch.multinomial(distribution.exp(), 1)
            sampled.append(new)
            logprobs.append(distribution.gather(1, new))
        return torch.cat(sampled, dim=1), torch.cat(logprobs, dim=1)

    def generate(self, ids, cache):
        """The library's own loop."""
        import torch

        n = self.settings.turn_tokens
        answer = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            cache=cache,
            max_new_tokens=n,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        sampled = answer.sequences[:, -n:]
        logprobs = [
            torch.log_softmax(logits.float(), dim=-1).gather(1, sampled[:, [index]])
            for index, logits in enumerate(answer.logits)
        ]
        return sampled, torch.cat(logprobs, dim=1)


def measure(settings):
    import torch

    import transformers.models.llama.modeling_llama  # noqa: F401  what they load is not the model's memory
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    start = status_bytes("VmRSS")
    length = settings.prompt + settings.turns * (settings.turn_tokens + settings.observation)
    model = make_model(settings, length).eval()
    if settings.compute == "bf16":
        model = model.to(torch.bfloat16)
    rates = []
    with torch.inference_mode():
        episodes = Episodes(model, settings)
        episodes.play()
        reset_peak()
        for _ in range(settings.repetitions):
            began = time.perf_counter()
            n_sampled = episodes.play()
            rates.append(n_sampled / (time.perf_counter() - began))
    return {"sampled_tokens_per_s": rates, "peak_bytes": status_bytes("VmHWM"), "start_bytes": start}


def show(name, result):
    print(f"  {name:<44}{spread(result['sampled_tokens_per_s'])} sampled tokens/s, "
          f"{megabytes(result['peak_bytes']):.0f} MB at its peak", flush=True)


def main():
    settings = arguments()
    if settings.measure:
        print(json.dumps(measure(settings)))
        return
    print(machine(settings.threads))
    print(f"{settings.episodes} episodes of {settings.turns} turns of {settings.turn_tokens} tokens, "
          f"{settings.observation} between turns, after a shared prompt of {settings.prompt}")
    command = [settings.turnwise, "bench", "rollout", "--json", *model_flags(settings)]
    for name in ["episodes", "turns", "prompt", "turn_tokens", "observation"]:
        command += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
    pairs, median = {way: [] for way in WAYS}, lambda result: statistics.median(result["sampled_tokens_per_s"])
    for _ in range(settings.rounds):
        ours = None if settings.peer_only else run(command)
        if ours:
            show("turnwise", ours)
        for way in WAYS:
            decode, cache, prefill = way
            theirs = run_peer(["--decode", decode, "--cache", cache, "--prefill", prefill])
            show(describe(way), theirs)
            if ours:
                pairs[way].append((median(ours), median(theirs)))
    if settings.peer_only:
        return
    print("sampled tokens/s, turnwise over transformers")
    for way, measured in pairs.items():
        ratios(describe(way), measured)
    fastest = [(measured[0][0], max(theirs for _, theirs in measured)) for measured in zip(*pairs.values())]
    ratios("the fastest of each round", fastest)


def describe(way):
    decode, cache, prefill = way
    return f"{decode}, {cache} cache, prompt computed {prefill}"


if __name__ == "__main__":
    main()
