"""What an audit finds, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Histogram:
    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class Lengths:
    mean: float
    median: float
    p95: float
    longest: int
    histogram: Histogram


@dataclass(frozen=True)
class Finding:
    name: str
    level: Literal["error", "warning", "note"]
    count: int
    share: float | None
    what: str
    effect: str
    advice: str
    rows: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Side:
    rows: int
    comparisons: int
    answers: int
    prompts: int
    lengths: dict[str, Lengths]
    length_gap: Histogram | None
    longer_wins: float | None
    longer_wins_interval: tuple[float, float] | None
    turns: dict[str, int]
    scripts: dict[str, int]
    system_prompts: int
    counts: dict[str, Any]


@dataclass(frozen=True)
class Result:
    version: int
    model: str
    data: str
    train: Side
    held_out: Side | None
    findings: list[Finding]
