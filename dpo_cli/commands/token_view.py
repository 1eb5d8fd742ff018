"""A Group as pieces of text with a part each: what both views of ``dpo inspect`` show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from dpo_cli.data.collate import shared_prefix
from dpo_cli.data.types import Group, Tokens

Part = Literal["prompt", "shared", "chosen", "rejected", "answer", "unscored"]

_SHOWN = 60
"""Tokens shown at each end of a long part."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One or several tokens that are one text: letters of several bytes may be several tokens."""

    text: str
    special: bool = False


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive tokens of one part."""

    part: Part
    tokens: int
    pieces: tuple[Piece, ...]
    """Without the middle, if it is long."""
    hidden: int = 0
    """Tokens of the middle, which follow the first half of ``pieces``."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A Group, to be looked at."""

    source: str
    prompt: Stretch
    answers: tuple[tuple[str, tuple[Stretch, ...]], ...]
    """Of each answer what is said of it, and its tokens."""


def view(group: Group, tokenizer: PreTrainedTokenizerBase) -> Shown:
    """What training sees of a Group."""
    special = {int(number) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    shared = shared_prefix(group.answers)
    answers = []
    for number, ids in enumerate(group.answers):
        said, part = _said(group, number)
        scored = group.scored[number] if group.scored else np.ones(len(ids), dtype=bool)
        stretches = tuple(
            _stretch(kind, ids[start:end], tokenizer, special)
            for kind, start, end in _runs(_parts(part, scored, shared))
        )
        answers.append((f"{said}, {len(ids)} tokens", stretches))
    return Shown(group.source, _stretch("prompt", group.prompt_ids, tokenizer, special), tuple(answers))


def _said(group: Group, number: int) -> tuple[str, Part]:
    """What the row says of an answer."""
    if group.labels:
        return ("good", "chosen") if group.labels[number] else ("bad", "rejected")
    if group.ranks:
        last = max(group.ranks)
        part: Part = "chosen" if group.ranks[number] == 0 else "rejected" if group.ranks[number] == last else "answer"
        return f"rank {group.ranks[number] + 1}", part
    if any(pair.winner == number for pair in group.pairs):
        return "chosen", "chosen"
    return "rejected", "rejected"


def _parts(part: Part, scored: NDArray[np.bool_], shared: int) -> list[Part]:
    return ["unscored" if not learnt else "shared" if place < shared else part for place, learnt in enumerate(scored)]


def _runs(parts: Sequence[Part]) -> list[tuple[Part, int, int]]:
    """Equal neighbours: part, start and end."""
    starts = [place for place in range(len(parts)) if place == 0 or parts[place] != parts[place - 1]]
    return [(parts[start], start, end) for start, end in zip(starts, [*starts[1:], len(parts)], strict=True)]


def _stretch(part: Part, ids: Tokens, tokenizer: PreTrainedTokenizerBase, special: set[int]) -> Stretch:
    if len(ids) <= 2 * _SHOWN:
        return Stretch(part, len(ids), _pieces(ids, tokenizer, special))
    ends = _pieces(ids[:_SHOWN], tokenizer, special), _pieces(ids[-_SHOWN:], tokenizer, special)
    gap = Piece(f"… {len(ids) - 2 * _SHOWN:,} tokens …")
    return Stretch(part, len(ids), (*ends[0], gap, *ends[1]), len(ids) - 2 * _SHOWN)


def _pieces(ids: Tokens, tokenizer: PreTrainedTokenizerBase, special: set[int]) -> tuple[Piece, ...]:
    """One piece a token, but bytes of one letter together."""
    pieces: list[Piece] = []
    waiting: list[int] = []
    for number in ids.tolist():
        waiting.append(number)
        text = str(tokenizer.decode(waiting, clean_up_tokenization_spaces=False))
        if text.endswith("\ufffd") and len(waiting) < 4 and number not in special:
            continue
        if len(waiting) == 1:  # a word's space is part of its token, and a decoder may leave it out
            text = _with_space(tokenizer, number, text)
        pieces.append(Piece(text, number in special))
        waiting = []
    if waiting:
        pieces.append(Piece(str(tokenizer.decode(waiting))))
    return tuple(pieces)


def _with_space(tokenizer: PreTrainedTokenizerBase, number: int, text: str) -> str:
    token = str(tokenizer.convert_ids_to_tokens(number))
    return " " + text if token.startswith("▁") and not text.startswith(" ") else text


def visible(text: str) -> str:
    """Line ends, tabs and control characters as signs: nothing that a terminal would act on."""
    signs = {"\n": "⏎\n", "\t": "⇥", "\r": "␍"}
    return "".join(
        signs.get(letter) or (letter if letter.isprintable() else f"\\u{ord(letter):04x}") for letter in text
    )
