"""Parquet, Arrow files and streams, and what datasets saves."""

from __future__ import annotations

import datetime
import json
import random
from pathlib import Path
from typing import Any

import datasets
import psutil
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from helpers.sources import PAIR, numbers, read, source, write

from dpo_cli.data.sources import Row
from dpo_cli.errors import DataError

MESSAGES = [{"role": "user", "content": "Hi"}]


def parquet(path: Path, table: pyarrow.Table, **options: Any) -> Path:
    pyarrow.parquet.write_table(table, path, **options)
    return path


def stream(path: Path, table: pyarrow.Table) -> Path:
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def ipc_file(path: Path, table: pyarrow.Table) -> Path:
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def feather(path: Path, table: pyarrow.Table) -> Path:
    pyarrow.feather.write_feather(table, str(path), compression="lz4")
    return path


WRITERS = {"a.parquet": parquet, "stream.arrow": stream, "file.arrow": ipc_file, "a.feather": feather}


@pytest.mark.parametrize("name", WRITERS)
def test_rows(tmp_path: Path, name: str) -> None:
    values = [PAIR, {**PAIR, "chosen": None}, {**PAIR, "prompt": ""}]
    file = WRITERS[name](tmp_path / name, pyarrow.Table.from_pylist(values))
    assert read(file) == [Row(f"{name}, row {number}", row) for number, row in enumerate(values, start=1)]
    assert source(file).total == 3
    assert source(file, "train[1:]").total == 2
    nested = [{"prompt": MESSAGES, "scores": [1.5, None]}, {"prompt": [], "scores": None}]
    assert [row.values for row in read(WRITERS[name](tmp_path / name, pyarrow.Table.from_pylist(nested)))] == nested


@pytest.mark.parametrize("name", WRITERS)
def test_json_columns_are_values(tmp_path: Path, name: str) -> None:
    json_type = pyarrow.json_()
    texts = pyarrow.array(['{"a": [1, null]}', None, "{half"], json_type.storage_type)
    column = pyarrow.ExtensionArray.from_storage(json_type, texts)
    listed = pyarrow.ListArray.from_arrays(pyarrow.array([0, 1, 2, 2]), column)
    table = pyarrow.table({"tools": column, "list": listed})
    rows = read(WRITERS[name](tmp_path / name, table))
    assert [row.values for row in rows[:2]] == [
        {"tools": {"a": [1, None]}, "list": [{"a": [1, None]}]},
        {"tools": None, "list": [None]},
    ]
    assert rows[2].values == {}
    assert rows[2].problem.startswith("tools: not valid JSON (Expecting property name")


@pytest.mark.parametrize("name", WRITERS)
def test_one_value_that_can_not_be_read_leaves_the_other_rows(tmp_path: Path, name: str) -> None:
    texts = pyarrow.array([b"fine", b"caf\xe9", b"fine too"]).view(pyarrow.string())
    moments = pyarrow.array([0, 0, 2**62], pyarrow.timestamp("us"))
    rows = read(WRITERS[name](tmp_path / name, pyarrow.table({"a": texts, "when": moments})))
    assert [(row.source, row.problem.partition(" (")[0]) for row in rows] == [
        (f"{name}, row 1", ""),
        (f"{name}, row 2", "not valid UTF-8"),
        (f"{name}, row 3", "a value that can't be read"),
    ]
    assert rows[0].values == {"a": "fine", "when": datetime.datetime(1970, 1, 1)}
    assert rows[1].values == rows[2].values == {}


@pytest.mark.parametrize("name", WRITERS)
def test_cut_off_anywhere_is_a_data_error(tmp_path: Path, name: str) -> None:
    whole = WRITERS[name](tmp_path / name, pyarrow.Table.from_pylist([PAIR] * 6)).read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        file = write(tmp_path / name, whole[:length])
        with pytest.raises(DataError, match=rf"^{name}: ") as error:
            read(file)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", WRITERS)
