"""The store of reference log-probs: what goes in comes out, or an error says why not."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from dpo_cli.data.collate import collate
from dpo_cli.data.types import Group, Pair
from dpo_cli.errors import DpoError, ExitCode, StorageError
from dpo_cli.reference.compute import fill
from dpo_cli.reference.store import MissingReference, ReferenceStore, answer_key

IDENTITY = {"files": {"model.safetensors": "ab12"}, "precision": "fp32", "attention": "groups", "added_rows": 0}


def tokens(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int32)


def make_groups(count: int, first: int = 0) -> list[Group]:
    """Groups with answers of 1 to 4 tokens, each number giving another group."""
    return [
        Group(tokens(n, 1), (tokens(n, *range(n % 4)), tokens(n + 1, 7)), (Pair(0, 1),), f"rows.jsonl, row {n}")
        for n in range(first, first + count)
    ]


def make_logps(groups: list[Group]) -> list[list[np.ndarray]]:
    """Numbers that only bitwise copies reproduce, fixed by the tokens."""
    return [
        [
            -np.random.default_rng([*group.prompt_ids, *answer]).exponential(3.0, len(answer)).astype(np.float32)
            for answer in group.answers
        ]
        for group in groups
    ]


def flat(logps: list[list[np.ndarray]]) -> np.ndarray:
    return np.concatenate([part for parts in logps for part in parts])


def chunks(store: ReferenceStore) -> list[Path]:
    return sorted(store.folder.glob("chunk-*.safetensors"))


def test_what_is_added_is_read_back_bitwise(tmp_path: Path) -> None:
    groups = make_groups(20)
    logps = make_logps(groups)
    logps[3][1][0] = np.float32(-0.0)
    logps[4][0][0] = np.finfo(np.float32).min
    logps[5][0][0] = np.float32(-1e-45)  # a denormal
    writer = ReferenceStore(tmp_path, IDENTITY)
    writer.add(groups[:11], logps[:11])
    writer.add(groups[11:], logps[11:])
    for store in (writer, ReferenceStore(tmp_path, IDENTITY)):
        found = store.lookup(groups)
        assert found.dtype == np.float32
        assert found.tobytes() == flat(logps).tobytes()
        assert store.missing(groups) == []
        # In any order and number of groups: as the batch counts the answers' tokens.
        some = [groups[17], groups[2], groups[17]]
        assert store.lookup(some).tobytes() == flat([logps[17], logps[2], logps[17]]).tobytes()
        assert len(store.lookup(some)) == len(collate(some).answer)


def test_missing_names_the_first_of_equal_groups(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, IDENTITY)
    one, two, three = make_groups(3)
    assert store.missing([one, two, one, three, two]) == [0, 1, 3]
    store.add([two], make_logps([two]))
    assert store.missing([one, two, one, three, two]) == [0, 3]
    # A group with one answer that is known and one that is not.
    mixed = Group(two.prompt_ids, (two.answers[0], tokens(90)), (), "mixed")
    assert store.missing([two, mixed]) == [1]
    assert store.missing([]) == []


def test_the_same_answer_to_another_prompt_is_another_entry(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, IDENTITY)
    group = Group(tokens(1, 2), (tokens(3, 4),), (), "a")
    store.add([group], [[np.float32([-1, -2])]])
    for other in (
        Group(tokens(1), (tokens(2, 3, 4),), (), "boundary one to the left"),
        Group(tokens(1, 2, 3), (tokens(4),), (), "boundary one to the right"),
        Group(tokens(1, 5), (tokens(3, 4),), (), "another prompt"),
        Group(tokens(1, 2), (tokens(3, 5),), (), "another answer"),
        Group(tokens(1, 2), (tokens(3),), (), "a shorter answer"),
    ):
        assert store.missing([other]) == [0], other.source
    assert store.missing([Group(tokens(1, 2), (tokens(3, 4),), (), "the same row from another file")]) == []


def test_key_does_not_depend_on_how_the_array_lies_in_memory() -> None:
    spread = np.arange(20, dtype=np.int32)[::2]
    assert answer_key(spread, spread[:3]) == answer_key(spread.copy(), spread[:3].astype(np.int64))
    assert len(answer_key(spread, spread)) == 16


def test_a_missing_answer_names_its_row_and_the_command(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, IDENTITY)
    known, unknown = make_groups(2)
    store.add([known], make_logps([known]))
    with pytest.raises(MissingReference) as error:
        store.lookup([known, unknown])
    assert str(error.value) == (
        f"rows.jsonl, row 1: no reference log-probs in {store.folder}; "
        "compute them with `dpo precompute-ref` and the arguments of this run"
    )
    assert isinstance(error.value, DpoError)
    assert error.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("place", [0, 9, 0.5, -1])
def test_one_flipped_bit_is_found(tmp_path: Path, place: float) -> None:
    store = ReferenceStore(tmp_path, IDENTITY)
    groups = make_groups(5)
    store.add(groups, make_logps(groups))
    (chunk,) = chunks(store)
    data = bytearray(chunk.read_bytes())
    data[int(len(data) * place) if isinstance(place, float) else place] ^= 4
    chunk.write_bytes(data)
    with pytest.raises(StorageError) as error:
        ReferenceStore(tmp_path, IDENTITY)
    assert str(error.value) == (
        f"{chunk} is damaged: its bytes don't match the hash in its name; delete it and run again"
    )
    chunk.unlink()  # as it says
    assert ReferenceStore(tmp_path, IDENTITY).missing(groups) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("left", [0, 100])
def test_a_truncated_chunk_is_found(tmp_path: Path, left: int) -> None:
    store = ReferenceStore(tmp_path, IDENTITY)
    groups = make_groups(5)
    store.add(groups, make_logps(groups))
    (chunk,) = chunks(store)
    chunk.write_bytes(chunk.read_bytes()[:left])
    with pytest.raises(StorageError, match="is damaged"):
        ReferenceStore(tmp_path, IDENTITY)


WHOLE = {
    "keys": np.arange(32, dtype=np.uint8).reshape(2, 16),
    "ends": np.array([1, 3]),
    "logps": np.zeros(3, dtype=np.float32),
}


def put(folder: Path, data: bytes) -> None:
    (folder / f"chunk-{hashlib.sha256(data).hexdigest()}.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        {"logps": np.full(3, np.nan, dtype=np.float32)},
        {"logps": np.zeros(3)},
        {"logps": np.zeros((1, 3), dtype=np.float32)},
        {"ends": np.array([1, 10**12])},
        {"ends": np.array([4, 3])},
        {"ends": np.array([-1, 3])},
        {"ends": np.array([3])},
        {"ends": np.array([], dtype=np.int64)},
        {"keys": np.zeros((2, 8), dtype=np.uint8)},
    ],
    ids=str,
)
def test_a_chunk_that_somebody_else_made_is_not_believed(change: dict[str, np.ndarray], tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, IDENTITY)
    put(store.folder, safetensors.numpy.save({**WHOLE, **change}))
    with pytest.raises(StorageError, match=r"is damaged: its keys, ends and logps don't go together; delete it"):
        store.refresh()


@pytest.mark.parametrize("data", [b"hello", (1 << 40).to_bytes(8, "little") + b"{}", safetensors.numpy.save({})])
def test_a_chunk_that_is_none(data: bytes, tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, IDENTITY)
    put(store.folder, data)
    with pytest.raises(StorageError, match="is damaged: it does not hold keys, ends and logps"):
        store.refresh()


def test_a_pipe_in_a_store_is_not_waited_for(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, IDENTITY)
    put(store.folder, safetensors.numpy.save(WHOLE))
    store.refresh()
    os.mkfifo(store.folder / "chunk-0.safetensors")
    with pytest.raises(StorageError, match="is damaged: it is no file"):
        store.refresh()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_and_nothing_kept(tmp_path: Path, bad: float) -> None:
    store = ReferenceStore(tmp_path, IDENTITY)
    groups = make_groups(3)
    logps = make_logps(groups)
    logps[2][1][1] = bad
    with pytest.raises(
        ValueError, match=r"^rows\.jsonl, row 2: its reference log-probs are not one finite number per token$"
    ):
        store.add(groups, logps)
    assert chunks(store) == []
    assert store.missing(groups) == [0, 1, 2]


def test_one_number_too_few_is_refused_and_nothing_kept(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, IDENTITY)
    groups = make_groups(3)
    logps = make_logps(groups)
    logps[1][1] = logps[1][1][:-1]
    with pytest.raises(ValueError, match=r"^rows\.jsonl, row 1: "):
        store.add(groups, logps)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        store.add(groups, make_logps(groups)[:2])
    assert chunks(store) == []
    assert store.missing(groups) == [0, 1, 2]


def test_adding_nothing_makes_no_chunk(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, IDENTITY)
    store.add([], [])
    assert chunks(store) == []


def test_refresh_sees_what_another_process_added(tmp_path: Path) -> None:
    groups = make_groups(6)
    reader, writer = ReferenceStore(tmp_path, IDENTITY), ReferenceStore(tmp_path, IDENTITY)
    writer.add(groups, make_logps(groups))
    assert reader.missing(groups) == [0, 1, 2, 3, 4, 5]
    reader.refresh()
    assert reader.lookup(groups).tobytes() == flat(make_logps(groups)).tobytes()


def _add(root: Path, start, first: int) -> None:
    store = ReferenceStore(root, IDENTITY)
    start.wait(60)
    for number in range(first, first + 60, 3):  # every third group is the other process's as well
        groups = make_groups(4, first=number)
        store.add(groups, make_logps(groups))


def test_two_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    processes = [context.Process(target=_add, args=(tmp_path, start, first)) for first in (0, 30)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    groups = make_groups(91)
    store = ReferenceStore(tmp_path, IDENTITY)
    assert store.lookup(groups).tobytes() == flat(make_logps(groups)).tobytes()
    assert list(store.folder.glob("*.partial")) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_an_interrupted_write_leaves_no_chunk(tmp_path: Path, monkeypatch, failing: str) -> None:
    store = ReferenceStore(tmp_path, IDENTITY)
    groups = make_groups(4)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os if failing == "fsync" else Path, failing, fail)
        with pytest.raises(KeyboardInterrupt):
            store.add(groups, make_logps(groups))
    assert sorted(path.name for path in store.folder.iterdir()) == ["reference.json"]
    assert store.missing(groups) == [0, 1, 2, 3]
    store.add(groups, make_logps(groups))
    assert ReferenceStore(tmp_path, IDENTITY).missing(groups) == []


def test_what_a_killed_process_left_is_not_read(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, IDENTITY)
    groups = make_groups(4)
    store.add(groups, make_logps(groups))
    (chunk,) = chunks(store)
    chunk.rename(chunk.with_name(f"{chunk.name}.4242.partial"))
    assert ReferenceStore(tmp_path, IDENTITY).missing(groups) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"model.safetensors": "ab13"}},
        {"files": {"model.safetensors": "ab12", "more.safetensors": "00"}},
        {"precision": "bf16"},
        {"attention": "plain"},
        {"added_rows": 1},
    ],
)
def test_another_reference_has_another_folder(tmp_path: Path, change) -> None:
    groups = make_groups(2)
    store = ReferenceStore(tmp_path, IDENTITY)
    store.add(groups, make_logps(groups))
    other = ReferenceStore(tmp_path, IDENTITY | change)
    assert other.folder != store.folder
    assert other.missing(groups) == [0, 1]


def test_the_same_reference_has_the_same_folder_and_says_what_it_is(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, IDENTITY)
    assert ReferenceStore(tmp_path, dict(reversed(IDENTITY.items()))).folder == store.folder
    assert json.loads((store.folder / "reference.json").read_text()) == IDENTITY


def test_the_lock_keeps_a_second_run_waiting(tmp_path: Path) -> None:
    import filelock

    first, second = ReferenceStore(tmp_path, IDENTITY), ReferenceStore(tmp_path, IDENTITY)
    with first.lock(), pytest.raises(filelock.Timeout):
        second.lock().acquire(timeout=0.05)
    with second.lock():
        pass


def test_chunks_that_were_not_finished_are_removed_by_who_does_the_same_work(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, IDENTITY)
    mine, others = (store.folder / f".chunk-ab.safetensors.{part}.1f.partial" for part in ("", "3-of-16"))
    mine.touch()
    others.touch()
    said: list[str] = []
    groups = make_groups(4)
    store.add(groups, make_logps(groups))
    fill(store, groups, lambda: pytest.fail("nothing is missing"), token_budget=100, warn=said.append)
    assert said == [f"removed 1 unfinished chunk of a killed process in {store.folder}"]
    assert not mine.exists()
    fill(store, groups, lambda: pytest.fail("nothing is missing"), token_budget=100, shard="3/16", warn=said.append)
    assert not others.exists()
    fill(store, groups, lambda: pytest.fail("nothing is missing"), token_budget=100, warn=said.append)
    assert len(said) == 2
