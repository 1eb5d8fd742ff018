"""Folders, patterns, URLs and parts of them; what a source's identity depends on."""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from helpers.sources import LINE, PAIR, numbered, numbers, read, source, write

from dpo_cli.data.sources import Place, Row, is_local, is_url, open_source
from dpo_cli.errors import DataError

TEN = list(range(10))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", TEN),
        ("train[:3]", TEN[:3]),
        ("train[2:5]", TEN[2:5]),
        ("train[8:]", TEN[8:]),
        ("train[8:100]", TEN[8:]),
        ("train[20:]", []),
        ("train[-3:]", TEN[-3:]),
        ("train[-30:2]", TEN[:2]),
        ("train[2:-3]", TEN[2:-3]),
        ("train[:]", TEN),
        ("train[:50%]", TEN[:5]),
        ("train[10%:20%]", [1]),
        ("train[-20%:]", [8, 9]),
        ("train[33%:]", TEN[3:]),
        ("train[:15%]", [0, 1]),
        ("train[:25%]", [0, 1]),
        ("train[:15%](closest)", [0, 1]),
        ("train[:50%](pct1_dropremainder)", []),
        (" train[1:2] + train[0:1] ", [1, 0]),
        ("train+train", TEN + TEN),
        ("train[1_0:1_1]", []),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_parts(tmp_path: Path, name: str, split: str, expected: list[int]) -> None:
    contents = {
        "a.jsonl": "\n\n".join(json.dumps({"n": n}) for n in TEN),
        "a.json": json.dumps([{"n": n} for n in TEN]),
        "a.csv": "n\n" + "\n".join(map(str, TEN)),
    }
    rows = read(write(tmp_path / name, contents[name].encode()), split)
    assert [int(row.values["n"]) for row in rows] == expected
    # A row is named by where it is in the file, whatever part of it is read.
    places = {
        "a.jsonl": lambda n: f"line {2 * n + 1}",
        "a.json": lambda n: f"row {n + 1}",
        "a.csv": lambda n: f"line {n + 2}",
    }
    assert [row.source for row in rows] == [f"{name}, {places[name](n)}" for n in expected]


@pytest.mark.parametrize("rows", [7, 99, 100, 101, 250])
@pytest.mark.parametrize("part", ["[:5%]", "[7%:33%]", "[-13%:]", "[50%:-1%]", "[:99%](pct1_dropremainder)", "[3:-2]"])
def test_parts_are_those_of_datasets(tmp_path: Path, rows: int, part: str) -> None:
    from datasets import ReadInstruction

    try:
        absolute = ReadInstruction.from_spec(f"train{part}").to_absolute({"train": rows})[0]
    except (ValueError, AssertionError):  # it refuses to round so with fewer than 100 rows; here there are then none
        expected = []
    else:
        expected = list(range(absolute.from_, absolute.to))
    assert numbers(read(write(tmp_path / "a.jsonl", numbered(rows)), f"train{part}")) == expected


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("", "can't read the split '': expected one like train, train[:1000]"),
        ("train[5]", "can't read the split 'train[5]': expected one like train, train[:1000]"),
        ("train[:5%", "can't read the split 'train[:5%'"),
        ("train[a:b]", "can't read the split 'train[a:b]'"),
        ("train[:1.5%]", "can't read the split 'train[:1.5%]'"),
        ("train[:_]", "can't read the split 'train[:_]'"),
        ("train+", "can't read the split 'train+'"),
        ("../train", "can't read the split '../train'"),
        ("train[10:20%]", "the split 'train[10:20%]' mixes rows and percent"),
        ("train[:120%]", "the split 'train[:120%]' asks for more than 100%"),
        ("train[20:10]", "the split 'train[20:10]' has no rows: it ends before it starts"),
        ("train[:0]", "the split 'train[:0]' has no rows"),
        ("train[-5%:-10%]", "the split 'train[-5%:-10%]' has no rows"),
        ("train[:5](closest)", "the split 'train[:5](closest)' has a rounding but no percent"),
        ("test", "found no split 'test': expected train"),
        ("train+test[:5]", "found no split 'test': expected train"),
    ],
)
def test_splits_that_make_no_sense(tmp_path: Path, split: str, message: str) -> None:
    file = write(tmp_path / "a.jsonl", LINE)
    with pytest.raises(DataError) as error:
        source(file, split)
    assert str(error.value).startswith(f"data.path={file}: {message}")
    assert "\n" not in str(error.value)


