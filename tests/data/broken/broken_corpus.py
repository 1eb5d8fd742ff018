"""Broken inputs, and what is expected of each: made here, so that nothing odd lies in the repository.

A *row case* is one bad row between two good ones. With ``data.on_bad_row=raise`` the message names file and line;
with ``skip`` the row is counted and the two others are used. A *file case* can't be read at all, whatever is allowed.
A *fine case* is odd, but whole: its rows are read, as they are.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import zstandard

Kind = str
PAIR = {"prompt": "Sort: b a", "chosen": "a b", "rejected": "b a"}
OTHER = {"prompt": "Sort: d c", "chosen": "c d", "rejected": "d c"}
JUDGED = {"prompt": "Sort: b a", "completion": "a b", "label": True}
RANKED = {"prompt": "Sort: b a", "completions": ["a b", "b a", "b"], "scores": [2, 1, 0.5]}
GOOD = {"pairs": PAIR, "answers": JUDGED, "rankings": RANKED}
LONG = 10 << 20


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def line(values: Any) -> bytes:
    return json.dumps(values).encode()


def lines(*rows: Any) -> bytes:
    return b"".join(line(row) + b"\n" for row in rows)


def pair(**changes: Any) -> dict[str, Any]:
    return PAIR | changes


def answered(*turns: Any) -> dict[str, Any]:
    return {"prompt": list(turns), "chosen": [assistant("a")], "rejected": [assistant("b")]}


def without(column: str, row: dict[str, Any] = PAIR) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != column}


def deep(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


@dataclass(frozen=True)
class RowCase:
    """A row that can't be used."""

    name: str
    row: Any
    """Bytes stand as they are."""
    says: tuple[str, ...]
    """What the message has in it besides the place."""
    kind: Kind = "pairs"
    form: str = "jsonl"

    @property
    def place(self) -> str:
        """Of the bad row, as messages name it."""
        return {"jsonl": "rows.jsonl, line 2", "json": "rows.json, row 2", "csv": "rows.csv, line 3"}[self.form]

    def make(self, folder: Path) -> Path:
        good = line(GOOD[self.kind])
        bad = self.row if isinstance(self.row, bytes) else line(self.row)
        contents = {
            "jsonl": b"\n".join([good, bad, good]),
            "json": b"[" + b",".join([good, bad, good]) + b"]",
            "csv": CSV.replace(b"Sort: d c", bad + b"\nSort: d c", 1),
        }
        (file := folder / f"rows.{self.form}").write_bytes(contents[self.form])
        return file


@dataclass(frozen=True)
class FileCase:
    """Files that can't be used."""

    name: str
    make: Callable[[Path], Path]
    """Writes into a folder, and says what is read."""
    says: tuple[str, ...]
    split: str = "train"


@dataclass(frozen=True)
class FineCase:
    """Odd files that are whole."""

    name: str
    make: Callable[[Path], Path]
    rows: tuple[dict[str, Any], ...]
    """The rows in plain jsonl that give the same tokens."""


