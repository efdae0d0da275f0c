"""Environments for the tests."""

import turnwise

#: Settings of a model so small that a run takes seconds.
SMALL = {
    "model": {"hidden_size": 64, "intermediate_size": 128, "n_layers": 1, "head_dim": 16},
    "warm_start": {"steps": 40},
    "rollout": {"groups_per_step": 4, "group_size": 8},
    "limits": {"max_turns": 4, "max_turn_tokens": 4, "max_context_tokens": 128},
    "objective": {"clip_low": 0.1, "clip_high": 0.2},
    "train": {"learning_rate": 1e-3},
    "eval": {"episodes": 32},
    "log": {"rollouts_per_step": 4},
}


class Parrot:
    """Says a letter, which is to be repeated, twice."""

    instructions = "Repeat the letter."

    def reset(self, task):
        self.task, self.turn = task, 0
        return task["letter"]

    def step(self, action):
        self.turn += 1
        right = action.strip() == self.task["letter"]
        if self.turn == 2:
            return turnwise.Step(reward=0.5 * right, done=True, solved=right)
        return self.task["letter"], 0.5 * right, False

    @staticmethod
    def expert(observation, random):
        return random.choice("abc")

    tasks = [{"letter": letter, "number": number} for letter in "abc" for number in range(20)]


class Fruit:
    """TRL's contract: guess the fruit that the row names, with a tool."""

    def __init__(self):
        self.guesses = []

    def reset(self, **row):
        self.fruit = row["fruit"]
        self.guesses.clear()
        return " Which fruit is it?"

    def guess(self, fruit: str, sure: bool = False) -> str:
        """Guesses a fruit.

        Args:
            fruit: The name of the fruit,
                in lower case.
            sure: Whether you are sure.

        Returns:
            Whether it is right.
        """
        self.guesses.append(fruit)
        if fruit == "durian":
            raise ValueError("no durian in here")
        return "right" if fruit == self.fruit else "wrong"

    async def peek(self, place: int) -> str:
        """Looks at a letter of the name."""
        return self.fruit[place]

    def get_reward(self) -> float:
        return float(self.fruit in self.guesses)

    def _hidden(self):
        raise AssertionError("no tool")

    @staticmethod
    def expert(observation, random):
        if "wrong" in observation or "right" in observation:
            return "done"
        return turnwise.call("guess", fruit=random.choice(["fig", "kiwi"]))
