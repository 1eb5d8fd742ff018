"""The hub, played by a server of the test's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from helpers.sources import numbered, numbers, read, source

from dpo_cli.data.sources import Row
from dpo_cli.data.sources import hub as hub_module
from dpo_cli.errors import DataError, Preempted

FIRST, SECOND = "a" * 40, "b" * 40
CARD = b"---\ndataset_info:\n  splits:\n  - name: train\n    num_examples: 10\n---\n"


@pytest.fixture(autouse=True)
def commits(hub: Any) -> Iterator[None]:
    datasets.disable_progress_bars()
    hub.commits[FIRST] = {"README.md": b"", "train.jsonl": numbered(10), "test.jsonl": numbered(3)}
    hub.commits[SECOND] = {**hub.commits[FIRST], "train.jsonl": numbered(4)}
    hub.branches.update(main=FIRST, v2=SECOND)
    yield
    datasets.enable_progress_bars()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", list(range(10))), ("train[2:4]+test[1:]+train[8:]", [2, 3, 1, 2, 8, 9]), ("test[20:]", [])],
)
def test_rows(tmp_path: Path, streaming: bool, split: str, expected: list[int]) -> None:
    rows = read("org/pairs", split, cache=tmp_path, streaming=streaming)
    assert numbers(rows) == expected
    if split == "train":
        assert rows[9] == Row("org/pairs train, row 10", {"n": 9, "square": 9**9})
    elif expected:
        assert rows[2].source == "org/pairs test, row 2"


def test_parts_from_the_end_and_in_percent(tmp_path: Path, hub: Any) -> None:
    with pytest.raises(DataError, match=r"doesn't say how many rows the split train has, so train\[:50%\] can't be"):
        read("org/pairs", "train[:50%]", cache=tmp_path, streaming=True)
    assert numbers(read("org/pairs", "train[-30%:]+test[-1:]", cache=tmp_path)) == [7, 8, 9, 2]
    hub.commits[SECOND] = {**hub.commits[FIRST], "README.md": CARD}
    assert numbers(read("org/pairs", "train[:50%]", cache=tmp_path, streaming=True, revision="v2")) == [0, 1, 2, 3, 4]


def test_rows_are_those_of_the_commit_that_the_identity_names(tmp_path: Path, hub: Any) -> None:
    first = source("org/pairs", cache=tmp_path)
    hub.branches["main"] = SECOND
    second = source("org/pairs", cache=tmp_path)
    assert (first.identity["commit"], second.identity["commit"]) == (FIRST, SECOND)
    assert [len(list(found.rows())) for found in (first, second)] == [10, 4]
    named = [source("org/pairs", cache=tmp_path, revision=revision) for revision in ("v2", SECOND)]
    streamed = source("org/pairs", cache=tmp_path, streaming=True)
    assert all(found.identity == second.identity for found in [*named, streamed])
    assert json.loads(json.dumps(first.identity)) == first.identity
    others = [source("org/pairs", "train[:3]", cache=tmp_path), source("org/pairs", cache=tmp_path, subset="en")]
    assert all(found.identity != second.identity for found in others)


def test_a_branch_that_moves_while_streaming_changes_nothing(tmp_path: Path, hub: Any) -> None:
    rows = source("org/pairs", cache=tmp_path, streaming=True).rows()
    assert next(rows).values["n"] == 0
    hub.branches["main"] = SECOND
    assert len(list(rows)) == 9


@pytest.mark.parametrize("card", [True, False])
def test_without_the_hub_what_was_loaded_before_is_read(
    tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch, card: bool
) -> None:
    if not card:
        del hub.commits[FIRST]["README.md"]
    before = source("org/pairs", cache=tmp_path)
    assert len(list(before.rows())) == 10
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    offline = source("org/pairs", cache=tmp_path)
    assert offline.identity == before.identity
    assert len(list(offline.rows())) == 10
    # datasets would read what it has of another commit.
    with pytest.raises(DataError, match="commit bbbbbbbbbbbb isn't on this machine, only aaaaaaaaaaaa"):
        read("org/pairs", cache=tmp_path, revision=SECOND)
    with pytest.raises(DataError, match="the hub can't be reached, and the data set was never loaded here"):
        source("org/pairs", cache=tmp_path, revision="v2")
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(DataError, match="the hub can't be reached, and the data set was never loaded here"):
        source("org/pairs", cache=tmp_path)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("org/none", {}, "RepositoryNotFoundError: 404"),
        ("org/pairs", {"revision": "v3"}, "RevisionNotFoundError: 404"),
        ("org/pairs/more", {}, "HFValidationError: "),
        ("a b", {}, "HFValidationError: "),
    ],
)
def test_what_the_hub_has_not(tmp_path: Path, path: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(DataError) as error:
        source(path, cache=tmp_path, **options)
    start = (
        f"data.path={path}: there is no such file or folder here, and as a hub data set it can't be loaded ({message}"
    )
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_or_subset_that_is_not_there(tmp_path: Path, streaming: bool) -> None:
    with pytest.raises(DataError, match=r"the hub data set can't be read \(ValueError: (Unknown|Bad) split.*trian"):
        read("org/pairs", "trian", cache=tmp_path, streaming=streaming)
    with pytest.raises(DataError, match="BuilderConfig 'en' not found"):
        read("org/pairs", cache=tmp_path, streaming=streaming, subset="en")


def test_scripts_are_not_run(tmp_path: Path, hub: Any) -> None:
    hub.commits[FIRST] = {"README.md": b"", "pairs.py": f"open({str(tmp_path / 'ran')!r}, 'w')".encode()}
    with pytest.raises(DataError, match="Dataset scripts are no longer supported"):
        read("org/pairs", cache=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_signal_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise Preempted("stopped")

    monkeypatch.setattr(hub_module, "_builder", stop)
    with pytest.raises(Preempted):
        read("org/pairs", cache=tmp_path)


def test_one_file_of_the_hub_by_url(tmp_path: Path, hub: Any) -> None:
    rows = read("hf://datasets/org/pairs/train.jsonl", "train[8:]", cache=tmp_path)
    assert [row.source for row in rows] == ["train.jsonl, line 9", "train.jsonl, line 10"]
    first, second = (
        source(f"hf://datasets/org/pairs{at}/train.jsonl", cache=tmp_path).identity for at in ("", f"@{SECOND}")
    )
    assert first != second
    assert "blob_id" in first[0]["files"][0][1]


def test_a_damaged_file_on_the_hub(tmp_path: Path, hub: Any) -> None:
    hub.commits[FIRST]["train.jsonl"] = b'{"n": 1}\n{"n" 2}\n'
    with pytest.raises(DataError, match=r"org/pairs: the hub data set can't be read \(ArrowInvalid: JSON parse error"):
        read("org/pairs", cache=tmp_path)
    with pytest.raises(
        DataError, match=r"org/pairs, after row 0 of org/pairs train: the hub data set can't be read \(A"
    ):
        read("org/pairs", cache=tmp_path, streaming=True)
