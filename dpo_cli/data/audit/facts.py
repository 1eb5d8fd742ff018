"""What is known of a row by itself. Small: it is kept for every row, and goes from process to process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rensa import RMinHash

from dpo_cli.data.audit.alike import sketch
from dpo_cli.data.audit.scripts import main_script, mixed, scripts
from dpo_cli.data.build import key64, prompt_key, row_key
from dpo_cli.data.tokenize import Encoded
from dpo_cli.data.types import Example, Message

_OPENING = 4
"""Words."""


class Found(NamedTuple):
    """Something in a row that is to be counted."""

    finding: str
    """Its name."""
    times: int = 1
    detail: str = ""
    """Said of the row, if it is one of the examples."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Of a row that can be used."""

    source: str
    kept: bool
    """False = it is left out, for its length or what a cut made of it."""
    prompt_key: int
    row_key: int
    compared: tuple[tuple[int, int], ...]
    """For each comparison a key, and the key of its opposite."""
    lengths: tuple[tuple[str, int], ...]
    """Of ``prompt`` and ``chosen``, ``rejected``, ``good`` or ``bad`` answers: tokens before any cut."""
    gaps: tuple[int, ...]
    """Of each comparison: tokens of the winner - tokens of the loser."""
    turns: int
    """Messages, answer included."""
    system: int | None
    """Key of the system turn."""
    scripts: tuple[str, ...]
    """Of each answer."""
    openings: tuple[str, ...]
    """First words of the better answers."""
    words: RMinHash | None
    """Of all that was said; without system turns, which many rows share."""
    asked: RMinHash | None
    """Of the prompt, likewise."""
    found: list[Found]
    sampled: bool
    """Whether it was looked at for what is looked for in some rows only."""


def facts_of(encoded: Encoded, lost: Sequence[str], merged: bool | None) -> Facts:
    """
    Args:
        encoded: the row.
        lost: its row in ``lost_text``.
        merged: whether it is one of those that ``merges`` finds; None = it wasn't looked at.
    """
    example, lengths = encoded.example, encoded.answer_lengths
    prompt = _turns(example.prompt, "user")
    asked = " ".join(turn["content"] for turn in prompt if turn["role"] != "system")
    answers = [_words(answer) for answer in example.answers]
    said = [_said(example, number) for number in range(len(answers))]
    written = [scripts(answer) for answer in answers]
    key = prompt_key(example)
    found = [*_in_tokens(encoded), *_in_words(example, main_script(scripts(_questions(prompt))), written)]
    if lost:
        found.append(Found("text-lost", len(lost), ", ".join(filter(None, dict.fromkeys(lost)))))
    if merged:
        found.append(Found("boundary-merges"))
    better = [answer for answer, word in zip(answers, said, strict=True) if word in ("chosen", "good")]
    return Facts(
        source=example.source,
        kept=encoded.group is not None,
        prompt_key=key,
        row_key=row_key(example),
        compared=tuple(
            (key64([key, answers[one], answers[other]]), key64([key, answers[other], answers[one]]))
            for one, other, *_ in example.pairs
        ),
        lengths=(("prompt", encoded.prompt_length), *zip(said, lengths, strict=True)),
        gaps=tuple(lengths[pair.winner] - lengths[pair.loser] for pair in example.pairs),
        turns=len(prompt) + max(len(_turns(answer, "assistant")) for answer in example.answers),
        system=key64(prompt[0]["content"]) if prompt and prompt[0]["role"] == "system" else None,
        scripts=tuple(map(main_script, written)),
        openings=tuple(" ".join(answer.split()[:_OPENING]) for answer in better),
        words=sketch(" ".join([asked, *answers])),
        asked=sketch(asked),
        found=found,
        sampled=merged is not None,
    )


def _in_tokens(encoded: Encoded) -> Iterator[Found]:
    lengths = encoded.answer_lengths
    if few := sum(length <= 2 for length in lengths):
        yield Found("one-token-answers", few)
    if encoded.special_in_text:
        yield Found("special-tokens-in-text", detail=encoded.special_in_text)
    if encoded.left_out:
        names = {"too_long": "too-long", "made_equal": "made-equal", "nothing_scored": "cut-to-nothing"}
        yield Found(names[encoded.left_out])
    if encoded.group is not None:
        if cut := sum(len(kept) < whole for kept, whole in zip(encoded.group.answers, lengths, strict=True)):
            yield Found("answers-cut", cut)
        if len(encoded.group.prompt_ids) < encoded.prompt_length:
            yield Found("prompts-cut")


def _in_words(example: Example, asked: str, written: Sequence[Counter[str]]) -> Iterator[Found]:
    """
    Args:
        example: the row.
        asked: the questions' main script.
        written: the scripts of each answer.
    """
    main = [main_script(found) for found in written]
    if others := [name for name in main if asked and name and name != asked]:
        yield Found("other-script", len(others), f"{others[0]} to {asked}")
    won = [(main[pair.winner], main[pair.loser]) for pair in example.pairs]
    if apart := [(winner, loser) for winner, loser in won if winner and loser and winner != loser]:
        yield Found("scripts-differ", len(apart), "{} wins over {}".format(*apart[0]))
    if several := [names for found in written if (names := mixed(found))]:
        yield Found("mixed-scripts", len(several), several[0])


def _said(example: Example, number: int) -> str:
    """What the row says of an answer, in a word."""
    if example.labels:
        return "good" if example.labels[number] else "bad"
    if example.ranks:
        return "chosen" if example.ranks[number] == 0 else "rejected"
    return "chosen" if any(pair.winner == number for pair in example.pairs) else "rejected"


def _questions(prompt: Sequence[Message]) -> str:
    return " ".join(turn["content"] for turn in prompt if turn["role"] == "user")


def _turns(said: Sequence[Message] | str, role: str) -> list[Message]:
    return [Message(role=role, content=said)] if isinstance(said, str) else list(said)


def _words(said: Sequence[Message] | str) -> str:
    return said if isinstance(said, str) else "\n".join(turn["content"] for turn in said)
