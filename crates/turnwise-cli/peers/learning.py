"""Learning beside TRL: how long until a pretrained model succeeds on held-out tasks, from the same start, on the same task.

    python learning.py                                      seed 1, 20 steps, each side in turn
    python learning.py --seeds 1 2 3 --out learning         continues: a side and seed whose results are there is skipped
    python learning.py --check RUN/rollouts/step-000000.jsonl    compares guess.py with recorded conversations

SmolLM2-135M-Instruct learns `guess` as in examples/smollm2-guess.toml. Both sides start from one Hugging Face directory, which
transformers makes of the GGUF file, and have the same prompt, limits, groups, mini-batches, optimiser and learning rate, and a
sequence-level objective. In TRL, GRPOTrainer plays the game, in Python in guess.py, through its `rollout_func`. Models are
written on the way and measured afterwards by one command, `turnwise eval`; minutes are those of rollouts and training.

The folder OUT gets results.jsonl, results.txt (the table), results.png, and for each side and seed SIDE-SEED.jsonl, x
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
import tomllib

from common import TUNING, machine
from guess import Game, INSTRUCTIONS, TURNS, tasks
from step import QUIET, add_trl_arguments, sampler, trainer_class

# What both sides are told; the lines that examples/smollm2-guess.toml leaves out are turnwise's defaults for a loaded model.
GROUPS, GROUP, MINIBATCHES, TURN_TOKENS = 8, 8, 4, 8
LEARNING_RATE, WEIGHT_DECAY, GRADIENT_NORM = 2e-5, 0.01, 1.0
# turnwise measures ε (`objective.clip = "auto"`). TRL has the fixed ε that the first ten steps of three such runs came to.
EPSILON_LOW, EPSILON_HIGH = 0.065, 0.087
SIDES = ["trl-f32", "trl-bf16", "turnwise-f32", "turnwise-bf16"]
# A side has learned when its success is this much above its start.
GAIN = 0.3


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["trl-bf16", "turnwise-f32", "turnwise-bf16"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=5, help="steps between evaluations")
    parser.add_argument("--episodes", type=int, default=128, help="held-out episodes of an evaluation")
    parser.add_argument("--config", type=pathlib.Path, default="examples/smollm2-guess.toml")
    parser.add_argument("--gguf", type=pathlib.Path, help="the model; by default that of the configuration")
    parser.add_argument("--out", type=pathlib.Path, default="learning")
    parser.add_argument("--turnwise", default="target/release/turnwise")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--micro-batch", type=int, default=16, help="the most rows that TRL trains at once")
    add_trl_arguments(parser)
    parser.add_argument("--keep", action="store_true", help="keep the models on the way")
    parser.add_argument("--check", metavar="FILE", help="compare the game with a run's or an evaluation's conversations")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    with open(settings.config, "rb") as file:
        config = tomllib.load(file)
    settings.examples = config["agent"]["examples"]
    settings.gguf = settings.gguf or pathlib.Path(config["model"]["directory"])
    settings.start = settings.out / "start"
    return settings


class Chat:
    """Tokens of the conversation, by the model's own template."""

    def __init__(self, tokenizer, examples):
        self.tokenizer, self.end = tokenizer, tokenizer.eos_token_id
        self.before = [{"role": "system", "content": INSTRUCTIONS}, *examples]

    def opening(self, text):
        """The prompt of the first turn."""
        messages = [*self.before, {"role": "user", "content": text}]
        whole = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(whole, add_special_tokens=False)["input_ids"]

    def answer(self, text):
        """What stands between the end token of a turn and the next turn."""
        said = f"\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        return self.tokenizer(said, add_special_tokens=False)["input_ids"]

    def text(self, ids):
        """What a turn says."""
        return self.tokenizer.decode(ids[:-1] if ids[-1] == self.end else ids, skip_special_tokens=False).strip()


def check(settings, path):
    """Plays recorded conversations again. Texts, rewards and tokens must be the same. Returns how many there were."""
    from transformers import AutoTokenizer

    # A task's index counts within its split, and evaluations play the held-out one.
    is_held_out = pathlib.Path(path).name.startswith("eval")
    chat, known = Chat(AutoTokenizer.from_pretrained(settings.start), settings.examples), tasks(is_held_out)
    recorded = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
    for trajectory in recorded:
        replay(trajectory, chat, Game(*known[trajectory["identity"]["task_index"]]))
    return len(recorded)