def file(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return make


def folder_of(*files: tuple[str, bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name, content in files:
            file(name, content)(folder / "data")
        (folder / "data").mkdir(exist_ok=True)
        return folder / "data"

    return make


def table(*rows: Any) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), stream)
    return stream.getvalue()


def arrow_stream(*rows: Any) -> bytes:
    stream = io.BytesIO()
    rows_table = pyarrow.Table.from_pylist(list(rows))
    with pyarrow.ipc.new_stream(stream, rows_table.schema) as writer:
        writer.write_table(rows_table)
    return stream.getvalue()


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def directory(folder: Path) -> Path:
    (path := folder / "rows.jsonl").mkdir()
    return path


def link_to_itself(folder: Path) -> Path:
    (path := folder / "rows.jsonl").symlink_to(path)
    return path


def link_to_nothing(folder: Path) -> Path:
    (path := folder / "rows.jsonl").symlink_to(folder / "gone.jsonl")
    return path


def folder_in_itself(folder: Path) -> Path:
    data = folder_of(("rows.jsonl", lines(PAIR, OTHER)))(folder)
    (data / "again").symlink_to(data)
    return data


def pipe(folder: Path) -> Path:
    os.mkfifo(path := folder / "rows.jsonl")
    return path


MANY = [PAIR | {"prompt": f"Sort: b a {number}"} for number in range(2000)]
CSV = b"prompt,chosen,rejected\nSort: b a,a b,b a\nSort: d c,c d,d c\n"

ROWS = [
    # Not JSON, or not the JSON of a row.
    RowCase("a comma is missing", b'{"prompt": "Hi" "chosen": "a"}', ("not valid JSON", "column 17")),
    RowCase("cut in the middle", line(PAIR)[:30], ("not valid JSON",)),
    RowCase("Python instead of JSON", b"{'prompt': 'Hi', 'chosen': 'a', 'rejected': None}", ("not valid JSON",)),
    RowCase("two objects on a line", line(PAIR) + b" " + line(OTHER), ("not valid JSON", "Extra data")),
    RowCase(
        "a control character as it is", b'{"prompt": "a\x07b", "chosen": "a", "rejected": "b"}', ("not valid JSON",)
    ),
    RowCase("zero bytes", b"\0" * 40, ("zero bytes",)),
    RowCase(
        "Latin-1",
        '{"prompt": "café", "chosen": "a", "rejected": "b"}'.encode("latin-1"),
        ("not valid UTF-8", "byte 16"),
    ),
    RowCase("a list", ["Sort: b a", "a b", "b a"], ("expected an object", "list")),
    RowCase("a text", "Sort: b a", ("expected an object", "text")),
    RowCase("null", None, ("expected an object", "null")),
    RowCase("a number", 7, ("expected an object", "number")),
    RowCase(
        "a key twice", b'{"prompt": "p", "chosen": "a", "chosen": "c", "rejected": "b"}', ("'chosen' stands twice",)
    ),
    RowCase(
        "half a character", b'{"prompt": "p \\ud83d", "chosen": "a", "rejected": "b"}', ("half a character", "\\ud83d")
    ),
    RowCase("half a character deep inside", {**PAIR, "prompt": [user("\udc00")]}, ("half a character", "\\udc00")),
    RowCase("thousands of lists in each other", b'{"prompt": ' + b"[" * 9000 + b"]" * 9000 + b"}", ("deep",)),
    RowCase("a few hundred lists in each other", pair(prompt=deep(300)), ("deep",)),
    RowCase(
        "a number of 5,000 digits", b'{"prompt": "p", "chosen": "a", "rejected": ' + b"9" * 5000 + b"}", ("digits",)
    ),
    RowCase("Latin-1 in a list", '{"prompt": "café"}'.encode("latin-1"), ("not valid UTF-8",), form="json"),
    RowCase("a list in a list", [], ("expected an object", "list"), form="json"),
    RowCase("a key twice in a list", b'{"a": {"b": 1, "b": 2}}', ("'b' stands twice",), form="json"),
    RowCase("a field too many", b"p,a,b,c", ("4 fields, expected 3",), form="csv"),
    RowCase("a field too few", b"p,a", ("2 fields, expected 3",), form="csv"),
    RowCase("a zero byte in a field", b"p,a\0,b", ("chosen", "zero byte"), form="csv"),
    RowCase("Latin-1 in a field", "p,café,b".encode("latin-1"), ("chosen", "not valid UTF-8"), form="csv"),
    RowCase("an empty field", b"p,,b", ("chosen", "empty"), form="csv"),
    # Columns that are missing or of the wrong kind.
    RowCase("an empty object", {}, ("column",)),
    RowCase("no rejected", without("rejected"), ("rejected",)),
    RowCase("other names", {"question": "p", "good": "a", "bad": "b"}, ("column", "question")),
    RowCase("ten thousand columns", {f"column {number}": number for number in range(10000)}, ("column",)),
    RowCase("a column with a name of 10 MB", {"x" * LONG: 1}, ("column",)),
    RowCase("a column with line ends in its name", {"a\n\x1b[31mb": 1}, ("column", "a\\n")),
    RowCase("no answers", {"prompt": "p"}, ("column",)),
    RowCase("chosen is null", pair(chosen=None), ("chosen",)),
    RowCase("chosen is a number", pair(chosen=4), ("chosen", "int")),
    RowCase("chosen is true", pair(chosen=True), ("chosen", "bool")),
    RowCase("chosen is an object", pair(chosen={"text": "a"}), ("chosen",)),
    RowCase("chosen is an empty list", pair(chosen=[]), ("chosen",)),
    RowCase("prompt is null", pair(prompt=None), ("prompt",)),
    RowCase("prompt is a number", pair(prompt=12), ("prompt", "int")),
    RowCase("prompt is an empty list", pair(prompt=[]), ("prompt",)),
    RowCase("a list of texts for a dialogue", pair(chosen=["Hi", "a b"]), ("chosen",)),
    RowCase("text beside messages", {"chosen": "a b", "rejected": [user("p"), assistant("b a")]}, ("chosen",)),
    # Answers that can't be told apart, or are none.
    RowCase("an empty answer", pair(chosen=""), ("chosen", "empty")),
    RowCase("an answer of spaces", pair(rejected=" \n\t "), ("rejected", "empty")),
    RowCase(
        "an empty turn",
        {"prompt": [user("p")], "chosen": [assistant("")], "rejected": [assistant("b")]},
        ("chosen", "empty"),
    ),
    RowCase("equal answers", pair(rejected="a b"), ("chosen", "rejected", "same")),
    RowCase("equal dialogues", {name: [user("p"), assistant("a")] for name in ("chosen", "rejected")}, ("same",)),
    # Dialogues.
    RowCase(
        "null among the turns",
        {"chosen": [user("p"), None], "rejected": [user("p"), assistant("b")]},
        ("chosen", "message 2"),
    ),
    RowCase("content is null", answered(user(None)), ("prompt", "message 1")),
    RowCase("content is a number", answered(user(3)), ("prompt", "message 1")),
    RowCase("a turn without content", answered({"role": "user"}), ("prompt", "message 1")),
    RowCase("a turn without a role", answered({"content": "p"}), ("prompt", "message 1")),
    RowCase(
        "a system turn that comes late", answered(user("p"), {"role": "system", "content": "s"}), ("prompt", "system")
    ),
    RowCase("a tool turn that comes first", answered({"role": "tool", "content": "4"}), ("prompt", "tool")),
    RowCase("a prompt that ends with an answer", answered(user("p"), assistant("q")), ("prompt",)),
    RowCase(
        "a tool call without a function",
        answered(user("p"), {**assistant(""), "tool_calls": [{"id": "1"}]}, user("q")),
        ("prompt", "function"),
    ),
    RowCase(
        "tool calls that are text",
        answered(user("p"), {**assistant(""), "tool_calls": "add(1, 2)"}, user("q")),
        ("prompt", "message 2"),
    ),
    RowCase("a picture", answered(user([{"type": "image_url", "image_url": {"url": "x"}}])), ("prompt", "message 1")),
    RowCase("tools that are text", PAIR | {"tools": "calculator"}, ("tools",)),
    RowCase("tools that are numbers", PAIR | {"tools": [1]}, ("tools",)),
    RowCase(
        "template arguments that are text",
        PAIR | {"chat_template_kwargs": "enable_thinking"},
        ("chat_template_kwargs",),
    ),
    RowCase(
        "template arguments that are not the row's", PAIR | {"chat_template_kwargs": {"messages": []}}, ("messages",)
    ),
    RowCase("an unknown role", answered({"role": "wizard", "content": "p"}), ("prompt", "wizard")),
    RowCase("a role that is a list", answered({"role": ["user"], "content": "p"}), ("prompt", "message 1")),
    RowCase("a role of 10 MB", answered({"role": "r" * LONG, "content": "p"}), ("prompt", "message 1")),
    RowCase(
        "a role that paints the terminal", answered({"role": "\x1b[31m\n", "content": "p"}), ("prompt", "message 1")
    ),
    RowCase(
        "a dialogue that ends with the user",
        {"chosen": [user("p"), assistant("a"), user("q")], "rejected": [user("p"), assistant("b")]},
        ("chosen", "assistant"),
    ),
    RowCase(
        "dialogues with other questions",
        {"chosen": [user("p"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        (),
    ),
    RowCase("an answer of several turns", pair(chosen=[assistant("a"), user("q"), assistant("b")]), ("chosen",)),
    RowCase("hh text without a speaker", {"chosen": "Hi there", "rejected": "Hello"}, ("chosen", "Human")),
    RowCase(
        "hh text that ends with the human",
        {"chosen": "\n\nHuman: Hi", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
        ("chosen",),
    ),
    # Judged.
    RowCase("a label of text", JUDGED | {"label": "good"}, ("label", "good"), "answers"),
    RowCase("a label that is null", JUDGED | {"label": None}, ("label",), "answers"),
    RowCase("a label of 2", JUDGED | {"label": 2}, ("label", "2"), "answers"),
    RowCase("a label of 10 MB", JUDGED | {"label": "x" * LONG}, ("label",), "answers"),
    RowCase("a label that is a list", JUDGED | {"label": [True]}, ("label",), "answers"),
    RowCase("a label without an answer", without("completion", JUDGED), ("completion",), "answers"),
    RowCase("an empty judged answer", JUDGED | {"completion": " "}, ("completion", "empty"), "answers"),
    # Ranked.
    RowCase("scores of another length", RANKED | {"scores": [1, 2]}, ("scores", "3"), "rankings"),
    RowCase("a score that is NaN", RANKED | {"scores": [1, float("nan"), 2]}, ("scores", "finite"), "rankings"),
    RowCase("a score that is infinite", RANKED | {"scores": [1, float("-inf"), 2]}, ("scores", "finite"), "rankings"),
    RowCase("a score beyond all floats", RANKED | {"scores": [1, 10**400, 2]}, ("scores", "finite"), "rankings"),
    RowCase("a score of words", RANKED | {"scores": [1, "high", 2]}, ("scores", "number 2"), "rankings"),
    RowCase("a score that is null", RANKED | {"scores": [1, None, 2]}, ("scores", "number 2"), "rankings"),
    RowCase("a score that is true", RANKED | {"scores": [1, True, 2]}, ("scores", "number 2"), "rankings"),
    RowCase("scores that are a number", RANKED | {"scores": 3}, ("scores", "list"), "rankings"),
    RowCase("no scores", without("scores", RANKED), ("scores",), "rankings"),
    RowCase("completions that are text", RANKED | {"completions": "a b"}, ("completions", "list"), "rankings"),
    RowCase("no completions", RANKED | {"completions": []}, ("completions",), "rankings"),
    RowCase(
        "a completion that is null", RANKED | {"completions": ["a", None, "b"]}, ("completions", "number 2"), "rankings"
    ),
    RowCase(
        "a completion twice", RANKED | {"completions": ["a", "b", "a"]}, ("answer 1", "answer 3", "same"), "rankings"
    ),
]

FILES = [
    FileCase(
        "gzip cut off",
        file("rows.jsonl.gz", gzip.compress(lines(*MANY))[:-40]),
        ("rows.jsonl.gz: can't be read after line", "cut off"),
    ),
    FileCase(
        "zstd cut off",
        file("rows.jsonl.zst", zstd(lines(*MANY))[:-40]),
        ("rows.jsonl.zst: can't be read after line", "cut off"),
    ),
    FileCase("text called gzip", file("rows.jsonl.gz", lines(PAIR)), ("rows.jsonl.gz: can't be read after line 0",)),
    FileCase("gzip not called so", file("rows.jsonl", gzip.compress(lines(PAIR))), ("packed by gzip", ".gz")),
    FileCase("UTF-16", file("rows.jsonl", lines(PAIR).decode().encode("utf-16")), ("UTF-16", "save it as UTF-8")),
    FileCase(
        "a JSON list by line",
        file("rows.jsonl", json.dumps([PAIR, OTHER], indent=1).encode()),
        ("this is a list", ".json"),
    ),
    FileCase(
        "one object over many lines",
        file("rows.json", json.dumps({"data": [PAIR]}, indent=1).encode()),
        ("goes over several lines",),
    ),
    FileCase(
        "a JSON list cut off",
        file("rows.json", json.dumps([PAIR, OTHER]).encode()[:-20]),
        ("rows.json", "after row 1", "cut off"),
    ),
    FileCase(
        "a JSON list with a comma too many", file("rows.json", b"[" + line(PAIR) + b",]"), ("rows.json", "after row 1")
    ),
    FileCase(
        "a Git LFS pointer",
        file("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
        ("Git LFS", "git lfs pull"),
    ),
    FileCase("a web page", file("rows.parquet", b"<!DOCTYPE html>\n<title>Sign in</title>"), ("web page",)),
    FileCase("an empty file", file("rows.jsonl", b""), ("no usable row", "0 read")),
    FileCase("blank lines", file("rows.jsonl", b"\n \r\n\n"), ("no usable row", "0 read")),
    FileCase("an empty list", file("rows.json", b"[]"), ("no usable row", "0 read")),
    FileCase("an empty csv", file("rows.csv", b""), ("rows.csv", "empty", "names of the columns")),
    FileCase("a csv of a header", file("rows.csv", b"prompt,chosen,rejected\n"), ("no usable row", "0 read")),
    FileCase(
        "a csv without header",
        file("rows.csv", b"Sort: b a,a b,b a\nSort: d c,c d,d c\n"),
        ("rows.csv, line 2", "column"),
    ),
    FileCase(
        "a csv with a column twice",
        file("rows.csv", b"prompt,chosen,chosen\np,a,b\n"),
        ("rows.csv, line 1", "'chosen'"),
    ),
    FileCase("a csv of semicolons", file("rows.csv", CSV.replace(b",", b";")), ("rows.csv, line 1", "semicolons")),
    FileCase(
        "a quote that is never closed",
        file("rows.csv", CSV + b'"Sort: f e,e f,f e\n'),
        ("starts on line 4", "never closed"),
    ),
    FileCase(
        "a parquet file cut off", file("rows.parquet", table(*MANY)[:-100]), ("rows.parquet: can't be read", "cut off")
    ),
    FileCase("parquet called jsonl", file("rows.jsonl", table(PAIR)), ("parquet", ".parquet")),
    FileCase("jsonl called parquet", file("rows.parquet", lines(PAIR)), ("no parquet file", ".jsonl")),
    FileCase("jsonl called arrow", file("rows.arrow", lines(PAIR)), ("no Arrow file", ".jsonl")),
    FileCase("an Arrow stream cut off", file("rows.arrow", arrow_stream(*MANY)[:-8]), ("rows.arrow", "cut off")),
    FileCase(
        "a parquet file without rows", file("rows.parquet", table(PAIR)[:0] or table(*[PAIR][:0])), ("no usable row",)
    ),
    FileCase("an ending that isn't read", file("rows.xlsx", b"PK\x03\x04"), ("rows.xlsx", "should end in")),
    FileCase("no file", lambda folder: folder / "rows.jsonl", ("no such file or folder",)),
    FileCase("a folder without files", folder_of(), ("no file in this folder ends in",)),
    FileCase(
        "a folder of other files",
        folder_of(("README.md", b"x"), (".rows.jsonl", lines(PAIR))),
        ("no file in this folder ends in",),
    ),
    FileCase(
        "a folder of several kinds", folder_of(("a.jsonl", lines(PAIR)), ("b.csv", CSV)), ("several kinds", "pattern")
    ),
    FileCase(
        "a folder where one file says its split",
        folder_of(("train.jsonl", lines(PAIR)), ("b.jsonl", lines(OTHER))),
        ("train.jsonl", "b.jsonl", "pattern"),
    ),
    FileCase("a folder of test files", folder_of(("test.jsonl", lines(PAIR))), ("no split 'train'", "expected test")),
    FileCase("a folder called jsonl", directory, ("no file in this folder",)),
    FileCase("a link to itself", link_to_itself, ("rows.jsonl", "symbolic links")),
    FileCase("a link to nothing", link_to_nothing, ("rows.jsonl", "No such file")),
    FileCase("a pipe", pipe, ("rows.jsonl", "no ordinary file")),
    FileCase("a pattern that nothing matches", lambda folder: folder / "*.jsonl", ("no file matches",)),
    FileCase(
        "a split that isn't there", file("rows.jsonl", lines(PAIR)), ("no split 'test'", "expected train"), "test"
    ),
    FileCase("a split that is none", file("rows.jsonl", lines(PAIR)), ("can't read the split 'train[5'",), "train[5"),
    FileCase("a part without rows", file("rows.jsonl", lines(PAIR)), ("no usable row",), "train[5:]"),
    FileCase(
        "ranks with ties only",
        file("rows.jsonl", lines(*[RANKED | {"scores": [1, 1, 1]}] * 2)),
        ("no row is left", "equal scores"),
    ),
    FileCase(
        "labels for a loss that compares", file("rows.jsonl", lines(JUDGED, JUDGED)), ("rows.jsonl, line 1", "kto")
    ),
]

FINE = [
    FineCase("a byte order mark", file("rows.jsonl", b"\xef\xbb\xbf" + lines(PAIR, OTHER)), (PAIR, OTHER)),
    FineCase(
        "line ends of Windows and blank lines",
        file("rows.jsonl", b"\r\n" + lines(PAIR, OTHER).replace(b"\n", b"\r\n\r\n")),
        (PAIR, OTHER),
    ),
    FineCase("no line end at the end", file("rows.jsonl", lines(PAIR, OTHER)[:-1]), (PAIR, OTHER)),
    FineCase("one row", file("rows.jsonl", lines(PAIR)), (PAIR,)),
    FineCase(
        "a list with a mark",
        file("rows.json", b"\xef\xbb\xbf\n[" + line(PAIR) + b"\n,\n" + line(OTHER) + b"]\n"),
        (PAIR, OTHER),
    ),
    FineCase("lines called json", file("rows.json", lines(PAIR, OTHER)), (PAIR, OTHER)),
    FineCase("a name in capitals", file("ROWS.JSONL", lines(PAIR)), (PAIR,)),
    FineCase(
        "gzip in two pieces",
        file("rows.jsonl.gz", gzip.compress(lines(PAIR)) + gzip.compress(lines(OTHER))),
        (PAIR, OTHER),
    ),
    FineCase("zstd in two pieces", file("rows.jsonl.zst", zstd(lines(PAIR)) + zstd(lines(OTHER))), (PAIR, OTHER)),
    FineCase(
        "a csv with a mark and line ends of Windows",
        file("rows.csv", b"\xef\xbb\xbf" + CSV.replace(b"\n", b"\r\n")),
        (PAIR, OTHER),
    ),
    FineCase(
        "a column of nulls", file("rows.parquet", table(PAIR | {"note": None}, OTHER | {"note": None})), (PAIR, OTHER)
    ),
    FineCase("a zero byte that is escaped", file("rows.jsonl", lines(pair(chosen="a\0b"))), (pair(chosen="a\0b"),)),
    FineCase(
        "odd line ends inside text",
        file("rows.jsonl", json.dumps(pair(chosen="a\u2028b\x85c"), ensure_ascii=False).encode()),
        (pair(chosen="a\u2028b\x85c"),),
    ),
    FineCase(
        "10 MB in a column that isn't used", file("rows.jsonl", lines(pair(note="x" * LONG), OTHER)), (PAIR, OTHER)
    ),
    FineCase(
        "mixed shapes", file("rows.jsonl", lines(PAIR, OTHER | {"prompt": [user(OTHER["prompt"])]})), (PAIR, OTHER)
    ),
    FineCase(
        "messages as JSON in a csv",
        file("rows.csv", b'prompt,chosen,rejected\n"[{""role"": ""user"", ""content"": ""Sort: b a""}]",a b,b a\n'),
        (PAIR,),
    ),
    FineCase("a folder that is in itself", folder_in_itself, (PAIR, OTHER)),
    FineCase("an Arrow stream", file("rows.arrow", arrow_stream(PAIR, OTHER)), (PAIR, OTHER)),
]
