"""axolotl's data sets: where their rows are, and what their ``type`` reads from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dpo_cli.errors import DpoError
from dpo_cli.importing.axolotl_options import DATASET, UNUSED
from dpo_cli.importing.draft import Draft
from dpo_cli.importing.options import Options
from dpo_cli.importing.rows import Place, held_out, places_of, set_rows, set_share, set_workers

TEMPLATES = ("chatml", "llama3", "gemma")
"""Chat templates that go by the same name here."""
WRITTEN = {"chatml", "llama3", "zephyr"}
"""Families of types that write their template into the text themselves."""
ROLES = {
    "system": {"system"},
    "user": {"user", "human"},
    "assistant": {"assistant", "gpt", "chatgpt", "bing", "bard"},
    "tool": {"tool", "observation", "tool_response", "function"},
}
"""Roles with their other names that are read here as well."""
PAIRS = {
    "argilla": "argilla_responses",
    "icr": "input_pair",
    "intel": "question_pair",
    "prompt_pairs": "prompt_pair",
    "argilla_chat": "dialogues",
    "nectar": "nectar",
}
"""``chatml.X``, ``llama3.X`` and ``zephyr.X`` to the shape of their rows; others by their columns."""
JUDGED = {
    "argilla": ("judged", {"prompt": "instruction"}),
    "intel": ("judged", {"prompt": "question"}),
    "argilla_chat": ("messages_judged", {"messages": "completion"}),
}
"""The same with KTO, with columns of other names."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a ``type`` amounts to."""

    shape: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    plain: bool = False
    """Text is taken as it stands."""


def convert_rows(options: Options, draft: Draft, *, rl: str) -> str | float | None:
    """``data`` and the chat template; returns what ``data.eval`` would be, if known."""
    entries = _entries(options, "datasets")
    readings = [_reading(entry, draft, rl) for entry in entries]
    train = _places(entries, readings, "datasets", draft)
    set_rows(train, draft)
    _set_text(readings, entries, draft)
    _convert_template(options, draft, entries)
    set_workers(options, draft, "dataset_num_proc", "dataset_processes")
    tests = _entries(options, "test_datasets")
    share = options.number("val_set_size")
    if not tests:
        return set_share(share, "val_set_size", draft)
    # What may be lost of them was said of the training rows.
    as_read = [_reading(_as_read(test, number, entries), Draft(), rl) for number, test in enumerate(tests)]
    found = held_out(_places(tests, as_read, "test_datasets", draft), train, "test_datasets", draft)
    if found is not None:
        draft.set("data.eval", found)
    return found


def _entries(options: Options, name: str) -> list[dict[str, Any]]:
    value = options.take(name) or []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise DpoError(f"{name}={value!r}: expected a list of keys and values")
    return [_plain({str(key): item for key, item in entry.items()}) for entry in value]