def replay(trajectory, chat, game):
    nodes = trajectory["graph"]["nodes"]
    rewards = [turn["reward"] for turn in trajectory["turns"]]
    ids, recorded = chat.opening(game.opening), []
    for node in nodes:
        sampled = next((span["sampled"]["ids"] for span in node["spans"] if "sampled" in span), None)
        for span in node["spans"]:
            [(kind, tokens)] = span.items()
            recorded += tokens["ids"] if kind == "sampled" else tokens
        if sampled is None:
            continue
        ids += sampled
        assert chat.text(sampled) == node["message"]["content"], (chat.text(sampled), node["message"])
        said, reward = game.step(chat.text(sampled))
        assert reward == rewards.pop(0), trajectory["identity"]
        if said is not None:
            ids += [] if sampled[-1] == chat.end else [chat.end]
            ids += chat.answer(said)
    assert not rewards and ids == recorded, (ids, recorded)


# Episodes side by side, on transformers.


class Episode:
    """A conversation: its tokens after the prompt, which of them were sampled, and with what log-probability."""

    def __init__(self, chat, task):
        self.chat, self.game = chat, Game(*task)
        self.prompt = chat.opening(self.game.opening)
        self.ids, self.mask, self.logprobs, self.turn, self.reward = [], [], [], [], None
        self.unread = self.prompt

    def sample(self, token, logprob):
        """Adds a token of the turn; returns whether the turn is over."""
        self.add([token], 1, [logprob])
        self.turn.append(token)
        return token == self.chat.end or len(self.turn) == TURN_TOKENS

    def end_turn(self):
        """Plays the turn, and adds what the environment says."""
        said, self.reward = self.game.step(self.chat.text(self.turn))
        if said is not None:
            # A turn that was cut is closed with a token that does not train.
            ids = ([] if self.turn[-1] == self.chat.end else [self.chat.end]) + self.chat.answer(said)
            self.add(ids, 0, [0.0] * len(ids))
        self.turn = []

    def add(self, ids, sampled, logprobs):
        self.ids += ids
        self.unread = self.unread + ids
        self.mask += [sampled] * len(ids)
        self.logprobs += logprobs


class Reader:
    """Feeds episodes to a model, and keeps its cache over the turns."""

    def __init__(self, model):
        import torch
        from transformers import DynamicCache

        self.model, self.cache = model, DynamicCache(config=model.config)
        self.mask = torch.zeros((0, 0), dtype=torch.long)

    def prompts(self, episodes):
        """Computes the prompt of each group once. Returns the logits of each episode's first token."""
        import torch

        logits = self.read(episodes[::GROUP])
        for episode in episodes:
            episode.unread = []
        self.cache.batch_repeat_interleave(GROUP)
        self.mask = self.mask.repeat_interleave(GROUP, dim=0)
        return logits.repeat_interleave(GROUP, dim=0)

    def read(self, episodes):
        """Computes what each episode has not read yet, padded on the left. Returns the logits of the last place."""
        import torch

        width = max(len(episode.unread) for episode in episodes)
        gaps = [width - len(episode.unread) for episode in episodes]
        ids = torch.tensor([[0] * gap + episode.unread for gap, episode in zip(gaps, episodes)])
        new = torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps])
        for episode in episodes:
            episode.unread = []
        self.mask = torch.cat([self.mask.reshape(len(episodes), -1), new], dim=1)
        places = (self.mask.cumsum(dim=1)[:, -width:] - 1).clamp(min=0)
        return self.model(ids, attention_mask=self.mask, position_ids=places, cache=self.cache, use_cache=True,
                          logits_to_keep=1).logits[:, -1].float()

    def keep(self, rows):
        """Leaves out the episodes that have ended."""
        import torch

        rows = torch.tensor(rows)
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]


def play(model, episodes):
    """Plays episodes to their end: a turn of all that still play, then the environment's answers."""
    reader, playing = Reader(model), episodes
    logits = reader.prompts(episodes)
    while True:
        play_turn(reader, playing, logits)
        for episode in playing:
            episode.end_turn()
        rows = [row for row, episode in enumerate(playing) if episode.reward is None]
        if not rows:
            return
        if len(rows) < len(playing):
            reader.keep(rows)
        playing = [playing[row] for row in rows]
        logits = reader.read(playing)


