"""Columns with text or messages, in the ways data sets write them, as text or ``Message`` turns.

A message has ``role`` and ``content``, or ShareGPT's ``from`` and ``value``. Kept beside them are ``name``,
``tool_call_id``, ``reasoning_content`` and ``tool_calls``; other keys are left behind. Content may be a list of parts
``{"type": "text", "text": ...}``, which are joined; other parts (images) are an error.

Tool calls become what chat templates read: ``{"type": "function", "function": {"name": ..., "arguments": {...}}}``,
with arguments as an object, also where the row has them as JSON text or leaves the outer object out. An assistant
turn with tool calls may have no content. ShareGPT's ``function_call`` turns (JSON text) are assistant turns with tool
calls, its ``observation`` turns are tool turns.

Order of roles: a system turn comes first or not at all, and a tool turn never comes first. No more is asked: two user
turns in a row are common (hh-rlhf), some dialogues open with the assistant, and a template that insists on more
refuses the row by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from dpo_cli.data.formats.reading import BadRowError
from dpo_cli.data.formats.values import from_json, kind_of, names, plain_data, text
from dpo_cli.data.types import Message

Content = str | list[Message]

_CALL = "function_call"
_ROLES = {role: role for role in ("system", "user", "assistant", "tool")}
_ROLES |= {"human": "user"} | dict.fromkeys(("gpt", "chatgpt", "bing", "bard"), "assistant")
_ROLES |= dict.fromkeys((_CALL, "tool_call"), _CALL)
_ROLES |= dict.fromkeys(("observation", "tool_response", "function"), "tool")
_KEPT = ("name", "tool_call_id", "reasoning_content")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HELPSTEER_TURN = re.compile(r"\n<extra_id_1>(User|Assistant)\n")


def content(value: Any, column: str) -> Content:
    """A column's text or messages; one message stands for a list of one.

    Text stays text, with one exception, for tables that hold nothing else: text that is as a whole the JSON of a
    message or a list of messages (objects with role and content, or from and value) is read as these.

    Raises:
        BadRowError: neither, a message without role or content, or roles out of order.
    """
    if isinstance(value, str):
        written = _written_messages(value)
        return text(value, column) if written is None else turns(written, column)
    return turns(value, column)


def turns(value: Any, column: str) -> list[Message]:
    """A column's messages, which can't be plain text: text is read as JSON.

    Raises:
        BadRowError: as ``content``.
    """
    value = from_json(value, column)
    if isinstance(value, dict):
        return [_message(value, column)]
    if not isinstance(value, list):
        raise BadRowError(f"{column}: expected text or a list of messages, found {kind_of(value)}")
    if not value:
        raise BadRowError(f"{column}: expected at least one message, found none")
    found = [_message(message, f"{column}, message {number}") for number, message in enumerate(value, start=1)]
    _check_order(found, column)
    return found


def dialogue(value: Any, column: str) -> list[Message]:
    """A whole dialogue: messages, or hh-rlhf's text.

    Raises:
        BadRowError: neither.
    """
    if isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
        return parse_hh(text(value, column), column)
    return turns(value, column)


def parse_hh(said: str, column: str) -> list[Message]:
    """The turns of ``\\n\\nHuman: ...\\n\\nAssistant: ...``.

    The space after the colon and the blank line before the next speaker are the format's, not the speaker's.

    Raises:
        BadRowError: it doesn't start with Human.
    """
    start, *parts = _HH_TURN.split("\n\n" + said.lstrip("\n"))
    if start or not parts or parts[0] != "Human":
        raise BadRowError(
            f"{column}: with no column prompt, expected text that starts with Human:, found {said[:40]!r}"
        )
    return [
        Message(role="user" if speaker == "Human" else "assistant", content=words.strip())
        for speaker, words in zip(parts[::2], parts[1::2], strict=True)
    ]


def hh_prompt(said: str, column: str) -> list[Message]:
    """The turns of a prompt in hh-rlhf's form, which ends in ``\\n\\nAssistant:`` with nothing after it.

    Raises:
        BadRowError: it doesn't start with Human, or is answered already.
    """
    found = parse_hh(said, column)
    if found[-1]["role"] == "assistant" and not found[-1]["content"]:
        found = found[:-1]
    return found


def parse_helpsteer(said: str) -> Content:
    """HelpSteer's prompt: text, or several turns with ``<extra_id_1>`` and the speaker between them, a user's first."""
    first, *parts = _HELPSTEER_TURN.split(said)
    if not parts:
        return said
    return [
        Message(role="user", content=first),
        *(
            Message(role=speaker.lower(), content=words)
            for speaker, words in zip(parts[::2], parts[1::2], strict=True)
            if words.strip()
        ),
    ]


def _check_order(dialogue: Sequence[Message], column: str) -> None:
    for number, turn in enumerate(dialogue, start=1):
        if turn["role"] == "system" and number > 1:
            raise BadRowError(f"{column}, message {number}: a system turn comes first, found it after {number - 1}")
    if dialogue[0]["role"] == "tool":
        raise BadRowError(f"{column}, message 1: a tool turn answers an earlier turn, and there is none")


def _written_messages(value: str) -> Any:
    """What text that is JSON of messages, or of one, stands for; None = it is other text."""
    start = value.lstrip()
    if not start.startswith(("[", "{")) or not start[1:].lstrip().startswith(("{", '"')):
        return None
    try:
        found = from_json(value, "")
    except BadRowError:
        return None
    return found if found and all(map(_looks_like_message, found if isinstance(found, list) else [found])) else None


def _looks_like_message(value: Any) -> bool:
    return isinstance(value, dict) and (value.keys() >= {"role", "content"} or value.keys() >= {"from", "value"})


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise BadRowError(f"{place}: expected an object with role and content, found {kind_of(value)}")
    role_key, content_key = ("from", "value") if value.get("from") is not None else ("role", "content")
    said = value.get(role_key)
    if not isinstance(said, str):
        raise BadRowError(f"{place}: expected text in {role_key}, found {_found(value, role_key)}")
    role = _ROLES.get(said)
    if role is None:
        raise BadRowError(f"{place}: expected {role_key} to be one of {names(_ROLES)}, found {said[:40]!r}")
    if role == _CALL:
        calls = _tool_calls(value.get(content_key), place)
        return Message(role="assistant", content="", tool_calls=calls)
    message = Message(role=role, content="")
    if value.get("tool_calls"):
        message["tool_calls"] = _tool_calls(value["tool_calls"], place)
    message["content"] = _message_text(value, content_key, place, needed="tool_calls" not in message)
    for key in _KEPT:
        if value.get(key) is not None:
            cast(dict[str, Any], message)[key] = text(value[key], f"{place}, {key}")
    return message


def _message_text(value: dict[str, Any], key: str, place: str, *, needed: bool) -> str:
    found = value.get(key)
    if isinstance(found, str):
        return text(found, place)
    if isinstance(found, list):
        return "".join(_part(part, place, key) for part in found)
    if found is None and not needed:
        return ""
    raise BadRowError(f"{place}: expected text in {key}, found {_found(value, key)}")


def _part(part: Any, place: str, key: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        found = f"a part of type {str(part.get('type'))[:40]}" if isinstance(part, dict) else f"a {kind_of(part)}"
        raise BadRowError(f"{place}: expected text in {key}, found a list with {found}")
    return text(part.get("text"), f"{place}, a part's text")


def _tool_calls(value: Any, place: str) -> list[dict[str, Any]]:
    value = from_json(value, place)
    calls = value if isinstance(value, list) else [value]
    return [_tool_call(call, f"{place}, tool call {number}") for number, call in enumerate(calls, start=1)]


def _tool_call(value: Any, place: str) -> dict[str, Any]:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRowError(f"{place}: expected an object with a function's name and arguments, found {_shown(value)}")
    arguments = from_json(function.get("arguments"), place)
    if arguments is None or arguments == "":
        arguments = {}
    if not isinstance(arguments, dict):
        raise BadRowError(f"{place}: expected arguments to be an object, found {kind_of(arguments)}")
    call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if value.get("id") is not None:
        call["id"] = value["id"]
    plain_data(call, place)
    return call


def _found(value: dict[str, Any], key: str) -> str:
    return kind_of(value[key]) if key in value else "no such key"


def _shown(value: Any) -> str:
    return f"an object with {names(map(str, value)) or 'nothing'}"[:80] if isinstance(value, dict) else kind_of(value)
