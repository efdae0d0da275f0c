"""Multi-turn reinforcement learning for language-model agents.

Train a model on an environment in Python with one call::

    import turnwise

    class Thermostat:
        def reset(self, task):
            self.right = task
            return "Choose a setting from 0 to 9."

        def step(self, action):
            return "Wrong.", float(action.strip() == str(self.right)), action.strip() == str(self.right)

    run = turnwise.train(Thermostat, tasks=range(10), run={"steps": 50})
    print(run.before, run.after)

The package has the objectives and advantages (:func:`gspo_token`, :func:`step_loss`, :func:`mean_std`), the files of runs
(:class:`Run`), the engine and the trainer in this process (:class:`Policy`, :class:`Learner`), and training
(:func:`train`, :func:`resume`, :func:`evaluate`, :func:`check`).
"""

from ._environment import Action, Environment, Step, ToolCall, call
from ._errors import NotFinite, Refused, RunLocked, Stopped, TooManyFaults, TurnwiseError
from ._model import Learner, Policy, Row, Sample, Tokenizer, Updated
from ._native import version as _version
from ._objective import (
    Loss,
    SequenceStats,
    broadcast_outcome,
    by_anchor_state,
    grpo,
    gspo,
    gspo_token,
    gspo_turn,
    leave_one_out,
    mean_only,
    mean_std,
    minus_mean_return,
    minus_mean_return_at_turn,
    minus_mean_return_of_others,
    mix,
    objectives,
    reward_to_go,
    spread_over_tokens,
    step_loss,
)
from ._run import Check, Episode, Evaluated, Run, Success, Turn, check, evaluate, resume, train

__version__ = _version()

__all__ = [
    "Action",
    "Check",
    "Environment",
    "Episode",
    "Evaluated",
    "Learner",
    "Loss",
    "NotFinite",
    "Policy",
    "Refused",
    "Row",
    "Run",
    "RunLocked",
    "Sample",
    "SequenceStats",
    "Step",
    "Stopped",
    "Success",
    "Tokenizer",
    "TooManyFaults",
    "ToolCall",
    "Turn",
    "TurnwiseError",
    "Updated",
    "broadcast_outcome",
    "by_anchor_state",
    "call",
    "check",
    "evaluate",
    "grpo",
    "gspo",
    "gspo_token",
    "gspo_turn",
    "leave_one_out",
    "mean_only",
    "mean_std",
    "minus_mean_return",
    "minus_mean_return_at_turn",
    "minus_mean_return_of_others",
    "mix",
    "objectives",
    "resume",
    "reward_to_go",
    "spread_over_tokens",
    "step_loss",
    "train",
]
