"""What is measured of one side, from the facts of each row."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np
from rensa import RMinHash

from dpo_cli.data.audit.alike import Sketches
from dpo_cli.data.audit.facts import Facts
from dpo_cli.data.audit.result import Histogram, Lengths, Side
from dpo_cli.data.build import Counts, Seen

_BINS = 20


@dataclass(slots=True)
class Prompt:
    """One that some rows have."""

    sketch: RMinHash | None
    rows: list[str] = field(default_factory=list)


@dataclass
class Measured:
    """Filled in by ``add``. Memory grows by a few kilobytes a row, most of them for finding near duplicates."""

    counts: Counts = field(default_factory=Counts)
    rows: int = 0
    kept: int = 0
    """Rows that are not left out."""
    sampled: int = 0
    """Rows that were looked at for what is looked for in some only."""
    comparisons: int = 0
    answers: int = 0
    lengths: dict[str, array[int]] = field(default_factory=dict)
    gaps: array[int] = field(default_factory=lambda: array("q"))
    turns: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    openings: Counter[str] = field(default_factory=Counter)
    systems: set[int] = field(default_factory=set)
    prompts: dict[int, Prompt] = field(default_factory=dict)
    """By their keys."""
    found: dict[str, Seen] = field(default_factory=dict)
    """By the name of the finding."""
    _rows: set[int] = field(default_factory=set)
    _won: set[int] = field(default_factory=set)
    _sketches: Sketches = field(default_factory=Sketches)

    def see(self, name: str, source: str, count: int = 1) -> None:
        """Count what a finding is about."""
        self.found.setdefault(name, Seen()).add(source, count)

    def add(self, facts: Facts) -> None:
        """Measure a row that can be used."""
        self.rows += 1
        self.kept += facts.kept
        self.sampled += facts.sampled
        self.answers += len(facts.scripts)
        self.comparisons += len(facts.gaps)
        self.gaps.extend(facts.gaps)
        for part, length in facts.lengths:
            self.lengths.setdefault(part, array("q")).append(length)
        self.turns[str(facts.turns)] += 1
        self.scripts.update(facts.scripts)
        for opening in facts.openings:
            if len(self.openings) < 100_000 or opening in self.openings:
                self.openings[opening] += 1
        if facts.system is not None:
            self.systems.add(facts.system)
        for name, times, detail in facts.found:
            self.see(name, f"{facts.source} ({detail})" if detail else facts.source, times)
        self.prompts.setdefault(facts.prompt_key, Prompt(facts.asked)).rows.append(facts.source)
        self._compare_with_earlier(facts)

    def _compare_with_earlier(self, facts: Facts) -> None:
        for key, opposite in facts.compared:
            if opposite in self._won:
                self.see("contradictions", facts.source)
            self._won.add(key)
        if facts.row_key in self._rows:
            self.see("duplicates", facts.source)
            return
        self._rows.add(facts.row_key)
        if facts.words is not None:
            if self._sketches.like(facts.words):
                self.see("near-duplicates", facts.source)
            self._sketches.add(facts.words)

    def longer(self) -> tuple[int, int]:
        """Comparisons that the longer answer wins, of how many whose answers differ in length."""
        return sum(gap > 0 for gap in self.gaps), sum(gap != 0 for gap in self.gaps)

    def result(self) -> Side:
        """What was measured."""
        longer, different = self.longer()
        return Side(
            rows=self.rows,
            comparisons=self.comparisons,
            answers=self.answers,
            prompts=len(self.prompts),
            lengths={part: _lengths(values) for part, values in self.lengths.items()},
            length_gap=histogram(self.gaps) if self.gaps else None,
            longer_wins=longer / different if different else None,
            longer_wins_interval=wilson(longer, different) if different else None,
            turns=dict(sorted(self.turns.items(), key=lambda item: int(item[0]))),
            scripts={name or "none": count for name, count in self.scripts.most_common()},
            system_prompts=len(self.systems),
            counts=asdict(self.counts),
        )


def find_nearly_held_out(train: Measured, held_out: Measured) -> None:
    """Count the held-out rows whose prompt has nearly the words of a training prompt."""
    prompts = [prompt for prompt in held_out.prompts.values() if prompt.sketch is not None]
    sketches = Sketches()
    for prompt in prompts:
        sketches.add(prompt.sketch)
    like: dict[int, str] = {}
    for prompt in train.prompts.values():
        if prompt.sketch is not None:
            for number in sketches.like(prompt.sketch):
                like.setdefault(number, prompt.rows[0])
    for number in sorted(like):
        for row in prompts[number].rows:
            held_out.see("nearly-in-both-sides", f"{row} (like {like[number]})")


def _lengths(values: array[int]) -> Lengths:
    numbers = np.frombuffer(values, dtype=np.int64)
    middle, high = np.percentile(numbers, [50, 95]).tolist()
    return Lengths(float(numbers.mean()), middle, high, int(numbers.max()), histogram(values))


def histogram(values: array[int]) -> Histogram:
    """In equal bins from the smallest to the largest."""
    counts, edges = np.histogram(np.frombuffer(values, dtype=np.int64), _BINS)
    return Histogram(edges.tolist(), counts.tolist())


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z, share = 1.959963984540054, successes / trials
    middle = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return (middle - spread) / scale, (middle + spread) / scale
