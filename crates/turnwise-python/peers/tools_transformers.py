"""Compares the specifications of tools with those that transformers makes, which TRL gives to a model.

    python crates/turnwise-python/peers/tools_transformers.py

needs the package `turnwise` and `transformers`. Ends with status 1 if one differs.
"""

import sys
from typing import Literal, Optional, Union

from transformers.utils import get_json_schema

from turnwise._tools import tool_spec


def add(a: int, b: float = 1.0) -> float:
    """Adds two numbers.

    Args:
        a: The first number.
        b: The second number,
            which may be left out.

    Returns:
        Their sum.
    """


def search(query: str, tags: list[str], exact: bool = False) -> str:
    """Searches the index.

    Args:
        query: What to look for.
        tags: Tags that all
            results have.
        exact: Whether the words must match.
    """


def move(direction: Literal["up", "down"], steps: Optional[int] = None) -> str:
    """
    Moves the piece. It may
    leave the board.

    Args:
        direction: Where to.
        steps: How far.
    """


def store(record: dict, key: Union[int, str]) -> None:
    """Stores a record.

    Args:
        record: The record.
        key: Its key.
    """


def wait() -> None:
    """Waits."""


def main():
    failed = False
    for tool in (add, search, move, store, wait):
        expected = get_json_schema(tool)["function"]
        expected.pop("return", None)
        own = tool_spec(tool)
        same = own == expected
        print(f"{tool.__name__:8} {'the same' if same else 'differs'}")
        if not same:
            print(f"  transformers {expected}\n  turnwise     {own}")
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