def test_flipped_bytes_never_raise_anything_else(tmp_path: Path, name: str) -> None:
    generator = random.Random(0)
    whole = WRITERS[name](tmp_path / name, pyarrow.Table.from_pylist([{**PAIR, "m": MESSAGES}] * 6)).read_bytes()
    refused = []
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        file = write(tmp_path / name, bytes(damaged))
        try:
            read(file)
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 5
    assert all(message.startswith(name) and "\n" not in message for message in refused)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"PAR1 and no more than this", r"can't be read after row 0 \(Parquet magic bytes not found"),
        ("a.parquet", b'{"a": 1}', "this is no parquet file: it looks like text, so its name should end in .jsonl"),
        ("a.parquet", b"\x1f\x8b\x08\0\0", r"this is no parquet file: it is packed by gzip"),
        ("a.parquet", b"\x80\x81\x82\0\0", r"this is no parquet file: it is damaged"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1", "this is a Git LFS pointer instead of the file"),
        ("a.arrow", b"PAR1\x15\x04", "this is no Arrow file or stream: it is a parquet file"),
        ("a.arrow", b"a,b,c", "this is no Arrow file or stream: it looks like text"),
        ("a.feather", b"FEA1\0\0\0", "this is Feather's first version, which isn't read"),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"^{name}: {message}"):
        read(write(tmp_path / name, content))


@pytest.mark.parametrize("name", WRITERS)
def test_two_columns_of_one_name(tmp_path: Path, name: str) -> None:
    table = pyarrow.table([[1], [2]], names=["a", "a"])
    with pytest.raises(DataError, match=f"^{name}: two columns are called 'a'"):
        read(WRITERS[name](tmp_path / name, table))


@pytest.mark.parametrize("name", WRITERS)
def test_no_rows(tmp_path: Path, name: str) -> None:
    assert read(WRITERS[name](tmp_path / name, pyarrow.table({"a": pyarrow.array([], pyarrow.string())}))) == []


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
def test_memory_is_a_few_batches(tmp_path: Path, name: str) -> None:
    table = pyarrow.table({"a": ["x" * 1_000_000 + str(number) for number in range(200)]})
    if name == "a.parquet":
        file = parquet(tmp_path / name, table, row_group_size=10, use_dictionary=False)
    else:
        pyarrow.feather.write_feather(table, str(file := tmp_path / name), compression="lz4", chunksize=10)
    del table
    rows = source(file).rows()
    next(rows)
    before = psutil.Process().memory_info().rss
    grown = max(psutil.Process().memory_info().rss - before for _ in rows)
    assert grown < 100_000_000


def test_a_saved_data_set(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_list([{"n": number, "m": MESSAGES} for number in range(5)])
    rows.save_to_disk(str(tmp_path / "one"), num_shards=2)
    assert numbers(read(tmp_path / "one")) == [0, 1, 2, 3, 4]
    assert read(tmp_path / "one")[4] == Row("data-00001-of-00002.arrow, row 2", {"n": 4, "m": MESSAGES})
    assert source(tmp_path / "one").total == 5
    with pytest.raises(DataError, match=r"found no split 'test': expected train$"):
        source(tmp_path / "one", "test")


def test_saved_splits(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    splits = {name: datasets.Dataset.from_list([{"n": n}, {"n": -n}]) for n, name in enumerate(("train", "test_b"), 1)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "two"))
    assert numbers(read(tmp_path / "two")) == [1, -1]
    assert numbers(read(tmp_path / "two", "test_b[1:]+train[:1]")) == [-2, 1]
    assert read(tmp_path / "two", "test_b")[0].source == "test_b/data-00000-of-00001.arrow, row 1"
    with pytest.raises(DataError, match=r"found no split 'test': expected test_b or train$"):
        source(tmp_path / "two", "test")


@pytest.mark.parametrize(
    "state",
    [
        "{half",
        "[]",
        "{}",
        '{"_data_files": []}',
        '{"_data_files": [{"filename": "../../secret.arrow"}]}',
        '{"_data_files": [{"filename": "/secret.arrow"}]}',
        '{"_data_files": [{"name": "x"}]}',
        '{"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": [{"filename": "b.arrow"}]}',
        '{"_data_files": [{"filename": "missing.arrow"}]}',
    ],
)
def test_a_saved_folder_is_not_believed_blindly(tmp_path: Path, state: str) -> None:
    write(tmp_path / "one" / "state.json", state.encode())
    write(tmp_path / "one" / "dataset_info.json", json.dumps({"features": {}}).encode())
    with pytest.raises(DataError, match=r"^data.path=.*/one: ") as error:
        read(tmp_path / "one")
    assert "\n" not in str(error.value)
