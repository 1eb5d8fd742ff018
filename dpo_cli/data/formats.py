"""Rows of the usual shapes become Examples; a row that fits none says what was found and what was expected.

==============================  =====================================================================
prompt, chosen, rejected        each text or messages; messages may repeat the prompt before the answer
chosen, rejected                whole dialogues, as messages or as hh-rlhf's "Human: ... Assistant: ..." text
conversations, chosen, rejected ShareGPT: turns with ``from`` and ``value``
==============================  =====================================================================

Other columns are ignored.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any, Literal

from dpo_cli.data.sources import Row
from dpo_cli.data.types import Example, Message
from dpo_cli.errors import DataError

SHOWN = 10
"""Bad rows named in a message."""
_SHAPES = (
    "prompt, chosen, rejected; or chosen, rejected (whole dialogues); or conversations, chosen, rejected (ShareGPT)"
)
_ROLES = {role: role for role in ("system", "user", "assistant", "tool")}
_ROLES |= {"human": "user"} | dict.fromkeys(("gpt", "chatgpt", "bing", "bard"), "assistant")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")

Content = str | list[Message]


class BadRowError(ValueError):
    """A row that can't become an Example. The message names the field, what was found and what was expected."""


@dataclass(frozen=True, slots=True)
class ReadCounts:
    """What became of the rows."""

    read: int
    bad: int
    """Left out."""
    duplicates: int
    """Rows whose prompt and answers stood in an earlier row. They are kept: repeating a row is a way to weigh it."""
    first_bad: tuple[str, ...]
    """Messages about the first ten bad rows."""


def read_examples(
    rows: Iterable[Row], *, limit: int | None, on_bad_row: Literal["raise", "skip"], name: str = "data"
) -> tuple[list[Example], ReadCounts]:
    """Every row's Example, in order.

    Args:
        rows: from ``read_rows``.
        limit: read only so many rows; None = all.
        on_bad_row: stop at the tenth bad row or the end, with all of them in the message; or leave them out.
        name: of the data, for a message.

    Raises:
        DataError: bad rows (``raise``), or no usable row.
    """
    examples: list[Example] = []
    seen: set[bytes] = set()
    problems: list[str] = []
    read = bad = 0
    for row in islice(rows, limit):
        read += 1
        try:
            example = to_example(row)
        except BadRowError as problem:
            bad += 1
            if bad <= SHOWN:
                problems.append(f"{row.source}: {problem}")
            if on_bad_row == "raise" and bad == SHOWN:
                break
            continue
        examples.append(example)
        seen.add(content_hash([example.prompt, example.answers]))
    if bad and on_bad_row == "raise":
        summary = f"... {bad} bad row{'s' * (bad > 1)} in the first {read}"
        raise DataError("\n".join([*problems, f"{summary}; data.on_bad_row=skip leaves such rows out and counts them"]))
    if not examples:
        raise DataError("\n".join([*problems, f"{name}: no usable row: {read} read, {bad} bad"]))
    return examples, ReadCounts(read, bad, len(examples) - len(seen), tuple(problems))


