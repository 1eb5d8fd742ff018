"""Rows from JSON: an object on each line, or a list of objects.

JSON is read here and not by ``datasets``, so that trouble has a file and a line, and nothing is changed in silence.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import Any

from dpo_cli.data.sources.row import Row, kind
from dpo_cli.data.sources.streams import BOM, File, damage, open_text
from dpo_cli.errors import DataError

_DEEPEST = 100
"""Lists and objects inside each other. More than a row needs, and few enough for any code that walks through one."""
_CHUNK = 1 << 20
_CUT_TOKEN = 16
"""Longer than any token of JSON but text and numbers: an error so near the end of a buffer may be the cut's."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SPACE = re.compile(r"[ \t\r\n]*")


class _BadRowError(ValueError):
    """A row that is JSON, but not one to train on."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _BadRowError(f"the key {twice!r} stands twice in one object")
    return values


_STRICT = json.JSONDecoder(object_pairs_hook=_object)
_LENIENT = json.JSONDecoder(parse_int=str)
"""Finds the end of a value that ``_STRICT`` refuses."""


def line_rows(file: File) -> Iterator[Row]:
    """The objects of a file that has one on each line; blank lines don't count.

    Raises:
        DataError: the file is damaged, or is no such file.
    """
    number = 0
    with damage(file, lambda: f"line {number}"), open_text(file) as stream:
        for number, line in _lines(stream):
            row = _parse_line(line, f"{file.name}, line {number}")
            if number == 1 and row.problem:
                _check_first_line(line, file)
            yield row


def count_lines(file: File) -> int:
    """How many rows ``line_rows`` gives."""
    with damage(file), open_text(file) as stream:
        return sum(1 for _ in _lines(stream))


def list_rows(file: File) -> Iterator[Row]:
    """The objects of a list, read piece by piece; or of lines, where the file doesn't open with ``[``.

    Raises:
        DataError: the file is damaged; a list also where it stops being JSON, for the next row's start is not known.
    """
    if not _opens_list(file):
        yield from line_rows(file)
        return
    number = 0
    with damage(file, lambda: f"row {number}"), open_text(file) as stream:
        reader = _ListReader(stream, file.name)
        for number, (values, problem) in enumerate(reader.items(), start=1):
            yield _row(f"{file.name}, row {number}", values, problem)


def count_list(file: File) -> int:
    """How many rows ``list_rows`` gives."""
    return sum(1 for _ in list_rows(file)) if _opens_list(file) else count_lines(file)


def _opens_list(file: File) -> bool:
    """Whether the first character that counts is ``[``."""
    with damage(file), open_text(file) as stream:
        if stream.peek(len(BOM)).startswith(BOM):
            stream.read(len(BOM))
        characters = iter(lambda: stream.read(1), b"")  # not lines: a list may be one long line
        return next((character for character in characters if not character.isspace()), b"") == b"["


def _lines(stream: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(stream, start=1):
        if line.removeprefix(BOM).strip():
            yield number, line.rstrip()


def _check_first_line(line: bytes, file: File) -> None:
    """Refuse a file in which objects go over several lines: each line would be a bad row."""
    try:
        text = line.decode("utf-8-sig")
        json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos < len(text) or not text.lstrip().startswith(("[", "{")):
            return
        if text.lstrip().startswith("["):
            raise DataError(f"{file.name}: this is a list: its name should end in .json, not in .jsonl") from None
        raise DataError(
            f"{file.name}: an object that goes over several lines: expected one object on each line, or a list of "
            "objects, [{...}, {...}], in a .json file"
        ) from None
    except (ValueError, RecursionError):  # of this row alone, which is met again
        return


def _parse_line(line: bytes, source: str) -> Row:
    try:
        text = line.decode("utf-8-sig")
        values, problem = _STRICT.decode(text), ""
    except UnicodeDecodeError as error:
        return Row(source, {}, f"not valid UTF-8 (byte {error.start + 1})")
    except json.JSONDecodeError as error:
        if not line.strip(b"\0"):
            return Row(source, {}, "nothing but zero bytes, as a disk leaves them after a crash")
        return Row(source, {}, f"not valid JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:
        return Row(source, {}, _refusal(error))
    return _row(source, values, problem or _trouble(text, values))


def _row(source: str, values: Any, problem: str) -> Row:
    if not problem and not isinstance(values, dict):
        problem = f"expected an object, found {kind(values)}"
    return Row(source, {}, problem) if problem else Row(source, values)


def _refusal(error: ValueError | RecursionError) -> str:
    if isinstance(error, _BadRowError):
        return str(error)
    if isinstance(error, RecursionError):
        return f"lists and objects lie more than {_DEEPEST} deep in each other"
    return "a number of more than 4300 digits"  # the only other thing that the decoder refuses


def _trouble(text: str, values: Any) -> str:
    """What is wrong with a row that is valid JSON; empty if nothing is."""
    if text.count("[") + text.count("{") > _DEEPEST and _depth(values) > _DEEPEST:
        return f"lists and objects lie more than {_DEEPEST} deep in each other"
    if _SURROGATE.search(text):
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            return f"half a character (\\u{ord(error.object[error.start]):04x}, a surrogate without its other half)"
    return ""


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


class _ListReader:
    """The items of a JSON list, with no more of the text in memory than the item being read and a chunk."""

    def __init__(self, stream: io.BufferedReader, name: str) -> None:
        self._stream = stream
        # Bytes that are no UTF-8 become surrogates, so that the damage stays in its row.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._name = name
        self._text = ""
        self._at = 0
        self._ended = False
        self._line, self._column = 1, 1
        self._items = 0

    def items(self) -> Iterator[tuple[Any, str]]:
        """Value and problem of each item."""
        self._next_character()
        self._at += 1  # the opening bracket
        if self._next_character() != "]":
            while True:
                yield self._item()
                self._items += 1
                character = self._next_character()
                if character == "]":
                    break
                if character != ",":
                    raise self._damaged("Expecting ',' delimiter", self._at)
                self._at += 1
                self._next_character()
        self._at += 1
        if self._next_character():
            raise self._damaged("Extra data", self._at)

    def _item(self) -> tuple[Any, str]:
        while True:
            try:
                values, end, problem = self._decode()
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos + _CUT_TOKEN >= len(self._text)
                if self._ended or not cut:
                    raise self._damaged(error.msg, error.pos) from error
            else:
                if end < len(self._text) or self._ended:  # else a number may go on
                    text = self._text[self._at : end]
                    self._at = end
                    return values, problem or self._problem(text, values)
            self._more()

    def _decode(self) -> tuple[Any, int, str]:
        try:
            return *_STRICT.raw_decode(self._text, self._at), ""
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            return None, _LENIENT.raw_decode(self._text, self._at)[1], _refusal(error)
        except RecursionError as error:
            raise self._damaged(_refusal(error), self._at) from error

    def _problem(self, text: str, values: Any) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            return "not valid UTF-8"
        return _trouble(text, values)

    def _next_character(self) -> str:
        """Go to the next character that is no space; empty at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def _more(self) -> None:
        done = self._text[: self._at]
        self._line += done.count("\n")
        self._column = len(done) - done.rfind("\n") if "\n" in done else self._column + len(done)
        rest = self._text[self._at :]
        # As much again as is left, so that a long item isn't read anew for each chunk.
        chunk = self._stream.read(max(_CHUNK, len(rest)))
        self._ended = not chunk
        self._text, self._at = rest + self._decoder.decode(chunk, final=self._ended), 0

    def _damaged(self, what: str, at: int) -> DataError:
        before = self._text[:at]
        line = self._line + before.count("\n")
        column = at - before.rfind("\n") if "\n" in before else self._column + at
        if self._ended and at >= len(self._text.rstrip()):
            what, line_text = "the file ends before the list does: is it cut off?", ""
        else:
            line_text = f" at line {line}, column {column}"
        return DataError(f"{self._name}: not valid JSON after row {self._items} ({what}{line_text})")