def play_turn(reader, playing, logits):
    """Samples a turn of each episode. Those that are done wait for the others."""
    import torch

    open_turns = set(range(len(playing)))
    while True:
        distribution = torch.log_softmax(logits, dim=-1)
        tokens = torch.multinomial(distribution.exp(), 1)
        logprobs = distribution.gather(1, tokens)[:, 0].tolist()
        tokens = tokens[:, 0].tolist()
        open_turns -= {row for row in sorted(open_turns) if playing[row].sample(tokens[row], logprobs[row])}
        if not open_turns:
            return
        logits = reader.read(playing)


# TRL.


class Rollout:
    """The `rollout_func`: plays a batch, and notes how long it took and how it went."""

    def __init__(self, chat, twin):
        self.chat, self.twin, self.seconds, self.rewards = chat, twin, [], []

    def __call__(self, prompts, trainer):
        import torch

        began = time.perf_counter()
        model = sampler(trainer, self.twin)
        episodes = [Episode(self.chat, map(int, prompt.split())) for prompt in prompts]
        training = model.training
        model.eval()
        with torch.no_grad():
            play(model, episodes)
        model.train(training)
        masks, logprobs = [episode.mask for episode in episodes], [episode.logprobs for episode in episodes]
        trainer.note_rollouts(masks, logprobs)
        self.seconds.append(time.perf_counter() - began)
        self.rewards.append(statistics.mean(episode.reward for episode in episodes))
        return {
            "prompt_ids": [episode.prompt for episode in episodes],
            "completion_ids": [episode.ids for episode in episodes],
            "logprobs": logprobs,
            "env_mask": masks,
            "won": [episode.reward for episode in episodes],
        }


def reward(won, **_):
    return won


def make_trainer(settings, seed, is_bf16, directory):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig

    torch.set_num_threads(settings.threads)
    load = lambda dtype: AutoModelForCausalLM.from_pretrained(settings.start, dtype=dtype, attn_implementation="sdpa")
    tokenizer = AutoTokenizer.from_pretrained(settings.start)
    n_rows = GROUPS * GROUP // MINIBATCHES
    micro_batch = min(settings.micro_batch, n_rows)
    accumulation = n_rows // micro_batch
    config = GRPOConfig(
        output_dir=directory,
        seed=seed,
        importance_sampling_level="sequence",
        loss_type="grpo",
        epsilon=EPSILON_LOW,
        epsilon_high=EPSILON_HIGH,
        beta=0.0,
        num_generations=GROUP,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        # An optimiser step for each mini-batch of the episodes that were generated together.
        steps_per_generation=accumulation * MINIBATCHES,
        num_iterations=1,
        max_completion_length=512,
        temperature=1.0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        weight_decay=WEIGHT_DECAY,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        max_grad_norm=GRADIENT_NORM,
        optim="adamw_torch_fused",
        max_steps=settings.steps * MINIBATCHES,
        bf16=is_bf16,
        **QUIET,
    )
    return trainer_class(settings)(
        model=load(torch.float32),
        reward_funcs=reward,
        args=config,
        # The prompt names the task; `rollout_func` makes the conversation of it.
        train_dataset=Dataset.from_dict({"prompt": [" ".join(map(str, task)) for task in tasks()]}),
        processing_class=tokenizer,
        rollout_func=Rollout(Chat(tokenizer, settings.examples), load(torch.bfloat16).eval() if is_bf16 else None),
    )


def train_trl(settings):
    """Trains in this process; returns what each step took, and leaves models in the run's directory."""
    from transformers import TrainerCallback

    side, seed, directory = settings.train.split(",")
    marks = evaluated_steps(settings)

    class Clock(TrainerCallback):
        """Adds up the time of optimiser steps, the rollouts before them included, and saves models between them."""

        def __init__(self):
            self.began, self.seconds, self.steps = None, 0.0, []

        def on_step_begin(self, *_, **__):
            self.began = time.perf_counter()

        def on_step_end(self, _, state, __, **___):
            self.seconds += time.perf_counter() - self.began
            if state.global_step % MINIBATCHES > 0:
                return
            step = state.global_step // MINIBATCHES
            rollout = trainer.rollout_func
            self.steps.append({"step": step, "seconds": self.seconds, "rollout_s": rollout.seconds[-1],
                               "reward": rollout.rewards[-1]})
            print(json.dumps(self.steps[-1]), file=sys.stderr, flush=True)
            if step in marks:
                trainer.save_model(model_at(pathlib.Path(directory), step))

    trainer = make_trainer(settings, int(seed), side.endswith("bf16"), directory)
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return clock.steps


