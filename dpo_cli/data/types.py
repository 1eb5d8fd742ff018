"""What a row of preference data becomes: first an ``Example`` (text), then a ``Group`` (tokens)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One normalised row: a prompt, its answers, and which answer is preferred to which.

    ``prompt`` and each of ``answers`` are either all messages (rendered by the chat template) or all plain text.
    """

    prompt: list[Message] | str
    answers: list[list[Message]] | list[str]
    pairs: tuple[tuple[int, int], ...]
    """Preferences as (winner, loser) indices into ``answers``."""
    source: str
    """Where the row stands, for messages to the user: ``file.jsonl, row 12``."""


@dataclass(frozen=True, slots=True)
class Group:
    """An ``Example`` after templating and tokenising: one prompt and its K answers."""

    prompt_ids: Tokens
    """``[P]``, at least one token."""
    answers: tuple[Tokens, ...]
    """K arrays ``[A_k]``, each at least one token, end-of-turn included unless the answer was cut."""
    pairs: tuple[tuple[int, int], ...]
    source: str
    question: str = ""
    """The last user turn, or the plain prompt: what samples and judges are shown."""

    @property
    def comparisons(self) -> int:
        """How much the group counts in a batch: its pairs."""
        return len(self.pairs)
