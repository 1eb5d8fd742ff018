"""Checkpoints: all there and unchanged, or known to be broken and passed over."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dpo_cli.errors import CheckpointError, ExitCode
from dpo_cli.training import checkpoint
from dpo_cli.training.checkpoint import TrainingState, clean_up, find, folder_of, read, write

FILES = ("manifest.json", "moments.safetensors", "state.json", "weights.safetensors")


def state_of(step: int, **others: Any) -> TrainingState:
    return TrainingState(step=step, data="f00d", settings={"seed": 3, "lr": 5e-7}, **others)


def weights_of(step: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(step)
    return {
        "embed.weight": torch.randn(7, 3, generator=random),
        "layer.weight": torch.randn(4, 4, generator=random).T,  # not contiguous
        "layer.bias": torch.randn(4, generator=random),
        "scalar": torch.tensor(float(step)),
    }


def moments_of(step: int) -> dict[str, Tensor]:
    return {f"{name}/exp_avg": -tensor for name, tensor in weights_of(step).items()}


def save(checkpoints: Path, step: int, **others: Any) -> Path:
    return write(checkpoints, state_of(step, **others), weights_of(step).items(), moments_of(step).items(), first=True)


def steps(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoints.iterdir())


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor), name


def test_what_is_written_is_read_back_bitwise(tmp_path: Path) -> None:
    others = {"best": {"step": 2, "value": 0.25}, "pending": [0.5, 2.0]}
    folder = save(tmp_path, 4, **others)
    assert folder == folder_of(tmp_path, 4) == tmp_path / "step-4"
    found = read(folder)
    assert found.state == state_of(4, **others)
    assert_equal(found.weights(), weights_of(4))
    assert_equal(found.moments(), moments_of(4))
    assert steps(folder) == list(FILES)
    assert steps(tmp_path) == ["step-4"]


def test_tensors_of_a_large_model_are_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is read when it is asked for, and all are in the manifest."""
    monkeypatch.setattr(checkpoint, "_PART", 100)  # bytes: the embedding, 84, and the rest
    older, folder = save(tmp_path, 1), save(tmp_path, 2)
    parts = ["moments-00002.safetensors", "weights-00002.safetensors"]
    assert steps(folder) == sorted([*FILES, *parts])
    assert_equal(dict(read(folder).weights()), weights_of(2))
    assert_equal(dict(read(folder).moments()), moments_of(2))
    flip(folder / parts[1])
    found, problems = find(tmp_path)
    assert found is not None
    assert (found.folder, problems) == (older, [f"{folder}: {parts[1]} has changed since it was written"])


