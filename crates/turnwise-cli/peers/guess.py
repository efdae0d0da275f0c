"""The game of envs/guess in Python: its tasks, how an answer is read, and what it says and gives. For learning.py."""

import re

INSTRUCTIONS = (
    "You play a game: find a secret whole number in the given range, in the given number of guesses. "
    "After each wrong guess you are told whether the secret is higher or lower, and the range that is left. "
    "Guess the middle of that range. Answer with one number and nothing else."
)
NUMBERS, SPAN, TURNS = 20, 10, 5


# The tasks (tasks.rs, settings.rs, and seed.rs of turnwise-environment).

SPLIT = 0x67756573
WORD = (1 << 64) - 1


def mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & WORD
    return z ^ (z >> 31)


def derive_seed(seed, label):
    return mix(label ^ mix((seed + 0x9E3779B97F4A7C15) & WORD))


def tasks(held_out=False):
    """The tasks of a split, each as (low, high, secret), in the order of the suite."""
    ranges = [(low, high) for low in range(1, NUMBERS + 2 - SPAN) for high in range(low + SPAN - 1, NUMBERS + 1)]
    return [(low, high, secret) for low, high in ranges for secret in part(low, high, held_out)]


def part(low, high, held_out):
    """The secrets of one range in a split."""
    of_range = derive_seed(derive_seed(SPLIT, low), high)
    secrets = sorted(range(low, high + 1), key=lambda secret: derive_seed(of_range, secret))
    n_held_out = max((len(secrets) + 2) // 4, 1)
    return sorted(secrets[:n_held_out] if held_out else secrets[n_held_out:])


# The answer in a text (answer.rs of turnwise-environment).

CUES = ["answer is", "answer:", "guess is", "guess:", "result is", "result:", "i guess", "i choose", "i pick", "i say", "="]
NUMBER = re.compile(r"[0-9]+(?:,[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?")
MOST = (1 << 63) - 1


def integer(text):
    """The whole number that a text answers with, or None."""
    marked = next((part for part in (boxed(text), tagged(text), behind(text, "####"), cued(text)) if part is not None), None)
    found = list(numbers((text if marked is None else marked).strip()))
    if not found:
        return None
    is_negative, digits = found[-1] if marked is None else found[0]
    whole, _, fraction = digits.partition(".")
    if fraction.strip("0"):
        return None
    size = min(int(whole), MOST)
    return -size if is_negative else size


def behind(text, mark):
    at = text.rfind(mark)
    return None if at < 0 else text[at + len(mark) :]


def boxed(text):
    inside = behind(text, r"\boxed{")
    depth = 1
    for at, char in enumerate(inside or ""):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return inside[:at]
    return None


def tagged(text):
    inside = behind(text, "<answer>")
    return None if inside is None else inside.split("</answer>")[0]


def cued(text):
    """What follows the last cue that has any text behind it."""
    lower = "".join(char.lower() if char.isascii() else char for char in text)
    ends = [match.end() for cue in CUES for match in re.finditer(re.escape(cue), lower)]
    ends = [end for end in ends if any(char.isalnum() for char in text[end:])]
    return text[max(ends) :] if ends else None


def numbers(text):
    """The numbers in a text, each as (is_negative, digits). Digits in a word are none."""
    at = 0
    while match := NUMBER.search(text, at):
        start, at = match.span()
        before, after = text[start - 1 : start], text[at : at + 1]
        if any(char.isalpha() or char == "_" for char in (before, after)):
            while at < len(text) and text[at].isalnum():
                at += 1
            continue
        ahead = text[start - 2 : start - 1] if start >= 2 else ""
        yield before == "-" and not (ahead.isalnum() or ahead == ")"), match[0].replace(",", "")


# The game (game.rs).


class Game:
    """One episode."""

    def __init__(self, low, high, secret):
        self.secret, self.low, self.high, self.turns_used = secret, low, high, 0
        self.opening = f"Guess {low}-{high} in {TURNS}."

    def step(self, text):
        """What the environment says, and the reward where the episode ends."""
        self.turns_used += 1
        said = integer(text)
        if said == self.secret:
            return None, 1.0
        answer = "Answer with a number." if said is None else self.hint(said)
        return (None, 0.0) if self.turns_used >= TURNS else (answer, None)

    def hint(self, said):
        if said < self.secret:
            self.low, direction = max(self.low, said + 1), "higher"
        else:
            self.high, direction = min(self.high, said - 1), "lower"
        return f"{direction}: {self.low}-{self.high}"