def test_a_folder_is_read_whole_in_the_order_of_names(tmp_path: Path) -> None:
    for name in (
        "b.jsonl",
        "a.json.gz",
        "c/d/e.jsonl.zst",
        "README.md",
        ".hidden.jsonl",
        ".git/x.jsonl",
        "c/state.json",
    ):
        write(tmp_path / name, LINE if "json" in name else b"not data")
    write(tmp_path / "dataset_infos.json", b'{"default": {}}')
    assert [row.source for row in read(tmp_path)] == ["a.json.gz, line 1", "b.jsonl, line 1", "c/d/e.jsonl.zst, line 1"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "b.jsonl", LINE)
    write(tmp_path / "data" / "a.jsonl", LINE)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "self").symlink_to(tmp_path / "data")
    sources = [row.source for row in read(tmp_path / "data")]
    assert sources == ["a.jsonl, line 1", "linked/b.jsonl, line 1"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.jsonl", "test.jsonl"], {"train": ["train.jsonl"], "test": ["test.jsonl"]}),
        (["a.jsonl", "b.jsonl"], {"train": ["a.jsonl", "b.jsonl"]}),
        (["pairs-dev.csv", "pairs-training.csv"], {"validation": ["pairs-dev.csv"], "train": ["pairs-training.csv"]}),
        (["my_eval.json", "x/train/1.json"], {"test": ["my_eval.json"], "train": ["x/train/1.json"]}),
        (
            ["data/train_prefs-00000-of-00002.parquet", "data/train_sft-00000-of-00001.parquet"],
            {
                "train_prefs": ["data/train_prefs-00000-of-00002.parquet"],
                "train_sft": ["data/train_sft-00000-of-00001.parquet"],
            },
        ),
        (["data-00000-of-00001.jsonl", "contest.jsonl"], {"train": ["contest.jsonl", "data-00000-of-00001.jsonl"]}),
        (["harmless/test.jsonl", "helpful/train.jsonl", "helpful/test.jsonl"], {"train": ["helpful/train.jsonl"]}),
    ],
)
def test_splits_by_name(tmp_path: Path, names: list[str], splits: dict[str, list[str]]) -> None:
    for name in names:
        write(tmp_path / name, LINE)
    for split, files in splits.items():
        found = source(tmp_path, split).identity
        assert [name for name, _ in found[0]["files"]] == files
    if "train" not in splits:
        with pytest.raises(DataError, match="found no split 'train': expected train_prefs or train_sft"):
            source(tmp_path)


def test_folders_that_are_not_clear(tmp_path: Path) -> None:
    write(tmp_path / "kinds" / "a.jsonl", LINE)
    write(tmp_path / "kinds" / "b.csv", b"a\n1\n")
    write(tmp_path / "splits" / "train.jsonl", LINE)
    write(tmp_path / "splits" / "more.jsonl", LINE)
    write(tmp_path / "none" / "README.md", b"")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jsonl").symlink_to(tmp_path / "missing.jsonl")
    (tmp_path / "circle").mkdir()
    (tmp_path / "circle" / "a.jsonl").symlink_to(tmp_path / "circle" / "a.jsonl")
    messages = {
        "kinds": r"files of several kinds \(1 JSON, 1 csv\): name those that are meant by a pattern",
        "splits": "train.jsonl is of the split train by its name, and more.jsonl doesn't say which one it is of",
        "none": "no file in this folder ends in .jsonl, .json, .csv, .tsv",
        "broken": r"a.jsonl can't be read \(No such file or directory\)",
        "circle": r"a.jsonl can't be read \(Too many levels of symbolic links\)",
    }
    for folder, message in messages.items():
        with pytest.raises(DataError, match=rf"^data.path={tmp_path / folder}: {message}"):
            source(tmp_path / folder)


