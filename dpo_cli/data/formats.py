"""Rows of the usual shapes become Examples; a row that fits none says what was found and what was expected.

==============================  =====================================================================
prompt, chosen, rejected        each text or messages; messages may repeat the prompt before the answer
chosen, rejected                whole dialogues, as messages or as hh-rlhf's "Human: ... Assistant: ..." text
conversations, chosen, rejected ShareGPT: turns with ``from`` and ``value``
prompt, completion, label       one answer with thumbs up (true) or down; completion may be text or messages
messages, label                 the same, as one whole dialogue
prompt, completions, scores     several answers, a higher score is better; equal scores are not compared
prompt, completions, ranks      several answers, a lower rank is better
==============================  =====================================================================

Other columns are ignored, but those that ``Columns`` names.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice, permutations, zip_longest
from typing import Any, Literal

from dpo_cli.data.sources import Row
from dpo_cli.data.types import Example, Message, Pair
from dpo_cli.errors import DataError

SHOWN = 10
"""Bad rows named in a message."""
_SHAPES = (
    "prompt, chosen, rejected; or chosen, rejected (whole dialogues); or conversations, chosen, rejected (ShareGPT); "
    "or prompt, completion, label; or messages, label; or prompt, completions, scores (or ranks)"
)
_ROLES = {role: role for role in ("system", "user", "assistant", "tool")}
_ROLES |= {"human": "user"} | dict.fromkeys(("gpt", "chatgpt", "bing", "bard"), "assistant")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")

Content = str | list[Message]


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns that say more about a comparison; None = none does."""

    weight: str | None = None
    """How much the row counts: a number that is not negative."""
    margin: str | tuple[str, str] | None = None
    """By how much the winner should win: a number; or two columns whose difference it is; of ranked rows a list with
    a number per answer."""
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
    rows: Iterable[Row],
    *,
    limit: int | None,
    on_bad_row: Literal["raise", "skip"],
    name: str = "data",
    reading: Reading = AS_FOUND,
) -> tuple[list[Example], ReadCounts]:
    """Every row's Example, in order.

    Args:
        rows: from ``read_rows``.
        limit: read only so many rows; None = all.
        on_bad_row: stop at the tenth bad row or the end, with all of them in the message; or leave them out.
        name: of the data, for a message.
        reading: how.

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
            example = to_example(row, reading)
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


def to_example(row: Row, reading: Reading = AS_FOUND) -> Example:
    """The row as prompt and answers, and what is said of them.

    Raises:
        BadRowError: no known shape, a field that is missing or of the wrong kind, a dialogue that doesn't end in an
            assistant turn or whose sides differ before it, an empty answer, or two equal answers.
    """
    if row.problem:
        raise BadRowError(row.problem)
    values, columns = row.values, reading.says
    given = {column for column, value in values.items() if value is not None}  # tables fill absent columns with null
    if not {"chosen", "rejected"} <= given:
        if "completions" in given:
            return _ranked(row, columns)
        if "label" in values and given & {"completion", "messages"}:
            return _judged(row, columns)
    missing = [column for column in ("chosen", "rejected") if column not in values]
    if missing:
        raise BadRowError(f"no column {' or '.join(missing)}: found {', '.join(sorted(values))}; expected {_SHAPES}")
    chosen, rejected = _content(values["chosen"], "chosen"), _content(values["rejected"], "rejected")
    prompt_column = next((column for column in ("prompt", "conversations") if column in values), None)
    prompt: Content
    answers: list[str] | list[list[Message]]
    if prompt_column is None:
        prompt, answers = _split(
            {"chosen": _whole_dialogue(chosen, "chosen"), "rejected": _whole_dialogue(rejected, "rejected")}
        )
    else:
        prompt, answers = _prompt_and_answers(
            _content(values[prompt_column], prompt_column), {"chosen": chosen, "rejected": rejected}
        )
    _check_answers(answers, ("chosen", "rejected"))
    pair = Pair(0, 1, _weight(values, columns), _margin(values, columns, 0, 1, count=2), _label_prob(values, columns))
    return Example(prompt, answers, (pair,), row.source)


def _ranked(row: Row, columns: Columns) -> Example:
    values = row.values
    listed = _list_of(values, "completions", str | list | dict)
    names = [f"completions, answer {number}" for number in range(1, len(listed) + 1)]
    contents = {name: _content(value, name) for name, value in zip(names, listed, strict=True)}
    prompt, answers = _prompt_and_answers(_content(values.get("prompt"), "prompt"), contents)
    _check_answers(answers, names)
    if columns.label_prob is not None:
        raise BadRowError(f"{columns.label_prob}: a probability is of one comparison, and this row has several")
    column = next((name for name in ("scores", "ranks") if name in values), None)
    if column is None:
        raise BadRowError("no column scores or ranks beside completions")
    given = [float(value) for value in _list_of(values, column, int | float)]
    if len(given) != len(answers) or not all(map(math.isfinite, given)):
        raise BadRowError(f"{column}: expected {len(answers)} finite numbers, one per answer, found {len(given)}")
    order = sorted(set(given), reverse=column == "scores")
    ranks = tuple(order.index(value) for value in given)
    weight = _weight(values, columns)
    if len(answers) > 2 and not (columns.margin is None or isinstance(_column(values, columns.margin), list)):
        raise BadRowError(f"{columns.margin}: expected a list with a number per answer, as this row has {len(answers)}")
    pairs = tuple(
        Pair(better, worse, weight, _margin(values, columns, better, worse, count=len(answers)))
        for better, worse in permutations(range(len(ranks)), 2)
        if ranks[better] < ranks[worse]
    )
    return Example(prompt, answers, pairs, row.source, ranks=ranks, weight=weight)


def _judged(row: Row, columns: Columns) -> Example:
    values = row.values
    label = values["label"]
    if label not in (True, False):  # which 1 and 0 are equal to
        raise BadRowError(f"label: expected true or false, found {label!r}")
    if values.get("completion") is not None:
        prompt, answers = _prompt_and_answers(
            _content(values.get("prompt"), "prompt"), {"completion": _content(values["completion"], "completion")}
        )
    else:
        prompt, answers = _split({"messages": _whole_dialogue(_content(values["messages"], "messages"), "messages")})
    _check_answers(answers, ("messages" if values.get("completion") is None else "completion",))
    unusable = [name for name in (columns.margin, columns.label_prob) if name is not None]
    if unusable:
        raise BadRowError(f"{unusable[0]}: a margin or probability is of a comparison, and this row has one answer")
    return Example(prompt, answers, (), row.source, labels=(bool(label),), weight=_weight(values, columns))


def _prompt_and_answers(
    prompt: Content, answers: Mapping[str, Content]
) -> tuple[Content, list[str] | list[list[Message]]]:
    """Prompt and answers, by the names of their columns; all text, or all messages."""
    texts = [answer for answer in answers.values() if isinstance(answer, str)]
    if isinstance(prompt, str) and len(texts) == len(answers):
        return prompt, texts
    return _split({column: _dialogue(prompt, answer, column) for column, answer in answers.items()})


def _list_of(values: Mapping[str, Any], column: str, kind: Any) -> list[Any]:
    value = values[column]
    if not isinstance(value, list) or not value:
        raise BadRowError(f"{column}: expected a list of at least one, found {_kind(value) if value != [] else 'none'}")
    for number, item in enumerate(value, start=1):
        if not isinstance(item, kind) or isinstance(item, bool):
            raise BadRowError(f"{column}, number {number}: found {_kind(item)}")
    return value


def _weight(values: Mapping[str, Any], columns: Columns) -> float:
    if columns.weight is None:
        return 1.0
    weight = _number(values, columns.weight)
    if weight < 0:
        raise BadRowError(f"{columns.weight}: expected a weight that is not negative, found {weight:g}")
    return weight


def _margin(values: Mapping[str, Any], columns: Columns, better: int, worse: int, *, count: int) -> float:
    """Of the answers with these numbers, of ``count`` in the row."""
    if columns.margin is None:
        return 0.0
    if not isinstance(columns.margin, str):
        high, low = columns.margin
        return _number(values, high) - _number(values, low)
    value = values.get(columns.margin)
    if isinstance(value, list):
        numbers = [float(number) for number in _list_of(values, columns.margin, int | float)]
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise BadRowError(
                f"{columns.margin}: expected {count} finite numbers, one per answer, found {len(numbers)}"
            )
        return numbers[better] - numbers[worse]
    return _number(values, columns.margin)


def _column(values: Mapping[str, Any], name: str | tuple[str, str]) -> Any:
    return values.get(name) if isinstance(name, str) else None


def _label_prob(values: Mapping[str, Any], columns: Columns) -> float | None:
    if columns.label_prob is None:
        return None
    probability = _number(values, columns.label_prob)
    if not 0 <= probability <= 1:
        raise BadRowError(f"{columns.label_prob}: expected a probability, found {probability:g}")
    return probability


def _number(values: Mapping[str, Any], column: str) -> float:
    value = values.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRowError(f"{column}: expected a number, found {value if column in values else 'no such column'}")
    return float(value)


def _check_answers(answers: Sequence[Content], names: Sequence[str]) -> None:
    for name, answer in zip(names, answers, strict=True):
        text = answer if isinstance(answer, str) else answer[0]["content"]
        if not text.strip():
            raise BadRowError(f"{name} is empty")
    for first, second in combinations(range(len(answers)), 2):
        if answers[first] == answers[second]:
            raise BadRowError(f"{names[first]} and {names[second]} are the same")


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


def _split(dialogues: Mapping[str, list[Message]]) -> tuple[list[Message], list[list[Message]]]:
    """The dialogues' common prompt and their last turns; by the names of their columns."""
    for column, dialogue in dialogues.items():
        if dialogue[-1]["role"] != "assistant":
            raise BadRowError(f"{column}: expected an assistant turn at the end, found {dialogue[-1]['role']}")
    (name, first), *others = dialogues.items()
    prompt = first[:-1]
    for column, dialogue in others:
        if prompt != dialogue[:-1]:
            turns = enumerate(zip_longest(prompt, dialogue[:-1]), start=1)
            place = next(number for number, (one, other) in turns if one != other)
            raise BadRowError(f"{name} and {column} differ before the last turn, from message {place} on")
    if not prompt:
        raise BadRowError(f"no prompt: there is no column prompt, and {' and '.join(dialogues)} are one turn each")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise BadRowError(f"prompt: expected a user or tool turn at the end, found {prompt[-1]['role']}")
    return prompt, [dialogue[-1:] for dialogue in dialogues.values()]


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
