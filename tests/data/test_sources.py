"""Rows from files, folders and the hub; damage is named by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from dpo_cli.data.sources import Row, is_local, read_rows
from dpo_cli.errors import DataError

PAIR = {"prompt": "Hi", "chosen": "Hello 😊", "rejected": "No"}
LINE = json.dumps(PAIR, ensure_ascii=False).encode()


def read(path: Path | str, split: str = "train") -> list[Row]:
    return list(read_rows(str(path), split=split, subset=None, revision=None))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "sources"),
    [
        ("a.jsonl", LINE + b"\n" + LINE + b"\n", ["a.jsonl, line 1", "a.jsonl, line 2"]),
        ("a.jsonl", b"\n" + LINE + b"\r\n  \n" + LINE, ["a.jsonl, line 2", "a.jsonl, line 4"]),
        ("a.jsonl", b"\xef\xbb\xbf" + LINE, ["a.jsonl, line 1"]),
        ("a.jsonl", b"\xef\xbb\xbf\n" + LINE, ["a.jsonl, line 2"]),
        ("a.jsonl.gz", LINE + b"\n" + LINE, ["a.jsonl.gz, line 1", "a.jsonl.gz, line 2"]),
        ("a.json", b"[" + LINE + b",\n" + LINE + b"]", ["a.json, row 1", "a.json, row 2"]),
        ("a.json", b"\xef\xbb\xbf \n [" + LINE + b"]", ["a.json, row 1"]),
        ("a.json", LINE + b"\n" + LINE, ["a.json, line 1", "a.json, line 2"]),
        ("a.json.gz", b"[" + LINE + b"]", ["a.json.gz, row 1"]),
        ("a.jsonl", b"", []),
        ("a.json", b"[]", []),
    ],
)
def test_json_files(tmp_path: Path, name: str, content: bytes, sources: list[str]) -> None:
    assert read(write(tmp_path / name, content)) == [Row(source, PAIR) for source in sources]


def test_parquet(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    table = pyarrow.Table.from_pylist([PAIR, {**PAIR, "chosen": None}])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"prompt": messages}]), tmp_path / "b.parquet")
    assert read(tmp_path / "a.parquet") == [
        Row("a.parquet, row 1", PAIR),
        Row("a.parquet, row 2", {**PAIR, "chosen": None}),
    ]
    assert read(tmp_path / "b.parquet") == [Row("b.parquet, row 1", {"prompt": messages})]


def test_folder_reads_known_files_in_order_of_name(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", LINE)
    write(tmp_path / "a.json.gz", b"[" + LINE + b"]")
    write(tmp_path / "README.md", b"not data")
    assert [row.source for row in read(tmp_path)] == ["a.json.gz, row 1", "b.jsonl, line 1"]


def test_rows_come_one_by_one(tmp_path: Path) -> None:
    rows = read_rows(str(write(tmp_path / "a.jsonl", LINE + b"\nbroken")), split="train", subset=None, revision=None)
    assert next(rows).source == "a.jsonl, line 1"
    with pytest.raises(DataError, match="line 2"):
        next(rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            LINE + b'\n\n{"prompt": "Hi" "x"}\n',
            "a.jsonl, line 3: not valid JSON (Expecting ',' delimiter at column 17)",
        ),
        ("a.json", b'[\n{"a": 1},\n{"b" 2}]', "a.json: not valid JSON (Expecting ':' delimiter at line 3, column 6)"),
        ("a.jsonl", LINE + b'\n{"prompt": "\xff"}', "a.jsonl, line 2: not valid UTF-8 (byte 13)"),
        ("a.jsonl", LINE + b"\n[1, 2]", "a.jsonl, line 2: expected an object, found list"),
        ("a.jsonl", b"null", "a.jsonl, line 1: expected an object, found NoneType"),
        ("a.json", b'[{"a": 1}, "text"]', "a.json, row 2: expected an object, found str"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError) as error:
        read(write(tmp_path / name, content))
    assert str(error.value) == message


def test_gzip_cut_off_or_not_gzip_or_damaged(tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"n": number, "square": number**9}).encode() + b"\n" for number in range(5000))
    whole = gzip.compress(lines)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-100])
    (tmp_path / "plain.jsonl.gz").write_bytes(LINE)
    (tmp_path / "bad.jsonl.gz").write_bytes(whole[:1000] + b"\xff" * 100 + whole[1100:])
    with pytest.raises(DataError, match=r"^cut.jsonl.gz: can't be read after line \d{4} \(Compressed file ended"):
        read(tmp_path / "cut.jsonl.gz")
    with pytest.raises(DataError, match=r"^plain.jsonl.gz: can't be read after line 0 \(Not a gzipped file"):
        read(tmp_path / "plain.jsonl.gz")
    with pytest.raises(DataError, match=r"^bad.jsonl.gz"):
        read(tmp_path / "bad.jsonl.gz")


def test_damaged_parquet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^a.parquet: can't be read as parquet \(Parquet magic bytes not found"):
        read(write(tmp_path / "a.parquet", b"PAR1 and no more than this"))


def test_nothing_to_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.jsonl"
    with pytest.raises(DataError, match=r"missing.jsonl: there is no such file or folder$"):
        read(missing)
    with pytest.raises(
        DataError, match=r"no file in this folder ends in .jsonl, .jsonl.gz, .json, .json.gz or .parquet$"
    ):
        read(tmp_path)
    with pytest.raises(DataError, match=r"pairs.csv: the file's name should end in .jsonl, .*or .parquet$"):
        read(write(tmp_path / "pairs.csv", b"a,b"))
    with pytest.raises(DataError, match=r"^data.eval="):
        read_rows(str(missing), split="train", subset=None, revision=None, key="data.eval")


def test_what_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert all(is_local(path) for path in ("./x", "/x", "~/x", "../x", "x/y.jsonl", "y.json.gz", "here"))
    assert not any(is_local(path) for path in ("Anthropic/hh-rlhf", "ultrafeedback", "pairs.csv"))


def test_hub_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(path: str, **options: Any) -> list[dict[str, Any]]:
        asked.append((path, options))
        return [PAIR, PAIR]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = list(read_rows("org/pairs", split="train_prefs", subset="en", revision="v2"))
    assert rows == [Row("org/pairs train_prefs, row 1", PAIR), Row("org/pairs train_prefs, row 2", PAIR)]
    assert asked == [("org/pairs", {"name": "en", "split": "train_prefs", "revision": "v2"})]


@pytest.mark.parametrize(
    "trouble",
    [
        datasets.exceptions.DatasetNotFoundError("Dataset 'org/pairs' is gated.\nAsk for access."),
        ConnectionError("Couldn't reach 'org/pairs' on the Hub"),
        ValueError("Unknown split \"trian\". Should be one of ['train', 'test']."),
    ],
)
def test_hub_trouble_is_one_line(monkeypatch: pytest.MonkeyPatch, trouble: Exception) -> None:
    def load_dataset(path: str, **options: Any) -> None:
        raise trouble

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as error:
        read("org/pairs", split="trian")
    assert str(error.value) == (
        "data.path=org/pairs: there is no such file or folder here, and as a hub data set it can't be loaded "
        f"({type(trouble).__name__}: {str(trouble).splitlines()[0]})"
    )