def _as_read(test: Mapping[str, Any], number: int, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """How axolotl reads held-out rows: by their type, with the fields of the training rows at the same place.

    Where they have no type it takes them unchanged, which fits few; here they are read as the training rows are.
    """
    train = entries[min(number, len(entries) - 1)] if entries else {}
    kind, own = train.get("type"), test.get("type")
    fields = {key: value for key, value in train.items() if key.startswith("field_")}
    return fields | {"type": kind if isinstance(kind, dict) and isinstance(own, dict) else own or kind}


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry without what is read here in any case: usual names for roles, and for the parts of messages."""
    roles = entry.get("roles")
    known = isinstance(roles, dict) and all(
        isinstance(names, list) and set(map(str, names)) <= ROLES.get(str(role), set()) for role, names in roles.items()
    )
    parts = entry.get("message_property_mappings") or {}
    parts = {"role": entry.get("message_field_role"), "content": entry.get("message_field_content")} | dict(parts)
    named = (parts.get("role") or "role", parts.get("content") or "content")
    usual = set(parts) == {"role", "content"} and named in (("role", "content"), ("from", "value"))
    said = ("message_property_mappings", "message_field_role", "message_field_content")
    return {
        key: value for key, value in entry.items() if not (known and key == "roles") and not (usual and key in said)
    }


def _places(entries: list[dict[str, Any]], readings: list[Reading], name: str, draft: Draft) -> list[Place]:
    return [
        replace(place, shape=reading.shape, columns=reading.columns)
        for entry, reading in zip(entries, readings, strict=True)
        for place in places_of(entry, name, draft, DATASET, UNUSED)
    ]


def _reading(entry: Mapping[str, Any], draft: Draft, rl: str) -> Reading:
    """The shape and columns that an entry's ``type`` reads."""
    kind = entry.get("type")
    if isinstance(kind, dict):
        return _user_defined(kind, draft)
    if kind is None or str(kind).startswith("passthrough"):
        return Reading(plain=True)
    family, _, name = str(kind).partition(".")
    if rl == "kto":
        shape, columns = JUDGED.get(name, (None, {}))
        return Reading(shape, columns)
    if family == "chat_template" and rl != "orpo":
        return _chat_template(entry, name)
    if name == "nectar":
        draft.check(
            f"type={kind}: axolotl compares the two answers of the highest rank numbers, the last as chosen; here "
            "every two answers are compared, a lower rank number is better."
        )
    return Reading(PAIRS.get(name) if family in WRITTEN else None)


def _chat_template(entry: Mapping[str, Any], name: str) -> Reading:
    """The tokenizer's template over a dialogue and two answers, or over two whole dialogues."""
    whole = name == "argilla_chat"
    fields = ("chosen", "rejected") if whole else ("messages", "chosen", "rejected")
    named = {column: str(entry.get(f"field_{column}") or column) for column in fields}
    columns = {column: there for column, there in named.items() if there != column}
    return Reading("dialogues" if whole else "messages_pair", columns)


def _user_defined(kind: Mapping[str, Any], draft: Draft) -> Reading:
    """A type of the user's own: where its fields are, and texts to put them in."""
    columns, lost = {}, {}
    system = str(kind.get("field_system") or "system")
    if "{system}" in str(kind.get("prompt_format")) and system == "system":
        why = "a column system becomes a system turn of a chat: give the rows one text in prompt"
        draft.lose("datasets.type.prompt_format", kind["prompt_format"], why)
        kind = {key: value for key, value in kind.items() if key != "prompt_format"}
    for column in ("prompt", "chosen", "rejected", "completion", "label"):
        where = str(kind.get(f"field_{column}") or column)
        text = kind.get(f"{column}_format") or f"{{{column}}}"
        source = _source(str(text), column, where, system)
        if source is None:
            lost[f"{column}_format"] = text
        elif source != column:
            columns[column] = source
    if lost:
        draft.lose("datasets.type", lost, "in braces stand names of columns alone: data.columns")
    if "{system}" in str(kind.get("prompt_format")):
        draft.check("prompt_format: a row whose system is null is an error here, and empty text in axolotl.")
    return Reading(None, columns, plain=True)


def _source(text: str, column: str, where: str, system: str) -> str | None:
    """A format of axolotl's as a source of ``data.columns``; None if it can't be one."""
    if text == f"{{{column}}}":
        return where
    fields = {column: where} | ({"system": system} if column == "prompt" else {})
    pieces = re.split(r"(\{\{|\}\}|\{\w+\})", text)
    found = []
    for piece in pieces:
        name = piece[1:-1]
        if piece in ("{{", "}}") or not ("{" in piece or "}" in piece):
            found.append(piece)
        elif name not in fields or {"{", "}"} & set(fields[name]):
            return None
        else:
            found.append(f"{{{fields[name]}}}")
    return "".join(found)


def _set_text(readings: list[Reading], entries: list[dict[str, Any]], draft: Draft) -> None:
    """``data.text``, which is one for all sources."""
    plain = [reading.plain for reading in readings]
    if plain and all(plain):
        draft.set("data.text", "plain", "text as it stands, as axolotl takes it")
        draft.check("data.text=plain: a row with a column system is a chat here; take that column out of the rows.")
    elif any(plain):
        kinds = [entry.get("type") for entry, taken in zip(entries, plain, strict=True) if taken]
        draft.lose("datasets.type", kinds, "text as it stands beside chat: data.text is one for all sources")


def _convert_template(options: Options, draft: Draft, entries: list[dict[str, Any]]) -> None:
    """The chat template that the data sets' types write out, else the one that is named."""
    written = {str(entry.get("type")).partition(".")[0] for entry in entries} & WRITTEN
    of_entries = {str(entry.get("chat_template") or "") for entry in entries}
    own = of_entries.pop() if len(of_entries) == 1 else ""
    named, file = options.text("chat_template"), options.text("chat_template_jinja")
    if len(of_entries) > 1:
        draft.lose("datasets.chat_template", sorted(of_entries), "one template for all rows: model.chat_template")
    if len(written) == 1:
        draft.set("model.chat_template", written.pop(), "by the type of the data set")
    elif own not in ("", "jinja"):
        _set_template("datasets.chat_template", own, draft)
    elif file is not None and file.endswith(".jinja"):
        draft.set("model.chat_template", file)
    elif file is not None:
        draft.lose("chat_template_jinja", file, "save it as a .jinja file: model.chat_template=FILE")
    else:
        _set_template("chat_template", named, draft)


def _set_template(name: str, value: str | None, draft: Draft) -> None:
    if value in TEMPLATES:
        draft.set("model.chat_template", value)
    elif value not in (None, "tokenizer_default"):
        draft.lose(name, value, "the tokenizer's own is used; for another one, model.chat_template=FILE.jinja")