def test_patterns(tmp_path: Path) -> None:
    for name in ("x/train.jsonl", "y/train.jsonl", "x/test.jsonl", "x/more.csv", "z.jsonl"):
        write(tmp_path / name, b"a\n1" if name.endswith("csv") else LINE)
    assert [row.source for row in read(tmp_path / "*/t*.jsonl")] == [
        "x/test.jsonl, line 1",
        "x/train.jsonl, line 1",
        "y/train.jsonl, line 1",
    ]
    assert [row.source for row in read(tmp_path / "x/*")] == [
        "more.csv, line 2",
        "test.jsonl, line 1",
        "train.jsonl, line 1",
    ]
    assert len(read(tmp_path / "**/train.json?")) == 2
    with pytest.raises(DataError, match=r"\*.parquet: no file matches this pattern$"):
        source(tmp_path / "*.parquet")
    write(tmp_path / "notes.txt", b"")
    with pytest.raises(DataError, match=r"\*.txt: of the 1 files that match, none ends in .jsonl"):
        source(tmp_path / "*.txt")
    write(tmp_path / "odd[1].jsonl", LINE)
    assert read(tmp_path / "odd[1].jsonl") == [Row("odd[1].jsonl, line 1", PAIR)]


def test_nothing_to_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.jsonl"
    with pytest.raises(DataError, match=r"missing.jsonl: there is no such file or folder$"):
        source(missing)
    with pytest.raises(DataError, match=r"pairs.txt: the file's name should end in .jsonl, .*or .feather$"):
        source(write(tmp_path / "pairs.txt", b"a,b"))
    with pytest.raises(DataError, match=r"^data.eval="):
        open_source(Place(str(missing)), key="data.eval", cache=tmp_path / "cache")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"folder.jsonl: no file in this folder ends in"):
        source(tmp_path / "folder.jsonl")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.jsonl"))
        with pytest.raises(DataError, match=r"s.jsonl is no ordinary file"):
            source(tmp_path / "s.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")  # would wait for ever
    with pytest.raises(DataError, match=r"pipe.jsonl is no ordinary file"):
        source(tmp_path / "pipe.jsonl")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.jsonl", LINE)
    rows = source(file).rows

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        DataError, match=r"a.jsonl: can't be read after line 0 \(.*denied.*\): allow yourself to read it"
    ):
        list(rows())
    with pytest.raises(DataError, match=r"^data.path=.*a.jsonl: can't be read \(.*Permission denied"):
        source(file, cache=tmp_path / "another")


def test_what_is_local_and_what_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    local = ("./x", "/x", "~/x", "../x", "x/y.jsonl", "y.json.gz", "y.csv.zst", "here", "data/*", "file:///x.jsonl")
    urls = ("s3://bucket/x.jsonl", "https://example.com/x.jsonl", "hf://datasets/org/pairs/x.parquet")
    assert all(is_local(path) and not is_url(path) for path in local)
    assert all(is_url(path) and not is_local(path) for path in urls)
    assert not any(is_local(path) or is_url(path) for path in ("Anthropic/hh-rlhf", "ultrafeedback", "train_prefs"))


def test_a_file_url_is_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", LINE)
    assert read(f"file://{file}", cache=tmp_path) == [Row("a.jsonl, line 1", PAIR)]


def test_identity_changes_with_contents_names_and_parts_and_with_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write(folder / "a.jsonl", numbered(10))
    write(folder / "b.jsonl", numbered(5))
    cache = tmp_path / "cache"

    def identity(split: str = "train") -> str:
        return json.dumps(source(folder, split, cache=cache).identity)

    first = identity()
    assert identity() == first
    os.utime(folder / "a.jsonl", (1, 1))
    assert identity() == first
    folder = folder.rename(tmp_path / "moved")
    assert identity() == first
    found = {first, identity("train[:5]"), identity("train[:50%]"), identity("train[5:]")}
    write(folder / "a.jsonl", numbered(10).replace(b"3", b"4", 1))
    found.add(identity())
    (folder / "b.jsonl").rename(folder / "c.jsonl")
    found.add(identity())
    write(folder / "d.jsonl", b"")
    found.add(identity())
    assert len(found) == 7


def test_rows_can_be_read_again(tmp_path: Path) -> None:
    rows = source(write(tmp_path / "a.jsonl.gz", numbered(10)), "train[2:4]").rows
    assert numbers(list(rows())) == numbers(list(rows())) == [2, 3]


