"""What an audit finds, as plain values: ``dataclasses.asdict`` of ``Result`` is what ``dpo inspect --json`` prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
"""The worst first: training stops or goes wrong; is likely to be worse for it; should be known."""
SideName = Literal["training", "held out"]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Equal bins."""

    edges: list[float]
    """One more than bins."""
    counts: list[int]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of prompts or answers, in tokens before any cut."""

    mean: float
    median: float
    p95: float
    longest: int
    histogram: Histogram


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to be said of the rows."""

    name: str
    """Stable, for ``--fail-on``."""
    side: SideName
    """Which rows it is about."""
    level: Level
    count: int
    share: float | None
    """Of what ``what`` names."""
    what: str
    effect: str
    """On training."""
    advice: str
    rows: list[str] = field(default_factory=list)
    """Where up to three of them stand, and what there is to see."""


@dataclass(frozen=True, slots=True)
class Side:
    """Training or held-out rows; those that can't be used are in ``counts`` alone."""

    rows: int
    comparisons: int
    answers: int
    prompts: int
    """Different ones."""
    lengths: dict[str, Lengths]
    """Of ``prompt``, and of ``chosen`` and ``rejected`` (or ``good`` and ``bad``) answers."""
    length_gap: Histogram | None
    """Chosen - rejected, in tokens; None where nothing is compared."""
    longer_wins: float | None
    """Share of the comparisons of answers of different length: the accuracy of a rule of length alone."""
    longer_wins_interval: tuple[float, float] | None
    """Of 95 % (Wilson 1927)."""
    turns: dict[str, int]
    """Messages in a conversation, answer included -> rows."""
    scripts: dict[str, int]
    """What answers are mostly written in -> answers."""
    system_prompts: int
    """Different ones."""
    counts: dict[str, Any]
    """What became of the rows that were read: see ``Counts``."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of an audit."""

    version: int
    """Of this schema."""
    model: str
    data: str
    train: Side
    held_out: Side | None
    findings: list[Finding]
    """The worst first, then by how many rows."""
