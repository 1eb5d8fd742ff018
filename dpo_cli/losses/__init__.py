"""Losses: pure functions, found by name in ``registry``; ``make_loss`` puts one together."""

from dpo_cli.losses.loss import Loss, Result, make_loss
from dpo_cli.losses.metrics import Sums
from dpo_cli.losses.registry import LOSSES, Kind
from dpo_cli.losses.types import AnswerLogps, Preferences, count_of

__all__ = ["LOSSES", "AnswerLogps", "Kind", "Loss", "Preferences", "Result", "Sums", "count_of", "make_loss"]
