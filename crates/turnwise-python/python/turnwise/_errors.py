"""Exceptions, and how an exception of an environment is described."""

from __future__ import annotations

import os
import traceback


class TurnwiseError(Exception):
    """A run that failed. The text says what failed, where, and what to do about it, as the ``turnwise`` command prints it.

    Attributes:
        exit_code: The exit code with which the command would end.
    """

    exit_code: int

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Refused(TurnwiseError, ValueError):
    """Settings, a model or an environment were refused before anything started."""


class RunLocked(TurnwiseError):
    """Another process uses the run directory."""


class NotFinite(TurnwiseError, ArithmeticError):
    """A number became NaN or infinite."""


class TooManyFaults(TurnwiseError):
    """Too many episodes broke: the text names the last exception of the environment."""


class Stopped(TurnwiseError):
    """The run was stopped before its end, and :func:`turnwise.resume` goes on with it."""


_PACKAGE = os.path.dirname(os.path.abspath(__file__))


def describe(error: BaseException) -> str:
    """Describes an exception in one line: its type, its message, and the line of the user's own code that raised it."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    if own:
        last = own[-1]
        text += f" (line {last.lineno} of {last.filename}, in {last.name}: {last.line})"
    return " ".join(text.split())


def _is_ours(path: str) -> bool:
    return os.path.abspath(path).startswith(_PACKAGE + os.sep)