@pytest.fixture
def memory() -> fsspec.AbstractFileSystem:
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def test_urls(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    for name in ("a.jsonl", "b.json.gz", "c/d.parquet", "csv/train.csv", "csv/test.csv"):
        memory.pipe(f"/bucket/{name}", b"a\n1\n")
    local = tmp_path / "local"
    for name, content in (("a.jsonl", numbered(4)), ("b.jsonl.zst", numbered(3))):
        memory.pipe(f"/bucket/data/{name}", write(local / name, content).read_bytes())

    def get(path: str, split: str = "train") -> list[Row]:
        return read(f"memory://bucket/{path}", split, cache=tmp_path)

    assert get("data") == get("data/*.jsonl*") == read(local)
    assert get("data/a.jsonl", "train[1:50%]".replace("1:", "25%:")) == read(local / "a.jsonl", "train[1:2]")
    assert get("csv", "test") == [Row("test.csv, line 2", {"a": "1"})]
    first = source("memory://bucket/data", cache=tmp_path).identity
    assert source("memory://bucket/data", cache=tmp_path).identity == first
    memory.pipe("/bucket/data/a.jsonl", numbered(5))
    assert source("memory://bucket/data", cache=tmp_path).identity != first
    for path, message in {
        "missing.jsonl": "there is no such file or folder",
        "*.jsonl.xz": "no file that matches ends in .jsonl",
        "data/notes.txt": "the file's name should end in .jsonl",
        "missing/*.jsonl": "no file that matches ends in .jsonl",
    }.items():
        with pytest.raises(DataError, match=f"^data.path=memory://bucket/{path.replace('*', '.')}: {message}"):
            get(path)


def test_the_stores_own_tag_is_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory) -> None:
    memory.pipe("/a.jsonl", numbered(3))
    tags = {"ETag": '"abc"', "size": 5}
    info = type(memory).info
    monkeypatch.setattr(type(memory), "info", lambda self, path: {**info(self, path), **tags})
    first = source("memory://a.jsonl", cache=tmp_path).identity
    assert first[0]["files"] == [["a.jsonl", {"etag": '"abc"', "size": 5}]]
    tags["ETag"] = '"abd"'
    assert source("memory://a.jsonl", cache=tmp_path).identity != first


def test_trouble_of_a_store_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory) -> None:
    memory.pipe("/a.jsonl", numbered(3))
    rows = source("memory://a.jsonl", cache=tmp_path).rows

    class StoreError(Exception):
        """Which no one has heard of."""

    def fail(*_: object, **__: object) -> None:
        raise StoreError("slow down\nplease")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFile, "read", fail)
    with pytest.raises(DataError, match=r"^a.jsonl: can't be read after line 0 \(StoreError: slow down\)"):
        list(rows())
    monkeypatch.setattr(type(memory), "exists", fail)
    with pytest.raises(DataError, match=r"^data.path=memory://a.jsonl: can't be reached \(StoreError: slow down\)$"):
        source("memory://a.jsonl", cache=tmp_path)


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=r"^data.path=s3://b/a.jsonl: s3:// can't be read: Install s3fs to access S3$"):
        source("s3://b/a.jsonl", cache=tmp_path)
    with pytest.raises(DataError, match=r"^data.path=odd://b/a.jsonl: odd:// can't be read: Protocol not known: odd$"):
        source("odd://b/a.jsonl", cache=tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_the_web(tmp_path: Path, name: str) -> None:
    pytest.importorskip("aiohttp")
    write(tmp_path / "served" / "a.jsonl", numbered(1000))
    write(tmp_path / "served" / "a.jsonl.gz", numbered(1000))
    table = pyarrow.table({"n": list(range(1000))})
    pyarrow.parquet.write_table(table, tmp_path / "served" / "a.parquet")
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path / "served"))) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        rows = read(f"{url}?download=true", "train[-2:]", cache=tmp_path)
        with pytest.raises(DataError, match="there is no such file or folder"):
            source(url.replace("/a.", "/b."), cache=tmp_path)
        server.shutdown()
    assert numbers(rows) == [998, 999]
    assert rows[0].source in (f"{name}, line 999", f"{name}, row 999")


def test_a_password_for_a_url_is_found_in_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "served" / "a.jsonl", numbered(10))

    class Locked(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def send_head(self):  # of GET and HEAD
            if self.headers.get("Authorization") == "Basic " + base64.b64encode(b"me:canary").decode():
                return super().send_head()
            self.send_error(401)
            return None

    monkeypatch.setenv("NETRC", str(write(tmp_path / "netrc", b"machine 127.0.0.1 login me password canary")))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Locked, directory=str(tmp_path / "served"))) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.jsonl"
        assert numbers(read(url, cache=tmp_path)) == list(range(10))
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
        fsspec.filesystem("http").clear_instance_cache()
        with pytest.raises(DataError):
            read(url, cache=tmp_path)
        server.shutdown()
