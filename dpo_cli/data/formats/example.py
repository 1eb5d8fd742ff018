"""A row, read as one of the shapes, becomes an Example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import permutations
from typing import Any

from dpo_cli.data.formats.dialogues import check_answers, prompt_and_answers
from dpo_cli.data.formats.fields import fields_of
from dpo_cli.data.formats.reading import AS_FOUND, BadRowError, Columns, Reading
from dpo_cli.data.formats.recognise import reading_problems, shapes_for
from dpo_cli.data.formats.shapes import SHAPES, Shape, Told
from dpo_cli.data.formats.values import from_json, kind_of, names, number, numbers_of, plain_data, text
from dpo_cli.data.sources import Row
from dpo_cli.data.types import Example, Pair
from dpo_cli.errors import DpoError

_OURS = frozenset(
    (
        *("conversation", "messages", "tools", "chat_template", "tokenize", "padding", "truncation", "max_length"),
        *("add_generation_prompt", "continue_final_message", "return_dict", "return_tensors"),
        "return_assistant_tokens_mask",
    )
)
"""What a row may not give the chat template: what training gives it, or what is no variable of a template."""


def to_example(row: Row, reading: Reading = AS_FOUND) -> Example:
    """The row as prompt and answers, and what is said of them.

    Equal scores or a tie give no comparison: such an Example has ranks, all 0, and no pairs.

    Raises:
        BadRowError: no known shape or several that come out differently, a field that is missing or of the wrong
            kind, dialogues that differ where no answer does, an empty answer, or two equal answers.
        DpoError: a ``reading`` that is wrong for every row: see ``reading_problems``.
    """
    if row.problem:
        raise BadRowError(row.problem)
    _check(reading.shape, tuple(reading.columns.items()))
    fields = fields_of(row.values, reading.columns)
    given = frozenset(field for field, value in fields.items() if value is not None)  # tables fill up with null
    possible = shapes_for(given, frozenset(reading.columns), reading.shape)
    if len(possible) > 1:
        return _the_same(possible, row, fields, reading)
    return _example(SHAPES[possible[0]], row, fields, reading)


@lru_cache(maxsize=64)
def _check(shape: str, columns: tuple[tuple[str, str], ...]) -> None:
    problems = reading_problems(shape, dict(columns))
    if problems:
        raise DpoError(problems[0])


def _the_same(possible: Sequence[str], row: Row, fields: Mapping[str, Any], reading: Reading) -> Example:
    """What the row is as each of the shapes, if that is the same."""
    try:
        found = [_example(SHAPES[name], row, fields, reading) for name in possible]
    except BadRowError as error:
        raise BadRowError(f"{_several(possible)} (as one of them: {error})") from error
    if any(example != found[0] for example in found):
        raise BadRowError(_several(possible))
    return found[0]


def _several(possible: Sequence[str]) -> str:
    choices = " or ".join(f"data.shape={name} ({names(SHAPES[name].needs)})" for name in possible)
    return f"the columns fit several shapes: say which, {choices}"


def _example(shape: Shape, row: Row, fields: Mapping[str, Any], reading: Reading) -> Example:
    told = shape.read(fields)
    said = prompt_and_answers(told.prompt, told.answers, _system(fields), reading)
    check_answers(said, list(told.answers))
    weight = _weight(row.values, reading.says)
    labels: tuple[bool, ...] = ()
    ranks: tuple[int, ...] = ()
    pairs: tuple[Pair, ...] = ()
    if told.label is not None:
        _check_no_comparison(reading.says)
        labels = (told.label,)
    else:
        ranks = _ranks(told)
        pairs = _pairs(ranks, row.values, reading.says, weight, shape)
        if shape.kind == "pair" and pairs:
            ranks, weight = (), 1.0
    return Example(
        prompt=said.prompt,
        answers=said.answers,
        pairs=pairs,
        source=row.source,
        labels=labels,
        ranks=ranks,
        weight=weight,
        scored=said.scored,
        template_args=_template_args(fields),
    )


def _ranks(told: Told) -> tuple[int, ...]:
    """Each answer's place, equal scores at equal places."""
    if told.scores is None:
        return (0, 1)
    order = sorted(set(told.scores), reverse=True)
    return tuple(order.index(score) for score in told.scores)


def _pairs(
    ranks: Sequence[int], values: Mapping[str, Any], says: Columns, weight: float, shape: Shape
) -> tuple[Pair, ...]:
    """Each better answer against each worse one."""
    count = len(ranks)
    if shape.kind == "ranking" and says.label_prob is not None:
        raise BadRowError(f"{says.label_prob}: a probability is of one comparison, and this row has several")
    if count > 2 and says.margin is not None and not _is_list(values, says.margin):
        raise BadRowError(f"{says.margin}: expected a list with a number per answer, as this row has {count}")
    label_prob = _label_prob(values, says)
    # preference_strength and the like are negative where the first answer wins: as a margin their size counts.
    size = abs if says.margin in shape.needs else float
    return tuple(
        Pair(better, worse, weight, size(_margin(values, says, better, worse, count=count)), label_prob)
        for better, worse in permutations(range(count), 2)
        if ranks[better] < ranks[worse]
    )


def _system(fields: Mapping[str, Any]) -> str:
    """The row's own system text; empty where it has none."""
    value = fields.get("system")
    if value is None or not text(value, "system").strip():
        return ""
    return str(value)


def _template_args(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the row gives the chat template besides messages."""
    found: dict[str, Any] = {}
    given = from_json(fields.get("chat_template_kwargs"), "chat_template_kwargs")
    if given not in (None, "", {}):
        if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
            raise BadRowError(f"chat_template_kwargs: expected an object, found {kind_of(given)}")
        refused = sorted(_OURS.intersection(given))
        if refused:
            raise BadRowError(f"chat_template_kwargs: {refused[0]} is not the row's to say")
        found |= plain_data(given, "chat_template_kwargs")
    tools = from_json(fields.get("tools"), "tools")
    if tools not in (None, "", []):
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise BadRowError(f"tools: expected a list of objects or its JSON, found {kind_of(tools)}")
        found["tools"] = plain_data(tools, "tools")
    return found


def _check_no_comparison(says: Columns) -> None:
    unusable = [name for name in (says.margin, says.label_prob) if name is not None]
    if unusable:
        raise BadRowError(f"{unusable[0]}: a margin or probability is of a comparison, and this row has one answer")


def _weight(values: Mapping[str, Any], says: Columns) -> float:
    if says.weight is None:
        return 1.0
    weight = number(values, says.weight)
    if weight < 0:
        raise BadRowError(f"{says.weight}: expected a weight that is not negative, found {weight:g}")
    return weight


def _margin(values: Mapping[str, Any], says: Columns, better: int, worse: int, *, count: int) -> float:
    """Of the answers with these numbers, of ``count`` in the row."""
    if says.margin is None:
        return 0.0
    if not isinstance(says.margin, str):
        numbers = [number(values, column) for column in says.margin]
    elif _is_list(values, says.margin):
        numbers = numbers_of(values, says.margin, count)
    else:
        return number(values, says.margin)
    return numbers[better] - numbers[worse]


def _is_list(values: Mapping[str, Any], column: str | tuple[str, str]) -> bool:
    return isinstance(column, str) and isinstance(from_json(values.get(column), column), list)


def _label_prob(values: Mapping[str, Any], says: Columns) -> float | None:
    if says.label_prob is None:
        return None
    probability = number(values, says.label_prob)
    if not 0 <= probability <= 1:
        raise BadRowError(f"{says.label_prob}: expected a probability, found {probability:g}")
    return probability
