"""A run on a Ray cluster: the trainer where the job starts, and a worker on every node.

    ray job submit --working-dir examples/cluster -- python ray_run.py --turnwise /path/to/turnwise settings.toml

`turnwise` has to be at the same path on all nodes. With several nodes, the trainer listens on the node's address and makes a token
that the workers get from Ray.
"""

import argparse
import os
import secrets
import socket
import subprocess
import tempfile

import ray

PORT = 7700


@ray.remote(num_cpus=1, max_retries=-1)
def work(turnwise, trainer, token):
    """Runs a worker until the trainer is gone. Ray starts it anew if its node dies."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(token)
        file.flush()
        done = subprocess.run([turnwise, "worker", "--trainer", trainer, "--token-file", file.name],
                              stdout=subprocess.PIPE, text=True)
        return f"{socket.gethostname()}: {done.stdout.strip().splitlines()[-1]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turnwise", default="turnwise")
    parser.add_argument("--workers", type=int, help="by default one for each node")
    parser.add_argument("settings")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    settings = parser.parse_args()
    ray.init()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    host = "127.0.0.1" if len(nodes) == 1 else ray.util.get_node_ip_address()
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as directory:
        file = os.path.join(directory, "token")
        with open(file, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as writer:
            writer.write(token)
        trainer = subprocess.Popen([
            settings.turnwise, "train", settings.settings, *settings.overrides,
            f'rollout.workers.address="{host}:{PORT}"', f'rollout.workers.token_file="{file}"',
        ])
        # A worker waits for a minute until the trainer answers.
        workers = [work.options(scheduling_strategy="SPREAD").remote(settings.turnwise, f"http://{host}:{PORT}", token)
                   for _ in range(settings.workers or len(nodes))]
        status = trainer.wait()
        for report in ray.get(workers):
            print(report)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
