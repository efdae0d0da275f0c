"""Train a model on an environment in Python: rock, paper, scissors against an opponent who can be read.

    pip install turnwise
    python examples/python_environment.py

A small model is made here. Random moves teach it the form of an answer; that the opponent can be read is learnt from
rewards. It takes less than a minute on two cores.
"""

import sys

import turnwise

MOVES = ["rock", "paper", "scissors"]  # each beats the one before it


class Opponent:
    """Plays its moves in turn, from a first one that the seed chooses. Five rounds; the task is to win the last four."""

    instructions = "Play rock, paper, scissors. Answer with your move alone."

    def reset(self, seed):
        self.next, self.wins, self.round = seed % 3, 0, 0
        return "First round."

    def step(self, action):
        shown = MOVES[self.next]
        self.round += 1
        self.next = (self.next + 1) % 3
        if action not in MOVES:
            return turnwise.Step(f"I played {shown}. Say rock, paper or scissors.", 0.0, self.round == 5, faults=1)
        won = MOVES.index(action) == self.next and self.round > 1
        self.wins += won
        if self.round == 5:
            return turnwise.Step(reward=0.25 * won, done=True, solved=self.wins == 4)
        return f"I played {shown}.", 0.25 * won, False

    @staticmethod
    def expert(observation, random):
        """Knows the form of an answer and nothing else: what a new model imitates before it is trained."""
        return random.choice(MOVES)


SETTINGS = {
    "model": {"hidden_size": 64, "intermediate_size": 128, "n_layers": 1, "head_dim": 16},
    "warm_start": {"steps": 40},
    "limits": {"max_turns": 5, "max_turn_tokens": 6, "max_context_tokens": 192},
    "objective": {"name": "gspo_token", "clip_low": 0.05, "clip_high": 0.07},
    "train": {"learning_rate": 1e-3},
    "eval": {"episodes": 128},
}

if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 120
    run = turnwise.train(Opponent, SETTINGS, run={"steps": steps})
    print(f"{run}: success {run.before} -> {run.after}")
    last = run.episodes(evaluation="after")[0].turns[-1]
    print(f"{last.message['content']}: {last.ids} with {last.logprobs} under version {last.versions}")
