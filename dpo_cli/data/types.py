"""What a row of preference data becomes: first an ``Example`` (text), then a ``Group`` (tokens)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


class Message(TypedDict):
    """One turn of a conversation. The keys that may be absent are for the chat template alone."""

    role: str
    content: str
    name: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]


Kind = Literal["pairs", "answers", "rankings"]
"""What is counted: comparisons of two answers, judged answers, or rankings of several."""


class Pair(NamedTuple):
    """One comparison."""

    winner: int
    """Index of the answer that is preferred."""
    loser: int
    weight: float = 1.0
    """How much it counts."""
    margin: float = 0.0
    """By how much the winner should win, in reward units."""
    label_prob: float | None = None
    """The probability that the winner is the better one; None = the loss's own smoothing."""


@dataclass(frozen=True, slots=True)
class Example:
    """One normalised row: a prompt, its answers, and what is said of them: pairs, labels or ranks.

    ``prompt`` and each of ``answers`` are either all messages (rendered by the chat template) or all plain text.
    """

    prompt: list[Message] | str
    answers: list[list[Message]] | list[str]
    """Messages of an answer begin and end with an assistant turn."""
    pairs: tuple[Pair, ...]
    """Comparisons among ``answers``."""
    source: str
    """Where the row stands, for messages to the user: ``file.jsonl, row 12``."""
    labels: tuple[bool, ...] = ()
    """Whether each answer is good; empty = nobody said."""
    ranks: tuple[int, ...] = ()
    """Each answer's place, 0 = best, equal places = not compared; empty = no ranking."""
    weight: float = 1.0
    """How much each of the labels, or the ranking, counts."""
    scored: tuple[tuple[int, ...], ...] = ()
    """For each answer the turns whose tokens are scored, by index; empty = every answer is one turn, and scored."""
    template_args: Mapping[str, Any] = field(default_factory=dict)
    """What the row gives the chat template besides messages: ``tools``, ``enable_thinking`` and the like."""


@dataclass(frozen=True, slots=True)
class Group:
    """An ``Example`` after templating and tokenising: one prompt and its K answers."""

    prompt_ids: Tokens
    """``[P]``, at least one token."""
    answers: tuple[Tokens, ...]
    """K arrays ``[A_k]``, each at least one token, end-of-turn included unless the answer was cut."""
    pairs: tuple[Pair, ...]
    source: str
    question: str = ""
    """The last user turn, or the plain prompt: what samples and judges are shown."""
    labels: tuple[bool, ...] = ()
    ranks: tuple[int, ...] = ()
    weight: float = 1.0
    """These three as in ``Example``."""
    scored: tuple[NDArray[np.bool_], ...] = ()
    """For each answer ``[A_k]``: whether the token is scored, or stands there for the others to follow (a user turn in
    the middle); empty = all are."""

    def count(self, kind: Kind) -> int:
        """How much the group counts in a batch."""
        match kind:
            case "pairs":
                return len(self.pairs)
            case "answers":
                return len(self.labels)
            case "rankings":
                return int(bool(self.ranks))
