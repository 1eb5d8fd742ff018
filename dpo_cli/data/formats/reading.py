"""What the user says of the rows, and what is wrong with one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns that say more about a comparison; None = none does."""

    weight: str | None = None
    """How much the row counts: a number that is not negative."""
    margin: str | tuple[str, str] | None = None
    """By how much the winner should win: a number; or two columns, of the first and the second answer, whose
    difference it is; of ranked rows a list with a number per answer."""
    label_prob: str | None = None
    """The probability that the chosen answer is the better one."""


NO_COLUMNS = Columns()


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows become Examples."""

    shape: str = "auto"
    """Which of the shapes rows have; ``auto``: what their columns look like."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """A shape's field -> the row's column, or a text with ``{columns}`` in it."""
    says: Columns = NO_COLUMNS
    system: str | None = None
    """Put before prompts that have no system turn of their own."""
    loss_on: Literal["last", "differing"] = "last"
    """Which assistant turns of two dialogues are compared: the last that differs, or all that do."""


AS_FOUND = Reading()


class BadRowError(ValueError):
    """A row that can't become an Example. The message names the field, what was found and what was expected."""

    finding = "bad-rows"
    """What an audit calls it."""


class EmptyAnswerError(BadRowError):
    """An answer says nothing."""

    finding = "empty-answers"


class EqualAnswersError(BadRowError):
    """Two answers are the same."""

    finding = "equal-answers"


def content_hash(content: Any) -> bytes:
    """16 bytes that are the same wherever and whenever the content is."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).digest()
