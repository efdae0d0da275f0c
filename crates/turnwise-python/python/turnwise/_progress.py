"""What a run prints."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TextIO


class Printer:
    """An observer that prints: lines to keep, and on a terminal the progress of what takes long."""

    def __init__(self, stream: TextIO | None = None, *, is_in_python: bool = False) -> None:
        """Prints to a stream, by default standard output. For an environment in Python, the commands that a run suggests at
        its end are left out: the command does not know the environment.
        """
        self.stream = stream if stream is not None else sys.stdout
        self.is_in_python = is_in_python
        self.steps = 0
        self._is_terminal = self.stream.isatty()
        self._progress = ""

    def __call__(self, event: str, content: Mapping[str, Any]) -> None:
        if event == "progress":
            self._show(content["text"])
        elif event == "idle":
            self._show("")
        elif event == "begin":
            self.steps = content["steps"]
            self._keep(content["header"])
        elif event == "step":
            self._keep([self._step(content)])
        elif event == "note":
            self._keep([content["text"]])
        elif event in ("compared", "finish"):
            lines: list[str] = content["lines"]
            after = [index for index, line in enumerate(lines) if line.startswith("next ")]
            self._keep(lines[: after[0]] if self.is_in_python and after else lines)

    def _keep(self, lines: list[str]) -> None:
        self._show("")
        print("\n".join(lines), file=self.stream, flush=True)

    def _show(self, text: str) -> None:
        if not self._is_terminal or text == self._progress:
            return
        self._progress = text
        self.stream.write("\r\x1b[K" + text[:119])
        self.stream.flush()

    def _step(self, content: Mapping[str, Any]) -> str:
        metrics = content["metrics"]

        def shown(name: str, form: str) -> str:
            value = metrics.get(name)
            return "–" if value is None else format(value, form)

        done, all_steps = content["step"] + 1, str(self.steps)
        parts = [
            f"step {done:>{len(all_steps)}}/{all_steps}",
            f"reward {shown('reward/mean', '.2f')}",
            f"solved {shown('reward/success_rate', '.0%')}",
            f"mixed {shown('group/mixed_frac', '.0%')}",
            f"clip {shown('objective/clip_frac', '.0%')}",
            f"{shown('length/turns_mean', '.1f')} turns",
            f"faults {shown('fault/infra_count', '.0f')}",
            f"{shown('time/step_s', '.1f')} s",
        ]
        return "  ".join(parts)
