"""Runs that are cut off and gone on with are the run that was not, to the bit."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from helpers.runs import (
    EPOCH,
    SHARD_ALL,
    TIMING,
    Place,
    assert_identical_runs,
    assert_same_bits,
    assert_same_curve,
    distance,
    metrics,
    record,
    saved,
    snapshot,
    steps,
    updates,
    weights,
)
from safetensors.torch import load_file, save_file

from dpo_cli.reporting.runs import status_of

RESUME = {"resume": "auto"}


def kill(place: Place, run_dir: Path, where: str, changes: dict[str, object] | None = None) -> None:
    """A run that is killed somewhere."""
    ended = place.try_run(run_dir, {**RESUME, **(changes or {})}, fault=f"{where}=kill")
    assert ended.code == -9, ended.err
    assert record(run_dir)["status"] == "running"
    assert status_of(run_dir, record(run_dir)).word == "broken"  # its process is known to be gone
    assert not (run_dir / "final").exists()


def starts(run_dir: Path) -> list[tuple[int, str | None]]:
    """From which update a run was begun or gone on with, and how it stood then."""
    return [(start["update"], start["after"]) for start in record(run_dir)["starts"]]


def test_killed_again_and_again_it_is_still_the_same_run(place: Place, whole: Path, tmp_path: Path) -> None:
    """Killed between two micro-batches before there is any checkpoint; at the end of an epoch, just saved; between two
    micro-batches in the middle of the second epoch; each time going on by the same command."""
    run_dir = tmp_path / "run"
    kill(place, run_dir, "micro-batch:2.2")
    assert [line["step"] for line in metrics(run_dir)] == [0, 1]
    kill(place, run_dir, f"update:{EPOCH + 1}")
    assert [line["step"] for line in updates(run_dir)] == [1, 2, 3, 4]
    assert steps(run_dir) == [2, 4]
    kill(place, run_dir, "micro-batch:8.2")
    assert [line["step"] for line in updates(run_dir)] == [1, 2, 3, 4, 5, 6, 7]
    assert steps(run_dir) == [4, 6]
    assert_identical_runs(place.run(run_dir, RESUME), whole)
    assert starts(run_dir) == [(0, None), (0, "running"), (4, "running"), (6, "running")]
    assert record(run_dir)["planned"] == len(updates(run_dir))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["micro-batch:4.2", "micro-batch:6.1", "update:9", "micro-batch:12.2"])
def test_killed_anywhere_it_is_the_same_run(place: Place, whole: Path, tmp_path: Path, where: str) -> None:
    run_dir = tmp_path / "run"
    kill(place, run_dir, where)
    assert_identical_runs(place.run(run_dir, RESUME), whole)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["mid-save", "before-rename", "after-rename"])
def test_killed_while_saving_it_goes_on_from_the_one_before(
    place: Place, whole: Path, tmp_path: Path, where: str
) -> None:
    """In the middle of the second checkpoint, before it gets its name, and right after."""
    run_dir = tmp_path / "run"
    ended = place.try_run(run_dir, fault=f"{where}:4=kill")
    assert ended.code == -9
    assert (run_dir / "checkpoints" / "step-4").exists() == (where == "after-rename")
    assert_identical_runs(place.run(run_dir, RESUME), whole)


@pytest.mark.slow
def test_lines_of_metrics_rarer_than_checkpoints_are_the_same_too(place: Place, tmp_path: Path) -> None:
    """A line is the mean of all its updates, also of those before the run was cut off."""
    rare = {"train.log_every": 3}
    expected = place.run(tmp_path / "whole", rare)
    run_dir = tmp_path / "run"
    kill(place, run_dir, "micro-batch:6.1", rare)
    assert_identical_runs(place.run(run_dir, {**rare, **RESUME}), expected)


def test_sigterm_ends_a_run_after_its_update_and_it_goes_on(place: Place, whole: Path, stopped: Path, tmp_path) -> None:
    assert steps(stopped) == [6, 7]
    assert record(stopped)["status"] == "preempted"
    assert record(stopped)["exit_code"] == 75
    assert updates(stopped) == updates(whole)[:7]
    run_dir = shutil.copytree(stopped, tmp_path / "run")
    # The newest checkpoint is damaged meanwhile: it is named, and the one before is used.
    moments = run_dir / "checkpoints" / "step-7" / "moments.safetensors"
    moments.write_bytes(moments.read_bytes()[:-1] + b"?")
    ended = place.try_run(run_dir, RESUME)
    assert ended.code == 0
    warning, goes_on = (
        next(line for line in ended.err.splitlines() if word in line) for word in ("skipped", "going on")
    )
    assert "step-7" in warning
    assert "moments.safetensors" in warning
    assert "step-6" in goes_on
    assert_identical_runs(run_dir, whole)
    assert starts(run_dir) == [(0, None), (6, "preempted")]
    # A finished run is left as it is.
    before = snapshot(run_dir)
    ended = place.try_run(run_dir, RESUME)
    assert ended.code == 0
    assert "finished" in ended.out
    assert snapshot(run_dir) == before


@pytest.mark.slow
def test_sigterm_in_the_first_and_in_the_last_update_and_after_it(place: Place, whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    ended = place.try_run(run_dir, fault="update:1=term")
    assert ended.code == 75
    assert steps(run_dir) == [1]
    assert [line["step"] for line in metrics(run_dir)] == [0, 1]
    ended = place.try_run(run_dir, RESUME, fault="micro-batch:12.1=term")
    assert ended.code == 75
    assert [line["step"] for line in metrics(run_dir)][-2:] == [11, 12]
    ended = place.try_run(run_dir, RESUME, fault="evaluation:12=term")
    assert ended.code == 75
    assert steps(run_dir)[-1] == 12
    assert not (run_dir / "final").exists()
    place.run(run_dir, RESUME)
    assert metrics(run_dir) == metrics(whole)
    assert_same_bits(weights(run_dir), weights(whole))
    final, expected = (
        {key: value for key, value in record(run)["final"].items() if key not in TIMING} for run in (run_dir, whole)
    )
    assert final == expected


TWO: dict[str, object] = {"launch.num_processes": 2, "engine.zero_stage": 2}


@pytest.fixture(scope="module")
def whole_of_two(place: Place) -> Path:
    return place.run(place.root / "whole-of-two", TWO)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_killed_go_on_as_the_same_run(
    place: Place, whole_of_two: Path, tmp_path: Path, stage: int
) -> None:
    """All of them at once, as when a machine goes down."""
    changes = TWO | {"engine.zero_stage": stage}
    expected = whole_of_two if stage == 2 else place.run(tmp_path / "whole", changes)
    run_dir = tmp_path / "run"
    ended = place.try_run(run_dir, changes, fault="micro-batch:7.1=kill-group")
    assert ended.code == -9
    assert_identical_runs(place.run(run_dir, {**changes, **RESUME}), expected)


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["term", "term-parent", "usr1-parent", "usr2", "term-group"])
def test_sigterm_to_any_of_the_processes_stops_all_at_one_update(
    place: Place, whole_of_two: Path, tmp_path: Path, signal: str
) -> None:
    run_dir = tmp_path / "run"
    ended = place.try_run(run_dir, TWO, fault=f"micro-batch:5.1@1={signal}")
    assert ended.code == 75, ended.err
    assert ended.err.strip().splitlines()[-1].startswith("dpo: stopped by a signal after update 5")
    assert "Traceback" not in ended.err
    assert record(run_dir)["status"] == "preempted"
    assert steps(run_dir) == [4, 5]
    assert_identical_runs(place.run(run_dir, {**TWO, **RESUME}), whole_of_two)


@pytest.mark.slow
def test_sigterm_while_the_processes_start(place: Place, tmp_path: Path) -> None:
    """Nothing is there to be saved, and the exit code says that the same command may be given again."""
    ended = place.try_run(tmp_path / "run", TWO, fault="start=term-parent")
    assert ended.code == 75, ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_one_of_two_processes_dies(place: Place, tmp_path: Path) -> None:
    """The other ends too, and which one it was is said."""
    ended = place.try_run(tmp_path / "run", TWO, fault="micro-batch:5.1@1=kill")
    assert ended.code == 70
    assert "rank 1 was ended by SIGKILL" in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_process_knows_is_what_is_said(place: Place, tmp_path: Path, rank: int) -> None:
    """Not that the other lost its connection."""
    ended = place.try_run(tmp_path / "run", TWO, fault=f"micro-batch:3.1@{rank}=refuse")
    assert ended.code == 2, ended.err
    assert ended.err.splitlines()[-1] == "dpo: refused at micro-batch 3.1, as DPO_FAULT wants"
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_no_process_goes_on_without_its_parent(place: Place, tmp_path: Path) -> None:
    """Or the same command with resume=auto would have two runs write into one folder."""
    run_dir = tmp_path / "run"
    place.try_run(run_dir, TWO, fault="micro-batch:3.1=kill-parent")
    assert not (run_dir / "final").exists()
    assert len(updates(run_dir)) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("stages", [(0, 0, 0), (1, 1, 1), (2, 3, 2), (3, 2, 3)])
def test_a_run_goes_on_with_one_process_and_then_with_four(
    place: Place, whole: Path, tmp_path: Path, stages: tuple[int, int, int]
) -> None:
    """Begun with two; at each ZeRO stage, and from one to another. Stopped in the middle of an epoch each time."""
    run_dir = tmp_path / "run"
    for processes, stage, stop in zip((2, 1, 4), stages, (3, 7, None), strict=True):
        changes: dict[str, object] = {**RESUME, "launch.num_processes": processes, "engine.zero_stage": stage}
        if stage == 3:
            changes["engine.deepspeed"] = SHARD_ALL
        if stop is None:
            place.run(run_dir, changes)
        else:
            assert place.try_run(run_dir, changes, fault=f"micro-batch:{stop}.1=term").code == 75
    assert starts(run_dir) == [(0, None), (3, "preempted"), (7, "preempted")]
    assert_same_curve(run_dir, whole, 1e-5)
    assert distance(saved(run_dir, 10), saved(whole, 10)) <= 1e-5


# -- refusals


def spoil(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_other_settings_are_refused(place: Place, stopped: Path) -> None:
    before = snapshot(stopped)
    ended = place.try_run(stopped, {**RESUME, "loss.beta": 0.2})
    assert ended.code == 2
    assert "loss.beta was 0.1, now 0.2" in ended.err.splitlines()[-1]
    assert "resume_force=[loss.beta]" in ended.err.splitlines()[-1]
    assert snapshot(stopped) == before


def test_other_settings_are_taken_where_they_are_named(place: Place, stopped: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(stopped, tmp_path / "run")
    step = steps(run_dir)[-1]
    changes = {**RESUME, "optim.lr": 5e-4, "train.epochs": 4, "resume_force": "[optim.lr,train.epochs]"}
    ended = place.try_run(run_dir, changes)
    assert ended.code == 0, ended.err[-2000:]
    said = " ".join(ended.err.split())
    assert "resume_force: optim.lr was 0.001, now 0.0005; from here on it is another run" in said
    assert "train.epochs was 3, now 4" in said
    lines = updates(run_dir)
    assert len(lines) == 4 * EPOCH  # those before the stop are as they were
    assert {line["lr"] <= 5e-4 for line in lines[step:]} == {True}
    assert len(record(run_dir)["starts"][-1]["forced"]) == 2


def test_another_reference_is_refused_and_one_that_has_moved_is_not(
    place: Place, stopped: Path, tmp_path: Path
) -> None:
    moved, changed = tmp_path / "moved", tmp_path / "changed"
    shutil.copytree(place.model, moved)
    shutil.copytree(place.model, changed)
    tensors = load_file(changed / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    before = snapshot(stopped)
    ended = place.try_run(stopped, {**RESUME, "model.path": changed})
    assert ended.code == 2
    assert "reference.model.safetensors was" in ended.err.splitlines()[-1]
    assert snapshot(stopped) == before
    shutil.copytree(stopped, tmp_path / "run")
    assert place.try_run(tmp_path / "run", {**RESUME, "model.path": moved}).code == 0


def test_other_rows_are_refused(place: Place, stopped: Path, tmp_path: Path) -> None:
    """One word of one answer is enough."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(place.train.read_text().replace(" so", " no no", 1))
    before = snapshot(stopped)
    ended = place.try_run(stopped, {**RESUME, "data.path": rows})
    assert ended.code == 2
    assert "data" in ended.err.splitlines()[-1]
    assert "rows" in ended.err.splitlines()[-1]
    assert snapshot(stopped) == before


