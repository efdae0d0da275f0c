"""The work of `turnwise bench train` in transformers: a step of full fine-tuning, forward, loss, backward and AdamW.

python train.py                       16 rows of 256 tokens, every token a target
python train.py --shared-prompt       8 rows with the same 768 tokens before 96 of their own, which alone are targets
python train.py --model smollm2 --compute bf16 --batch 8    the sizes of SmolLM2-135M; torch by autocast
python train.py --peer-only           without turnwise

The peer computes logits only where a target follows (`logits_to_keep`) and uses torch's fused AdamW. Not part of CI.
"""

import argparse
import json
import statistics
import time

from common import (add_model_arguments, add_run_arguments, machine, make_model, megabytes, model_flags, ratios,
                    reset_peak, run, run_peer, spread, status_bytes, with_sizes)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    add_run_arguments(parser)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--shared-prompt", action="store_true")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=768)
    parser.add_argument("--response", type=int, default=96)
    settings = with_sizes(parser.parse_args())
    if settings.shared_prompt:
        settings.batch, settings.length = settings.group, settings.prompt + settings.response
    return settings


def measure(settings):
    import torch
    import torch.nn.functional as F

    import transformers.models.llama.modeling_llama  # noqa: F401  what they load is not the model's memory
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    start = status_bytes("VmRSS")
    model = make_model(settings, settings.length).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    ids = torch.randint(settings.vocab_size, (settings.batch, settings.length))
    n_targets = settings.response if settings.shared_prompt else settings.length - 1
    if settings.shared_prompt:
        ids[:, : settings.prompt] = ids[0, : settings.prompt]
    targets = ids[:, -n_targets:].reshape(-1)

    def step():
        seconds = [time.perf_counter()]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.compute == "bf16"):
            logits = model(ids, use_cache=False, logits_to_keep=n_targets + 1).logits[:, :-1]
            loss = F.cross_entropy(logits.reshape(-1, settings.vocab_size).float(), targets)
        seconds.append(time.perf_counter())
        loss.backward()
        seconds.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter())
        return [after - before for before, after in zip(seconds, seconds[1:])]

    step()
    reset_peak()
    steps = [step() for _ in range(settings.repetitions)]
    return {
        "tokens_per_s": [settings.batch * settings.length / sum(parts) for parts in steps],
        "peak_bytes": status_bytes("VmHWM"),
        "start_bytes": start,
        "parts": dict(zip(["forward", "backward", "optimizer"], zip(*steps))),
    }


def show(name, result):
    parts = ", ".join(f"{part} {statistics.median(seconds):.3f} s" for part, seconds in result["parts"].items())
    print(f"  {name:<14}{spread(result['tokens_per_s'])} tokens/s, {megabytes(result['peak_bytes']):.0f} MB at its peak, "
          f"{megabytes(result['start_bytes']):.0f} before the model; {parts}", flush=True)


def main():
    settings = arguments()
    if settings.measure:
        print(json.dumps(measure(settings)))
        return
    print(machine(settings.threads))
    print(f"{settings.batch} rows of {settings.length} tokens" + (", prompt shared" if settings.shared_prompt else ""))
    command = [settings.turnwise, "bench", "train", "--json", *model_flags(settings)]
    if settings.shared_prompt:
        command += ["--shared-prompt", "--group", str(settings.group), "--prompt", str(settings.prompt), "--response",
                    str(settings.response)]
    else:
        command += ["--batch", str(settings.batch), "--length", str(settings.length)]
    pairs = []
    for _ in range(settings.rounds):
        theirs = run_peer()
        show("transformers", theirs)
        if not settings.peer_only:
            ours = run(command)
            show("turnwise", ours)
            pairs.append((ours, theirs))
    if pairs:
        median = statistics.median
        ratios("tokens/s, turnwise over transformers",
               [(median(ours["tokens_per_s"]), median(theirs["tokens_per_s"])) for ours, theirs in pairs])
        ratios("peak memory, transformers over turnwise",
               [(ours["peak_bytes"], theirs["peak_bytes"]) for ours, theirs in pairs], "less")
        grown = [tuple(side["peak_bytes"] - side["start_bytes"] for side in pair) for pair in pairs]
        ratios("the same, less what was there before the model", grown, "less")


if __name__ == "__main__":
    main()
