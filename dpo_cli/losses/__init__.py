"""Losses: one pure function per file, ``f(logps, preferences, **hyperparameters) -> [B]``, found here by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from dpo_cli.losses.dpo import dpo
from dpo_cli.losses.metrics import NAMES, Sums
from dpo_cli.losses.types import AnswerLogps, Preferences

Loss = Callable[[AnswerLogps, Preferences], Tensor]

LOSSES: dict[str, Callable[..., Tensor]] = {"dpo": dpo}


def get_loss(name: str, **hyperparameters: Any) -> Loss:
    """The loss of that name with its hyperparameters filled in."""
    return partial(LOSSES[name], **hyperparameters)


__all__ = ["LOSSES", "NAMES", "AnswerLogps", "Loss", "Preferences", "Sums", "get_loss"]