def test_a_run_without_any_valid_checkpoint_is_not_begun_anew(place: Place, stopped: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(stopped, tmp_path / "run")
    spoil(run_dir / "checkpoints" / "step-6" / "weights.safetensors")
    (run_dir / "checkpoints" / "step-7" / "state.json").unlink()
    before = snapshot(run_dir)
    ended = place.try_run(run_dir, RESUME)
    assert ended.code == 3
    assert "step-6" in ended.err
    assert "step-7" in ended.err
    assert "Traceback" not in ended.err
    assert snapshot(run_dir) == before


@pytest.mark.slow
def test_a_folder_without_checkpoint_is_nothing_to_go_on_from(place: Place, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for where in (empty, tmp_path / "absent"):
        ended = place.try_run(tmp_path / "run", {"resume": where})
        assert ended.code == 3
        assert str(where) in ended.err.splitlines()[-1]
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_goes_on_from_a_checkpoint_in_another_folder(
    place: Place, whole: Path, stopped: Path, tmp_path: Path
) -> None:
    before = snapshot(stopped)
    run_dir = place.run(tmp_path / "run", {"resume": stopped / "checkpoints" / "step-6"})
    assert snapshot(stopped) == before
    assert_same_bits(weights(run_dir), weights(whole))
    assert metrics(run_dir) == [line for line in metrics(whole) if line["step"] > 6]
    # But not into a folder that holds another run.
    before = snapshot(run_dir)
    ended = place.try_run(run_dir, {"resume": stopped})
    assert ended.code == 2
    assert "not empty" in ended.err.splitlines()[-1]
    assert snapshot(run_dir) == before


def test_a_folder_that_holds_something_is_refused(place: Place, stopped: Path) -> None:
    before = snapshot(stopped)
    ended = place.try_run(stopped)
    assert ended.code == 2
    assert "resume=auto" in ended.err.splitlines()[-1]
    assert snapshot(stopped) == before


@pytest.mark.slow
def test_what_was_saved_last_is_never_what_is_deleted(place: Place, whole: Path, stopped: Path, tmp_path: Path) -> None:
    """Three newer checkpoints are broken, and two are to be kept."""
    run_dir = shutil.copytree(stopped, tmp_path / "run")
    for step in (7, 10, 11):
        if step != 7:
            shutil.copytree(run_dir / "checkpoints" / "step-7", run_dir / "checkpoints" / f"step-{step}")
    for step in (7, 10, 11):
        spoil(run_dir / "checkpoints" / f"step-{step}" / "weights.safetensors")
    ended = place.try_run(run_dir, RESUME, fault="micro-batch:9.1=kill")  # 8 is saved, and then it dies
    assert ended.code == -9
    assert 8 in steps(run_dir)
    assert "going on from" in place.try_run(run_dir, RESUME).err
    assert steps(run_dir) == [8, 10, 11]
    assert metrics(run_dir) == metrics(whole)


# -- the disk


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_costs_nothing_that_was_saved(place: Place, whole: Path, tmp_path: Path, processes: int) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=1200k tmpfs '{small}' 2>/dev/null"):
        pytest.skip("a small file system can't be mounted here")
    try:
        changes = {"launch.num_processes": processes}
        ended = place.try_run(small / "run", {**changes, "train.on_failed_save": "stop"})
        assert ended.code == 74, ended.err
        assert "Traceback" not in ended.err
        last = ended.err.strip().splitlines()[-1]
        assert re.match(
            r"dpo: the checkpoint of update 6 could not .* \(it needs [\d,]+ bytes, and [\d,]+ are free", last
        )
        assert sorted(path.name for path in (small / "run" / "checkpoints").iterdir()) == ["step-2", "step-4"]
        ended = place.try_run(small / "run", {**RESUME, **changes})  # without checkpoints, and the model is written
        assert ended.code == 0, ended.err
        assert [f"update {step} could" in ended.err for step in (6, 8, 10)] == [True] * 3
        assert steps(small / "run") == [2, 4]
        shutil.rmtree(small / "run" / "final")
        (small / "run" / "run.json").unlink()
        assert os.system(f"mount -o remount,size=16m '{small}'") == 0
        place.run(small / "run", {**RESUME, **changes})
        if processes == 1:
            assert_identical_runs(small / "run", whole)
        else:
            assert_same_curve(small / "run", whole, 1e-5)
    finally:
        os.system(f"umount '{small}'")
