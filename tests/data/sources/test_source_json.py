"""JSON by line and by list: what is read, and how damage is named."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from helpers.sources import LINE, PAIR, numbered, numbers, read, source, write

from dpo_cli.data.sources import Row, json_rows
from dpo_cli.errors import DataError


@pytest.mark.parametrize(
    ("name", "content", "sources"),
    [
        ("a.jsonl", LINE + b"\n" + LINE + b"\n", ["a.jsonl, line 1", "a.jsonl, line 2"]),
        ("a.jsonl", b"\n" + LINE + b"\r\n  \n" + LINE, ["a.jsonl, line 2", "a.jsonl, line 4"]),
        ("a.jsonl", b"\xef\xbb\xbf" + LINE, ["a.jsonl, line 1"]),
        ("a.jsonl", b"\xef\xbb\xbf\n" + LINE, ["a.jsonl, line 2"]),
        ("a.jsonl.gz", LINE + b"\n" + LINE, ["a.jsonl.gz, line 1", "a.jsonl.gz, line 2"]),
        ("a.jsonl.zst", LINE + b"\n" + LINE, ["a.jsonl.zst, line 1", "a.jsonl.zst, line 2"]),
        ("A.JSONL", LINE, ["A.JSONL, line 1"]),
        ("a.json", b"[" + LINE + b",\n" + LINE + b"]", ["a.json, row 1", "a.json, row 2"]),
        ("a.json", b"\xef\xbb\xbf \n [" + LINE + b"]\r\n \n", ["a.json, row 1"]),
        ("a.json", json.dumps([PAIR, PAIR], indent=4).encode(), ["a.json, row 1", "a.json, row 2"]),
        ("a.json", LINE + b"\n" + LINE, ["a.json, line 1", "a.json, line 2"]),
        ("a.json.gz", b"[" + LINE + b"]", ["a.json.gz, row 1"]),
        ("a.json.zst", b"[" + LINE + b"]", ["a.json.zst, row 1"]),
        ("a.jsonl", b"", []),
        ("a.jsonl.gz", b"", []),
        ("a.jsonl.zst", b"", []),
        ("a.json", b"", []),
        ("a.json", b" [ ] ", []),
    ],
)
def test_rows_and_where_they_are(tmp_path: Path, name: str, content: bytes, sources: list[str]) -> None:
    file = write(tmp_path / name, content)
    assert read(file) == [Row(source, PAIR) for source in sources]


BAD_VALUES = {
    '{"a": 1, "b": {"c": 1, "c": 2}}': "the key 'c' stands twice in one object",
    '{"a": 1, "a": 1}': "the key 'a' stands twice in one object",
    "[1, 2]": "expected an object, found a list",
    "null": "expected an object, found null",
    '"text"': "expected an object, found text",
    "12": "expected an object, found a number",
    "true": "expected an object, found true or false",
    '{"a": "\\ud83d"}': "half a character (\\ud83d, a surrogate without its other half)",
    '{"a": ["x", {"\\udE00": 1}]}': "half a character (\\ude00, a surrogate without its other half)",
    '{"a": ' + "9" * 5000 + "}": "a number of more than 4300 digits",
    '{"a": ' + "[" * 200 + "]" * 200 + "}": "lists and objects lie more than 100 deep in each other",
}


@pytest.mark.parametrize("value", BAD_VALUES, ids=list(BAD_VALUES.values()))
def test_a_bad_row_leaves_the_others(tmp_path: Path, value: str) -> None:
    lines = write(tmp_path / "a.jsonl", LINE + b"\n" + value.encode() + b"\n" + LINE)
    listed = write(tmp_path / "a.json", b"[" + LINE + b"," + value.encode() + b"," + LINE + b"]")
    for file, unit in ((lines, "line"), (listed, "row")):
        assert read(file) == [
            Row(f"{file.name}, {unit} 1", PAIR),
            Row(f"{file.name}, {unit} 2", {}, BAD_VALUES[value]),
            Row(f"{file.name}, {unit} 3", PAIR),
        ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"prompt": "Hi" "x"}', "not valid JSON (Expecting ',' delimiter at column 17)"),
        (b'{"prompt": "Hi", "cho', "not valid JSON (Unterminated string starting at at column 18)"),
        (b'{"prompt": "a\x01b"}', "not valid JSON (Invalid control character at at column 14)"),
        (b'{"prompt": "\xff"}', "not valid UTF-8 (byte 13)"),
        (b"\0\0\0\0", "nothing but zero bytes, as a disk leaves them after a crash"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "lists and objects lie more than 100 deep in each other"),
        (b"{'prompt': 'Hi'}", "not valid JSON (Expecting property name enclosed in double quotes at column 2)"),
    ],
)
def test_a_line_that_is_no_json(tmp_path: Path, line: bytes, problem: str) -> None:
    rows = read(write(tmp_path / "a.jsonl", LINE + b"\n\n" + line + b"\n" + LINE))
    assert rows == [
        Row("a.jsonl, line 1", PAIR),
        Row("a.jsonl, line 3", {}, problem),
        Row("a.jsonl, line 4", PAIR),
    ]


def test_text_that_is_no_utf8_stays_in_its_row_of_a_list(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "a.json", b"[" + LINE + b', {"a": "caf\xe9"}, ' + LINE + b"]"))
    assert [row.problem for row in rows] == ["", "not valid UTF-8", ""]
    assert rows[2].values == PAIR


def test_whole_characters_are_no_trouble(tmp_path: Path) -> None:
    values = {"a": "\ud83d\ude0a".encode("utf-16", "surrogatepass").decode("utf-16"), "b": "\0", "c": "\u2028\x85"}
    assert values["a"] == "😊"
    for content in (json.dumps(values), json.dumps(values, ensure_ascii=False)):
        assert read(write(tmp_path / "a.jsonl", content.encode()))[0].values == values
        assert read(write(tmp_path / "a.json", b"[" + content.encode() + b"]"))[0].values == values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'[\n{"a": 1},\n{"b" 2}]',
            "not valid JSON after row 1 (Expecting ':' delimiter at line 3, column 6)",
        ),
        (b'[{"a": 1},\n{"a": 2}', "not valid JSON after row 2 (the file ends before the list does: is it cut off?)"),
        (b'[{"a": 1},\n{"a": "x', "not valid JSON after row 1 (the file ends before the list does: is it cut off?)"),
        (b'[{"a": 1},', "not valid JSON after row 1 (the file ends before the list does: is it cut off?)"),
        (b"[", "not valid JSON after row 0 (the file ends before the list does: is it cut off?)"),
        (b'[{"a": 1},]', "not valid JSON after row 1 (Expecting value at line 1, column 11)"),
        (b'[{"a": 1}\n {"a": 2}]', "not valid JSON after row 1 (Expecting ',' delimiter at line 2, column 2)"),
        (b'[{"a": 1}]\n[{"a": 1}]', "not valid JSON after row 1 (Extra data at line 2, column 1)"),
    ],
)
def test_a_list_that_stops_being_one(tmp_path: Path, content: bytes, message: str) -> None:
    file = write(tmp_path / "a.json", content)
    with pytest.raises(DataError) as error:
        read(file)
    # The cut is found at the end of what was there, whatever character is missing.
    if "cut off" in message:
        assert "after row" in str(error.value)
    else:
        assert str(error.value) == f"a.json: {message}"


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 16, 64])
@pytest.mark.parametrize("indent", [None, 1])
def test_where_a_list_is_cut_into_chunks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    values = [
        {"n": -1.5e-7, "t": 'é😊\\"]}, {\n', "l": [1, [], {}, None, True]},
        {},
        {"n": 10**30, "x": "y" * 50},
        {"f": -0.0},
    ]
    content = json.dumps(values, indent=indent, ensure_ascii=False).encode()
    assert [row.values for row in read(write(tmp_path / "a.json", content))] == values
    broken = content.replace(b'"x":', b'"x"', 1)
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(broken)
    with pytest.raises(DataError) as error:
        read(write(tmp_path / "a.json", broken))
    where = f"line {expected.value.lineno}, column {expected.value.colno}"
    assert str(error.value) == f"a.json: not valid JSON after row 2 ({expected.value.msg} at {where})"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", json.dumps(PAIR, indent=2).encode(), "an object that goes over several lines: expected one object"),
        ("a.jsonl", json.dumps(PAIR, indent=2).encode(), "an object that goes over several lines: expected one object"),
        ("a.jsonl", b"[\n" + LINE + b"]", "this is a list: its name should end in .json, not in .jsonl"),
        ("a.jsonl", LINE.decode().encode("utf-16"), "this is text in UTF-16 or UTF-32: save it as UTF-8"),
        ("a.jsonl", LINE.decode().encode("utf-16-le"), "this is text in UTF-16 or UTF-32: save it as UTF-8"),
        ("a.json", LINE.decode().encode("utf-16-be"), "this is text in UTF-16 or UTF-32: save it as UTF-8"),
        ("a.jsonl", LINE.decode().encode("utf-32"), "this is text in UTF-16 or UTF-32: save it as UTF-8"),
        ("a.jsonl.gz", LINE.decode().encode("utf-16"), "this is text in UTF-16 or UTF-32: save it as UTF-8"),
        ("a.jsonl", b"\x1f\x8b\x08\0\0\0\0\0", "this is packed by gzip: its name should end in .gz"),
        ("a.json", b"\x28\xb5\x2f\xfd\0\0\0", "this is packed by zstd: its name should end in .zst"),
        ("a.jsonl", b"PAR1\x15\x04\x15", "this is a parquet file: its name should end in .parquet"),
        ("a.jsonl", b"PK\x03\x04\x15", "this is a zip archive: unpack it first"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "this is a Git LFS pointer instead"),
        ("a.jsonl", b"<!DOCTYPE html><html><body>Sign in", "this is a web page instead of the file"),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError) as error:
        read(write(tmp_path / name, content))
    assert str(error.value).startswith(f"{name}: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pack", ["gz", "zst"])
def test_a_packed_file_cut_off_or_damaged_or_not_packed(tmp_path: Path, pack: str) -> None:
    name = f"a.jsonl.{pack}"
    file = write(tmp_path / name, numbered(5000))
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    found = []
    with pytest.raises(
        DataError, match=rf"^{name}: can't be read after line \d{{4}} \(.*\): the file is damaged or cut"
    ):
        found.extend(source(file).rows())
    file.write_bytes(LINE)
    with pytest.raises(DataError, match=rf"^{name}: can't be read after line 0 \("):
        read(file)
    file.write_bytes(whole[:1000] + b"\xff" * 100 + whole[1100:])
    with pytest.raises(DataError, match=rf"^{name}: can't be read after line \d+ \("):
        read(file)
    file.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=rf"^{name}: can't be read after line \d+ \("):
        read(file)


@pytest.mark.parametrize("pack", ["gz", "zst"])
def test_packed_pieces_one_after_the_other_are_one_file(tmp_path: Path, pack: str) -> None:
    file = write(tmp_path / f"a.jsonl.{pack}", numbered(3))
    file.write_bytes(file.read_bytes() * 2)
    assert numbers(read(file)) == [0, 1, 2, 0, 1, 2]


def test_rows_come_one_by_one(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl.gz", numbered(20000))
    file.write_bytes(file.read_bytes()[:-5])
    rows = source(file).rows()
    assert next(rows) == Row("a.jsonl.gz, line 1", {"n": 0, "square": 0})
    with pytest.raises(DataError):
        list(rows)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst"])
def test_long_rows(tmp_path: Path, name: str) -> None:
    values = {"prompt": "é😊" * 1_000_000, "chosen": "b" * 4_000_000, "rejected": '"\n' * 1_000_000}
    text = json.dumps(values, ensure_ascii=False)
    assert len(text.encode()) > 10_000_000
    content = f"[{text},{text}]" if name == "a.json" else f"{text}\n{text}\n"
    assert [row.values == values for row in read(write(tmp_path / name, content.encode()))] == [True, True]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    generator = random.Random(0)
    lines = [json.dumps({"prompt": generator.randbytes(5000).hex()}) for _ in range(2000)]
    text = f"[{','.join(lines)}]" if name == "a.json" else "\n".join(lines)
    file = write(tmp_path / name, text.encode())
    size = len(text)
    del lines, text
    opened = source(file)
    tracemalloc.start()
    try:
        assert sum(1 for _ in opened.rows()) == 2000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 20_000_000
    assert peak < 6_000_000


def test_what_unpacks_to_far_more_than_it_is_does_not_fill_memory(tmp_path: Path) -> None:
    lines = (LINE + b"\n") * 1000
    packer = zstandard.ZstdCompressor().compressobj()
    packed = b"".join(packer.compress(lines) for _ in range(2000)) + packer.flush()
    assert len(lines) * 2000 > 100_000_000 > 5000 * len(packed)
    file = tmp_path / "a.jsonl.zst"
    file.write_bytes(packed)
    rows = source(file).rows()
    tracemalloc.start()
    try:
        next(rows)
        assert tracemalloc.get_traced_memory()[1] < 35_000_000
    finally:
        tracemalloc.stop()


def test_a_first_line_that_is_too_deep_is_a_bad_row_too(tmp_path: Path) -> None:
    place = write(tmp_path / "a.jsonl", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n" + LINE)
    first, second = source(place).rows()
    assert "lie more than 100 deep in each other" in first.problem
    assert second.problem == ""
