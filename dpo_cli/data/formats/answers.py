"""Rows of answers to be scored, which need say nothing of which is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dpo_cli.data.formats.example import to_example
from dpo_cli.data.formats.fields import fields_of
from dpo_cli.data.formats.reading import BadRowError, Reading
from dpo_cli.data.formats.shapes import COMMON
from dpo_cli.data.sources import Row
from dpo_cli.data.types import Example

LISTS = ("completions", "responses", "answers")
SINGLE = ("completion", "response", "answer", "output")
"""Columns that hold answers to a ``prompt``: several, and one."""


def answers_of(row: Row, reading: Reading) -> list[Example]:
    """The row's answers: as Examples of one answer each where it is a prompt with a list of answers or one answer,
    which may be alike; or else one Example with all of them, as training reads it.

    Raises:
        BadRowError: it is neither, or an answer is empty.
    """
    if row.problem:
        raise BadRowError(row.problem)
    fields = fields_of(row.values, reading.columns)
    if reading.shape == "auto" and fields.get("prompt") is not None and fields.get("chosen") is None:
        for column in LISTS:
            listed = fields.get(column)
            if isinstance(listed, list) and listed and all(isinstance(each, str | list) for each in listed):
                return [_one(row, fields, answer, reading) for answer in listed]
        for column in SINGLE:
            if fields.get(column) is not None:
                return [_one(row, fields, fields[column], reading)]
    if reading.shape == "auto" and fields.get("messages") is not None and "chosen" not in fields:
        judged = {name: value for name, value in fields.items() if name in ("messages", *COMMON)}
        return [to_example(Row(row.source, {**judged, "label": True}), _plain(reading))]
    return [to_example(row, reading)]


def _one(row: Row, fields: Mapping[str, Any], answer: Any, reading: Reading) -> Example:
    """An answer to the row's prompt, as if it were judged: that is the shape of one answer."""
    common = {name: fields[name] for name in COMMON if name in fields}
    values = {**common, "prompt": fields["prompt"], "completion": answer, "label": True}
    return to_example(Row(row.source, values), _plain(reading))


def _plain(reading: Reading) -> Reading:
    """Without columns of the user's, which have been looked up."""
    return replace(Reading(), system=reading.system, loss_on=reading.loss_on)
