"""What is measured of one side, row by row."""

from __future__ import annotations

import math
import unicodedata
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache

import numpy as np
from rensa import RMinHash, RMinHashLSH

from dpo_cli.data.audit.result import Histogram, Lengths, Side
from dpo_cli.data.build import Counts, key64, prompt_key, row_key
from dpo_cli.data.tokenize import Encoded
from dpo_cli.data.types import Example, Message

_BINS = 20
_LETTERS = 200
"""Of an answer, to tell its script by."""
_HASHES, _BANDS, _ALIKE = 128, 16, 0.85
"""Near duplicates: rows with 85 % of their word triples in common share a band of eight hashes with a probability of
0.99, rows with 30 % of 0.001. Of 128 hashes the share is known to 0.03."""
_OPENING = 4
"""Words."""


@dataclass
class Seen:
    """How often something was found, and where first."""

    count: int = 0
    rows: list[str] = field(default_factory=list)

    def add(self, source: str, count: int = 1) -> None:
        """Count it, in this row."""
        self.count += count
        if count and len(self.rows) < 3 and source not in self.rows:
            self.rows.append(source)


@dataclass
class Measured:
    """Filled in by ``add``. Memory grows by some hundred bytes a row, most of them hashes for near duplicates."""

    counts: Counts = field(default_factory=Counts)
    rows: int = 0
    kept: int = 0
    """Rows that are not left out."""
    comparisons: int = 0
    answers: int = 0
    lengths: dict[str, array[int]] = field(default_factory=dict)
    gaps: array[int] = field(default_factory=lambda: array("q"))
    turns: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    openings: Counter[str] = field(default_factory=Counter)
    systems: set[int] = field(default_factory=set)
    prompts: set[int] = field(default_factory=set)
    found: dict[str, Seen] = field(default_factory=dict)
    """By the name of the finding."""
    _rows: set[int] = field(default_factory=set)
    _won: set[int] = field(default_factory=set)
    _near: RMinHashLSH = field(default_factory=lambda: RMinHashLSH(_ALIKE, _HASHES, _BANDS))
    _hashes: list[RMinHash] = field(default_factory=list)

    def see(self, name: str, source: str, count: int = 1) -> None:
        """Count what a finding is about."""
        self.found.setdefault(name, Seen()).add(source, count)

    def add(self, encoded: Encoded) -> None:
        """Measure a row that can be used."""
        example = encoded.example
        self.rows += 1
        self.kept += encoded.group is not None
        self.answers += len(example.answers)
        self.comparisons += len(example.pairs)
        self._measure_tokens(encoded)
        self._measure_words(example)
        self._compare_with_earlier(example)

    def _measure_tokens(self, encoded: Encoded) -> None:
        example, lengths = encoded.example, encoded.answer_lengths
        self._length("prompt", encoded.prompt_length)
        for number, length in enumerate(lengths):
            self._length(_said(example, number), length)
            self.see("one-token-answers", example.source, int(length <= 2))
        for pair in example.pairs:
            self.gaps.append(lengths[pair.winner] - lengths[pair.loser])
        if encoded.special_in_text:
            self.see("special-tokens-in-text", example.source)
        if encoded.left_out:
            self.see(
                {"too_long": "too-long", "made_equal": "made-equal"}.get(encoded.left_out, "cut-to-nothing"),
                example.source,
            )
        elif encoded.group is not None:
            cut = sum(len(kept) < whole for kept, whole in zip(encoded.group.answers, lengths, strict=True))
            self.see("answers-cut", example.source, cut)
            self.see("prompts-cut", example.source, int(len(encoded.group.prompt_ids) < encoded.prompt_length))

    def _length(self, part: str, length: int) -> None:
        self.lengths.setdefault(part, array("q")).append(length)

    def _measure_words(self, example: Example) -> None:
        prompt = _turns(example.prompt, "user")
        self.turns[str(len(prompt) + max(len(_turns(answer, "assistant")) for answer in example.answers))] += 1
        if prompt and prompt[0]["role"] == "system":
            self.systems.add(key64(prompt[0]["content"]))
        asked = script(" ".join(turn["content"] for turn in prompt if turn["role"] == "user"))
        for number in range(len(example.answers)):
            said = _words(example.answers[number])
            written = script(said)
            self.scripts[written] += 1
            if asked and written and written != asked:
                self.see("other-script", example.source)
            if _said(example, number) in ("chosen", "good"):
                opening = " ".join(said.split()[:_OPENING])
                if len(self.openings) < 100_000 or opening in self.openings:
                    self.openings[opening] += 1

    def _compare_with_earlier(self, example: Example) -> None:
        prompt, row = prompt_key(example), row_key(example)
        self.prompts.add(prompt)
        for pair in example.pairs:
            words = [_words(example.answers[number]) for number in (pair.winner, pair.loser)]
            if key64([prompt, *reversed(words)]) in self._won:
                self.see("contradictions", example.source)
            self._won.add(key64([prompt, *words]))
        if row in self._rows:
            self.see("duplicates", example.source)
            return
        self._rows.add(row)
        if self._is_near(example):
            self.see("near-duplicates", example.source)

    def _is_near(self, example: Example) -> bool:
        """Whether an earlier row has nearly the same words, prompt and answers together."""
        texts = [_words(example.prompt)]
        texts += [_words(answer) for answer in example.answers]
        words = " ".join(texts).split()
        if len(words) < 8:
            return False  # of so few words many are alike by chance
        own = RMinHash(_HASHES, 42)
        own.update([" ".join(words[place : place + 3]) for place in range(len(words) - 2)])
        near = any(self._hashes[number].jaccard(own) >= _ALIKE for number in self._near.query(own))
        self._near.insert(len(self._hashes), own)
        self._hashes.append(own)
        return near

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


def _said(example: Example, number: int) -> str:
    """What the row says of an answer, in a word."""
    if example.labels:
        return "good" if example.labels[number] else "bad"
    if example.ranks:
        return "chosen" if example.ranks[number] == 0 else "rejected"
    return "chosen" if any(pair.winner == number for pair in example.pairs) else "rejected"


def _turns(said: Sequence[Message] | str, role: str) -> list[Message]:
    return [Message(role=role, content=said)] if isinstance(said, str) else list(said)


def _words(said: Sequence[Message] | str) -> str:
    return said if isinstance(said, str) else "\n".join(turn["content"] for turn in said)


def script(text: str) -> str:
    """What most of a text's first letters are written in, such as ``latin`` or ``cjk``; empty = it has no letters."""
    if text.isascii():
        return "latin" if any(map(str.isalpha, text[:_LETTERS])) else ""
    found = Counter(name for letter in text[:_LETTERS] if (name := _script(letter)))
    return found.most_common(1)[0][0] if found else ""


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """The first word of a letter's Unicode name, which is its script's."""
    if not letter.isalpha():
        return ""
    name = unicodedata.name(letter, "").partition(" ")[0].lower()
    return "japanese" if name in ("hiragana", "katakana") else name.partition("-")[0]


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
