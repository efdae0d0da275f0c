"""Trains on SkyRL's Tinker server, on a CPU, and compares its gradients with turnwise's own.

    python3.12 -m venv venv && venv/bin/pip install uv
    VIRTUAL_ENV=venv venv/bin/uv pip install 'skyrl[tinker,jax]==0.4.0' aiohttp
    venv/bin/python crates/turnwise-remote/peers/tinker.py

Makes a tiny model, starts the server, runs `examples/tinker.rs` of this crate on it, and loads the adapter with PEFT.
Run with SkyRL 0.4.0, tinker 0.25.0 and PEFT 0.18.1.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3Config

ROOT = Path(__file__).resolve().parents[3]
CONFIG = dict(vocab_size=1002, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, head_dim=16, max_position_embeddings=512, tie_word_embeddings=True,
              initializer_range=0.3)


def make_model(directory):
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(Qwen3Config(**CONFIG), dtype=torch.float32).save_pretrained(directory)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start_server(model, work, port, log):
    backend = {"max_lora_adapters": 6, "max_lora_rank": 8, "sample_max_num_sequences": 64, "train_micro_batch_size": 16}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "VIRTUAL_ENV": sys.prefix}
    # The server starts its engine with `uv run`, and insists on being started so itself.
    command = [f"{sys.prefix}/bin/uv", "run", "--active", "--no-project", "-m", "skyrl.tinker.api", "--base-model", model,
               "--backend", "jax", "--backend-config", json.dumps(backend), "--checkpoints-base", work,
               "--database-url", f"sqlite:///{work}/tinker.db", "--host", "127.0.0.1", "--port", str(port)]
    return subprocess.Popen(command, cwd=work, env=environment, stdout=log, stderr=log, start_new_session=True)


def wait_for(url, server):
    for _ in range(300):
        if server.poll() is not None:
            sys.exit(f"the server ended with {server.returncode}")
        try:
            return urllib.request.urlopen(f"{url}/api/v1/healthz").read()
        except OSError:
            time.sleep(1)
    sys.exit("the server does not answer")


def check_adapter(model, adapter):
    """PEFT has to load every tensor of the file, each under its own name."""
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapter)
    have = {name.replace(".default", ""): value for name, value in loaded.named_parameters() if "lora_" in name}
    wrote = load_file(f"{adapter}/adapter_model.safetensors")
    assert set(have) == set(wrote), set(have) ^ set(wrote)
    assert all(torch.equal(have[name], wrote[name]) for name in wrote)
    print(f"PEFT loads all {len(wrote)} tensors of the adapter")


def main():
    with tempfile.TemporaryDirectory() as work, open(f"{work}/server.log", "wb") as log:
        model, adapter = f"{work}/model", f"{work}/adapter"
        os.makedirs(adapter)
        make_model(model)
        port = free_port()
        server = start_server(model, work, port, log)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, server)
            run = ["cargo", "run", "--quiet", "-p", "turnwise-remote", "--example", "tinker", "--", url, model, adapter]
            subprocess.run(run, cwd=ROOT, check=True)
            check_adapter(model, adapter)
        except BaseException:
            print(Path(f"{work}/server.log").read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            os.killpg(server.pid, 15)


if __name__ == "__main__":
    main()
