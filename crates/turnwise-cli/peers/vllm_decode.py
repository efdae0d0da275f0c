"""Decoding in vLLM on a processor, for real_model.py: prints tokens per second and peak memory as JSON.

    VENV/bin/python vllm_decode.py --model smollm2 --compute bf16 --sequences 32 --prompt 8 --tokens 64

The model has the sizes of --model and random weights. Installed as README.md says.
"""

import argparse
import json
import os
import random
import tempfile
import time

from common import MODELS, SIZES, reset_peak, status_bytes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--compute", choices=["f32", "bf16"], default="bf16")
    for name, default in [("sequences", 32), ("prompt", 8), ("tokens", 64), ("threads", 2), ("repetitions", 2)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    settings = parser.parse_args()
    os.environ |= {
        "OMP_NUM_THREADS": str(settings.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process, whose peak is that of the engine
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import LLM, SamplingParams

    sizes = dict(zip(SIZES, MODELS[settings.model]))
    with tempfile.TemporaryDirectory() as directory:
        write_config(directory, settings.model, sizes)
        engine = LLM(
            model=directory,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype={"f32": "float32", "bf16": "bfloat16"}[settings.compute],
            max_model_len=settings.prompt + settings.tokens,
            max_num_seqs=settings.sequences,
            enable_prefix_caching=False,
            logprobs_mode="processed_logprobs",
        )
    params = SamplingParams(temperature=1.0, max_tokens=settings.tokens, ignore_eos=True, logprobs=0, detokenize=False)
    numbers = random.Random(1)
    prompts = [{"prompt_token_ids": [numbers.randrange(sizes["vocab_size"]) for _ in range(settings.prompt)]}
               for _ in range(settings.sequences)]
    engine.generate(prompts, params, use_tqdm=False)
    reset_peak()
    speeds = []
    for _ in range(settings.repetitions):
        started = time.perf_counter()
        answers = engine.generate(prompts, params, use_tqdm=False)
        n = sum(len(answer.outputs[0].token_ids) for answer in answers)
        assert n == settings.sequences * settings.tokens
        speeds.append(n / (time.perf_counter() - started))
    print(json.dumps({"sampled_tokens_per_s": speeds, "peak_bytes": status_bytes("VmHWM")}))


def write_config(directory, model, sizes):
    """The configuration of a Llama or Qwen3 of these sizes."""
    kind = {"smollm2": "Llama"}.get(model, "Qwen3")
    config = {
        "architectures": [f"{kind}ForCausalLM"],
        "model_type": kind.lower(),
        "vocab_size": sizes["vocab_size"],
        "hidden_size": sizes["hidden_size"],
        "intermediate_size": sizes["intermediate_size"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv_heads"],
        "head_dim": sizes["head_dim"],
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(config, file)


if __name__ == "__main__":
    main()