def content_hash(content: Any) -> bytes:
    """16 bytes that are the same wherever and whenever the content is."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).digest()


def to_example(row: Row) -> Example:
    """The row as prompt and two answers, chosen first.

    Raises:
        BadRowError: no known shape, a field that is missing or of the wrong kind, a dialogue that doesn't end in an
            assistant turn or whose sides differ before it, an empty answer, or two equal answers.
    """
    values = row.values
    missing = [column for column in ("chosen", "rejected") if column not in values]
    if missing:
        raise BadRowError(f"no column {' or '.join(missing)}: found {', '.join(sorted(values))}; expected {_SHAPES}")
    chosen, rejected = _content(values["chosen"], "chosen"), _content(values["rejected"], "rejected")
    prompt_column = next((column for column in ("prompt", "conversations") if column in values), None)
    prompt: Content
    answers: list[str] | list[list[Message]]
    if prompt_column is None:
        prompt, answers = _split(_whole_dialogue(chosen, "chosen"), _whole_dialogue(rejected, "rejected"))
    else:
        prompt = _content(values[prompt_column], prompt_column)
        if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
            answers = [chosen, rejected]
        else:
            prompt, answers = _split(_dialogue(prompt, chosen, "chosen"), _dialogue(prompt, rejected, "rejected"))
    _check_answers(answers)
    return Example(prompt, answers, ((0, 1),), row.source)


def _check_answers(answers: Sequence[Content]) -> None:
    for column, answer in zip(("chosen", "rejected"), answers, strict=True):
        text = answer if isinstance(answer, str) else answer[0]["content"]
        if not text.strip():
            raise BadRowError(f"{column} is empty")
    if answers[0] == answers[1]:
        raise BadRowError("chosen and rejected are the same")


def _dialogue(prompt: Content, answer: Content, column: str) -> list[Message]:
    """Prompt and answer as one dialogue, whether or not the answer repeats the prompt."""
    turns = [Message(role="assistant", content=answer)] if isinstance(answer, str) else answer
    if isinstance(prompt, str):
        if turns[0]["role"] != "assistant":
            # As in ultrafeedback_binarized: the text is one of the dialogue's own user turns.
            return turns
        prompt = [Message(role="user", content=prompt)]
    if turns[: len(prompt)] == prompt:
        return turns
    roles = [turn["role"] for turn in turns]
    if roles != ["assistant"]:
        raise BadRowError(
            f"{column}: expected one assistant turn, alone or after the prompt's turns, found {_list(roles)}"
        )
    return [*prompt, *turns]


def _whole_dialogue(content: Content, column: str) -> list[Message]:
    return _parse_hh(content, column) if isinstance(content, str) else content


def _parse_hh(text: str, column: str) -> list[Message]:
    start, *parts = _HH_TURN.split("\n\n" + text.lstrip("\n"))
    if start or not parts or parts[0] != "Human":
        raise BadRowError(
            f"{column}: with no column prompt, expected text that starts with Human:, found {text[:40]!r}"
        )
    # The space after the colon and the blank line before the next speaker are the format's, not the speaker's.
    return [
        Message(role="user" if speaker == "Human" else "assistant", content=said.strip())
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _split(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The two dialogues' common prompt and their last turns."""
    for column, dialogue in (("chosen", chosen), ("rejected", rejected)):
        if dialogue[-1]["role"] != "assistant":
            raise BadRowError(f"{column}: expected an assistant turn at the end, found {dialogue[-1]['role']}")
    prompt = chosen[:-1]
    if prompt != rejected[:-1]:
        turns = enumerate(zip_longest(prompt, rejected[:-1]), start=1)
        first = next(number for number, (one, other) in turns if one != other)
        raise BadRowError(f"chosen and rejected differ before the last turn, from message {first} on")
    if not prompt:
        raise BadRowError("no prompt: there is no column prompt, and chosen and rejected are one turn each")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise BadRowError(f"prompt: expected a user or tool turn at the end, found {prompt[-1]['role']}")
    return prompt, [chosen[-1:], rejected[-1:]]


def _content(value: Any, column: str) -> Content:
    """A column's text or messages; one message stands for a list of one."""
    if isinstance(value, str):
        return _text(value, column)
    if isinstance(value, dict):
        return [_message(value, column)]
    if not isinstance(value, list):
        raise BadRowError(f"{column}: expected text or a list of messages, found {_kind(value)}")
    if not value:
        raise BadRowError(f"{column}: expected at least one message, found none")
    return [_message(message, f"{column}, message {number}") for number, message in enumerate(value, start=1)]


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise BadRowError(f"{place}: expected an object with role and content, found {_kind(value)}")
    role_key, content_key = ("from", "value") if "from" in value else ("role", "content")
    for key in (role_key, content_key):
        if not isinstance(value.get(key), str):
            raise BadRowError(
                f"{place}: expected text in {key}, found {_kind(value[key]) if key in value else 'no such key'}"
            )
    if value.get("tool_calls"):
        raise BadRowError(f"{place}: tool_calls are not supported")
    if value[role_key] not in _ROLES:
        raise BadRowError(f"{place}: expected {role_key} to be one of {_list(_ROLES)}, found {value[role_key]!r}")
    return Message(role=_ROLES[value[role_key]], content=_text(value[content_key], place))


def _text(value: str, place: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON lets half a surrogate pair through ("\ud83d"); tokenizers do not.
        raise BadRowError(
            f"{place}: half a character (\\u{ord(value[error.start]):04x}) at {error.start + 1}"
        ) from error
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