def test_the_newest_is_found_by_number_from_any_of_its_folders(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for step in (9, 10, 2):
        save(checkpoints, step)
    for where in (tmp_path, checkpoints, checkpoints / "step-10"):
        found, problems = find(where)
        assert found is not None
        assert (found.state.step, problems) == (10, [])
    assert find(checkpoints / "step-9")[0].state.step == 9


@pytest.mark.parametrize("where", ["nowhere", "."])
def test_nothing_is_found_where_nothing_is(tmp_path: Path, where: str) -> None:
    assert find(tmp_path / where) == (None, [])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


DAMAGE = {"flip": flip, "truncate": truncate, "empty": empty, "remove": Path.unlink}


@pytest.mark.parametrize("file", ["weights.safetensors", "moments.safetensors", "state.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_the_older_checkpoint_used(tmp_path: Path, file: str, damage: str) -> None:
    save(tmp_path, 1)
    newer = save(tmp_path, 2)
    DAMAGE[damage](newer / file)
    found, problems = find(tmp_path)
    assert found is not None
    assert found.state.step == 1
    assert_equal(found.weights(), weights_of(1))
    if damage == "remove":
        assert problems == [
            f"{newer} is not a complete checkpoint ([Errno 2] No such file or directory: '{newer / file}')"
        ]
    elif damage == "flip":
        assert problems == [f"{newer}: {file} has changed since it was written"]
    else:
        size = (newer / file).stat().st_size
        assert problems[0].startswith(f"{newer}: {file} has {size} bytes, and ")
        assert problems[0].endswith(" were written")
    with pytest.raises(CheckpointError) as error:
        read(newer)
    assert [str(error.value)] == problems
    assert error.value.exit_code == ExitCode.NO_CHECKPOINT


def test_an_emptied_folder_is_named_and_the_older_checkpoint_used(tmp_path: Path) -> None:
    save(tmp_path, 1)
    newer = save(tmp_path, 2)
    for file in newer.iterdir():
        file.unlink()
    found, (problem,) = find(tmp_path)
    assert found.state.step == 1
    assert problem.startswith(f"{newer} is not a complete checkpoint ")


@pytest.mark.parametrize("content", [None, b"", b"{", b"null", b"[]", b"{}", b'"x"', b"\xff", b'{"state.json": 1}'])
def test_a_damaged_manifest_is_a_problem_too(tmp_path: Path, content: bytes | None) -> None:
    save(tmp_path, 1)
    newer = save(tmp_path, 2)
    if content is None:
        (newer / "manifest.json").unlink()
    else:
        (newer / "manifest.json").write_bytes(content)
    found, problems = find(tmp_path)
    assert found is not None
    assert found.state.step == 1
    assert len(problems) == 1
    assert problems[0].startswith(str(newer))


def test_all_broken_checkpoints_are_reported_newest_first(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        flip(save(tmp_path, step) / "weights.safetensors")
    found, problems = find(tmp_path)
    assert found is None
    assert problems == [
        f"{tmp_path / f'step-{step}'}: weights.safetensors has changed since it was written" for step in (3, 2, 1)
    ]


def test_another_format_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, format=99)
    with pytest.raises(CheckpointError, match=r"has format 99; this version reads \d+$"):
        read(folder)


def test_tensors_that_are_none_are_a_problem_also_where_the_manifest_knows_them(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    (folder / "weights.safetensors").write_bytes(b"x" * 64)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["weights.safetensors"] = {"bytes": 64, "sha256": hashlib.sha256(b"x" * 64).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found, problems = find(tmp_path)
    assert found.state.step == 1
    assert "weights.safetensors is no sound safetensors file" in problems[0]


def test_a_state_with_other_fields_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    state = json.loads((folder / "state.json").read_text()) | {"mood": "good"}
    (folder / "state.json").write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    changed = (folder / "state.json").read_bytes()
    manifest["state.json"] = {"bytes": len(changed), "sha256": hashlib.sha256(changed).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"is not a complete checkpoint .*mood"):
        read(folder)


def test_a_leftover_partial_folder_is_ignored_and_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for leftover in (".partial-step-2", ".replaced-step-2"):
        shutil.copytree(tmp_path / "step-1", tmp_path / leftover)
        (tmp_path / leftover / "junk").write_text("x")
    assert find(tmp_path)[0].state.step == 1
    save(tmp_path, 2)
    assert steps(tmp_path) == ["step-1", "step-2"]
    assert steps(tmp_path / "step-2") == list(FILES)
    assert read(tmp_path / "step-2").state.step == 2


def test_strange_names_are_no_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for name in ("step-x", "step-", "step-2.tmp", "step--3", "step-²"):
        shutil.copytree(tmp_path / "step-1", tmp_path / name)
    found, problems = find(tmp_path)
    assert (found.folder, problems) == (tmp_path / "step-1", [])


def test_a_step_written_twice_is_the_second_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    write(
        tmp_path, state_of(1, best={"step": 1, "value": 0.5}), weights_of(8).items(), moments_of(8).items(), first=True
    )
    found = read(tmp_path / "step-1")
    assert found.state.best == {"step": 1, "value": 0.5}
    assert_equal(found.weights(), weights_of(8))


def broken(step: int) -> Iterator[tuple[str, Tensor]]:
    yield from list(weights_of(step).items())[:2]
    raise OSError(28, "No space left on device")


def test_a_rename_that_fails_leaves_the_one_that_was_to_be_replaced(tmp_path: Path, monkeypatch) -> None:
    folder = save(tmp_path, 1)
    ordinary = Path.rename

    def rename(path: Path, to: Path) -> Path:
        if path.name.startswith(".partial"):
            raise OSError(5, "Input/output error")
        return ordinary(path, to)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path, state_of(1), weights_of(8).items(), moments_of(8).items(), first=True)
    assert steps(tmp_path) == [folder.name]
    assert_equal(read(folder).weights(), weights_of(1))


@pytest.fixture
def layered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints in a lower layer of an overlay, which have no other name."""
    ordinary = Path.rename

    def rename(path: Path, to: Path) -> Path:
        if path.name.startswith("step-"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return ordinary(path, to)

    monkeypatch.setattr(Path, "rename", rename)


def test_in_an_overlay_old_ones_are_removed_and_replaced_all_the_same(tmp_path: Path, layered: None) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    clean_up(tmp_path, keep_last=2, best_step=None, newest=3)
    assert steps(tmp_path) == ["step-2", "step-3"]
    write(tmp_path, state_of(3), weights_of(8).items(), moments_of(8).items(), first=True)
    assert_equal(read(tmp_path / "step-3").weights(), weights_of(8))
    assert steps(tmp_path) == ["step-2", "step-3"]


@pytest.mark.parametrize("part", ["weights", "moments"])
def test_an_error_while_writing_leaves_the_old_ones_and_no_new(tmp_path: Path, part: str) -> None:
    save(tmp_path, 1)
    tensors = {"weights": weights_of(2).items(), "moments": moments_of(2).items()} | {part: broken(2)}
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, state_of(2), tensors["weights"], tensors["moments"], first=True)
    assert steps(tmp_path) == ["step-1"]
    assert_equal(find(tmp_path)[0].weights(), weights_of(1))


def test_the_manifest_has_every_file_with_size_and_hash(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(["manifest.json", *manifest]) == list(FILES)
    for name, written in manifest.items():
        content = (folder / name).read_bytes()
        assert written == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("failing", ["fsync", "rename"])
@pytest.mark.parametrize("step", [1, 2])
def test_an_interruption_at_the_end_leaves_no_new_one(tmp_path: Path, monkeypatch, failing: str, step: int) -> None:
    """Also when it is the same step, written again."""
    save(tmp_path, 1)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os if failing == "fsync" else Path, failing, fail)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, step)
    assert steps(tmp_path) == ["step-1"]
    assert_equal(read(tmp_path / "step-1").weights(), weights_of(1))


def test_other_ranks_iterate_and_write_nothing(tmp_path: Path) -> None:
    """Getting at a tensor is a collective: every rank must ask for each."""
    seen: list[str] = []

    def counting(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            seen.append(name)
            yield name, tensor

    write(tmp_path, state_of(1), counting(weights_of(1)), counting(moments_of(1)), first=False)
    assert seen == [*weights_of(1), *moments_of(1)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("keep_last", "best_step", "kept"),
    [
        (2, None, [90, 100]),
        (2, 20, [20, 90, 100]),
        (2, 100, [90, 100]),
        (3, 3, [80, 90, 100]),  # the best is gone already
        (9, None, [10, 20, 80, 90, 100]),
    ],
)
def test_clean_up_keeps_the_newest_and_the_best(tmp_path: Path, keep_last: int, best_step: int | None, kept) -> None:
    for step in (10, 100, 20, 90, 80):
        save(tmp_path, step)
    (tmp_path / "notes").mkdir()
    clean_up(tmp_path, keep_last=keep_last, best_step=best_step, newest=100)
    assert steps(tmp_path) == sorted(["notes", *(f"step-{step}" for step in kept)])


@pytest.mark.parametrize("damage", DAMAGE)
def test_nothing_is_deleted_for_a_new_one_that_reads_back_wrong(tmp_path: Path, damage: str) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    DAMAGE[damage](tmp_path / "step-3" / "moments.safetensors")
    with pytest.raises(CheckpointError, match=r"step-3.*moments\.safetensors"):
        clean_up(tmp_path, keep_last=2, best_step=None, newest=3)
    assert steps(tmp_path) == ["step-1", "step-2", "step-3"]


def test_a_disk_that_fills_up_on_the_first_rank_keeps_it_in_step_with_the_others(tmp_path: Path) -> None:
    """They meet in getting at each tensor: a rank that left early would have the others wait for good."""
    seen: list[str] = []

    def counting(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            seen.append(name)
            yield name, tensor

    (tmp_path / "checkpoints").write_text("no folder can be made here")
    with pytest.raises(OSError, match="checkpoints"):
        write(tmp_path / "checkpoints", state_of(1), counting(weights_of(1)), counting(moments_of(1)), first=True)
    assert seen == [*weights_of(1), *moments_of(1)]