def model_at(directory, step):
    return directory / "checkpoints" / f"step-{step:06}"


# The comparison.


def make_start(settings):
    """Writes the GGUF file as a Hugging Face directory in f32, from which both sides start."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = settings.gguf.parent, settings.gguf.name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # transformers refuses to save a model that it loaded from GGUF, though its numbers are plain ones.
    del model.config.quantization_config
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(settings.start)
    plain.save_pretrained(settings.start)


def evaluated_steps(settings):
    return [*range(settings.every, settings.steps, settings.every), settings.steps]


def agent_flags(settings):
    """The task, prompt and limits, for `turnwise train` and `turnwise eval`."""
    message = lambda of: "{ " + ", ".join(f"{key} = {json.dumps(of[key])}" for key in ["role", "content"]) + " }"
    return ["agent.examples=[" + ", ".join(map(message, settings.examples)) + "]", f"limits.max_turns={TURNS}",
            f"limits.max_turn_tokens={TURN_TOKENS}", "limits.max_context_tokens=512", f"engine.threads={settings.threads}"]


def train_turnwise(settings, side, seed, directory):
    """Trains with `turnwise train`; returns what each step took."""
    command = [settings.turnwise, "train", settings.config, "--run-dir", directory, *agent_flags(settings)]
    command += [f"{key}={value}" for key, value in {
        "run.seed": seed,
        "run.steps": settings.steps,
        "model.directory": settings.start,
        "model.compute": side.split("-")[1],
        "rollout.groups_per_step": GROUPS,
        "rollout.group_size": GROUP,
        "train.n_minibatches": MINIBATCHES,
        "train.learning_rate": LEARNING_RATE,
        "train.decay": "cosine",
        "train.max_grad_norm": GRADIENT_NORM,
        "train.threads": settings.threads,
        "optimizer.weight_decay": WEIGHT_DECAY,
        "eval.episodes": 1,
        "log.checkpoint_every": settings.every,
        "log.keep_checkpoints": settings.steps + 1,
    }.items()]
    directory.with_suffix(".log").write_text(call(command, directory))
    seconds, steps = 0.0, []
    for text in (directory / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(text)
        seconds += metrics["time/step_s"]
        steps.append({"step": metrics["step"] + 1, "seconds": seconds, "rollout_s": metrics["time/rollout_s"],
                      "reward": metrics["reward/mean"], "epsilon": metrics.get("objective/clip_low")})
    return steps


def call(command, directory):
    """Runs a command and returns what it prints; what it says about its progress goes to a file beside the directory."""
    environment = {name: value for name, value in os.environ.items() if not TUNING.match(name)}
    with open(directory.with_suffix(".err"), "a") as log:
        done = subprocess.run(list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}; see {log.name}")
    return done.stdout


def evaluate(settings, model):
    """Success on held-out tasks, the same tasks and seeds for every model, computed in f32."""
    command = [settings.turnwise, "eval", "--model", model, "--env", "guess", "--episodes", settings.episodes, "--seed", 1,
               "--json", "model.compute=f32", *agent_flags(settings)]
    result = json.loads(call(command, settings.out / "eval").splitlines()[-1])
    return {"success": result["success_rate"], "low": result["ci_low"], "high": result["ci_high"]}


def measure(settings, side, seed):
    """Trains one side with one seed, evaluates its models, and returns a row for each evaluation."""
    directory = settings.out / f"{side}-{seed}"
    shutil.rmtree(directory, ignore_errors=True)
    if side.startswith("trl"):
        printed = call([sys.executable, *sys.argv, "--train", f"{side},{seed},{directory}"], directory)
        steps = json.loads(printed.splitlines()[-1])
    else:
        steps = train_turnwise(settings, side, seed, directory)
        first = sorted((directory / "rollouts").iterdir())[0]
        print(f"  {check(settings, first)} recorded conversations are those of the game in Python", flush=True)
    show_steps(side, seed, steps)
    rows = [row(side, seed, {"step": 0, "seconds": 0.0}, start_success(settings))]
    for step in evaluated_steps(settings):
        rows.append(row(side, seed, steps[step - 1], evaluate(settings, model_at(directory, step))))
        print(f"  {line(rows[-1])}", flush=True)
    (settings.out / f"{side}-{seed}.steps.json").write_text(json.dumps(steps))
    if not settings.keep:
        shutil.rmtree(directory / "checkpoints")
    return rows


def start_success(settings):
    """The success of the start, which all sides share."""
    path = settings.out / f"start-{settings.episodes}.json"
    if not path.exists():
        path.write_text(json.dumps(evaluate(settings, settings.start)))
    return json.loads(path.read_text())


def row(side, seed, step, success):
    return {"side": side, "seed": seed, "step": step["step"], "episodes": step["step"] * GROUPS * GROUP,
            "minutes": step["seconds"] / 60, **success}


def line(of):
    return (f"{of['side']:<14}{of['seed']:>5}{of['step']:>6}{of['episodes']:>10}{of['minutes']:>9.2f}"
            f"{of['success']:>9.3f} [{of['low']:.3f}, {of['high']:.3f}]")


def show_steps(side, seed, steps):
    whole = steps[-1]["seconds"] / len(steps)
    rollouts = statistics.mean(step["rollout_s"] for step in steps)
    print(f"{side} seed {seed}: {whole:.1f} s a step, {rollouts:.1f} s of it rollouts", flush=True)
    measured = [step["epsilon"] for step in steps if step.get("epsilon")]
    if measured:
        print(f"  ε measured: {', '.join(f'{epsilon:.3f}' for epsilon in measured)}", flush=True)


def time_to_gain(rows):
    """Minutes and episodes until success is GAIN above the start, between evaluations along a line; None if never."""
    wanted = rows[0]["success"] + GAIN
    for before, after in zip(rows, rows[1:]):
        if after["success"] >= wanted:
            share = (wanted - before["success"]) / (after["success"] - before["success"])
            return [before[key] + share * (after[key] - before[key]) for key in ["minutes", "episodes"]]
    return None


def report(settings):
    """Writes the results of all sides and seeds that are there."""
    found = [path for side in SIDES for path in sorted(settings.out.glob(f"{side}-*.jsonl"))]
    runs = [[json.loads(text) for text in path.read_text().splitlines()] for path in found]
    lines = [f"{'side':<14}{'seed':>5}{'step':>6}{'episodes':>10}{'minutes':>9}{'success':>9}"]
    lines += [line(of) for rows in runs for of in rows]
    for rows in runs:
        reached = time_to_gain(rows)
        when = "not reached" if reached is None else f"{reached[0]:.2f} minutes, {reached[1]:.0f} episodes"
        lines.append(f"to +{GAIN}: {rows[0]['side']:<14} seed {rows[0]['seed']}: {when}")
    (settings.out / "results.jsonl").write_text("".join(json.dumps(of) + "\n" for rows in runs for of in rows))
    (settings.out / "results.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    plot(runs, settings.out / "results.png")


def plot(runs, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for panel, key in zip(panels, ["minutes", "episodes"]):
        for rows in runs:
            side, seed = rows[0]["side"], rows[0]["seed"]
            colour = f"C{SIDES.index(side)}"
            is_first = seed == min(other[0]["seed"] for other in runs if other[0]["side"] == side)
            panel.plot([of[key] for of in rows], [of["success"] for of in rows], color=colour, marker=".",
                       label=side if is_first else None)
        panel.set_xlabel(f"{key} of training" if key == "minutes" else "training episodes")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("success on held-out tasks")
    panels[0].legend()
    figure.savefig(path, dpi=150)


def main():
    settings = arguments()
    if settings.train:
        print(json.dumps(train_trl(settings)))
        return
    settings.out.mkdir(parents=True, exist_ok=True)
    if not (settings.start / "model.safetensors").exists():
        make_start(settings)
    if settings.check:
        print(f"{check(settings, settings.check)} conversations are the same")
        return
    print(machine(settings.threads), flush=True)
    for seed in settings.seeds:
        for side in settings.sides:
            path = settings.out / f"{side}-{seed}.jsonl"
            if not path.exists():
                rows = measure(settings, side, seed)
                path.write_text("".join(json.dumps(of) + "\n" for of in rows))
    report(settings)


if __name__ == "__main__":
    main()
