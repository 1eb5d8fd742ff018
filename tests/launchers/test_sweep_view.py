"""The live table of a sweep: what it reads of the runs' files, and what of it fits on a screen."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from dpo_cli.reporting.compare import Goal
from dpo_cli.sweep_view import State, Watched, picture, seconds_left


def append(run_dir: Path, *lines: dict[str, float | None]) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def plan(run_dir: Path, updates: int, **record: object) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "run.json").write_text(json.dumps({"planned": updates, **record}))


def test_a_run_is_read_as_it_goes_on(tmp_path: Path) -> None:
    run = Watched("a", tmp_path)
    run.look(0.0)
    assert (run.values, run.step, run.planned, run.left) == ({}, 0, None, None)
    plan(tmp_path, 100)
    append(tmp_path, {"step": 0, "eval/loss": 0.7})
    run.look(10.0)
    assert (run.values, run.step, run.planned, run.left) == ({"eval/loss": 0.7}, 0, 100, None)
    append(tmp_path, {"step": 10, "loss": 0.6})
    run.look(20.0)
    assert (run.step, run.left) == (10, None)  # what came before the first update says nothing of the speed
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "loss": 0.5, "grad_norm": null}\n{"step": 30, "lo')
    run.look(25.0)
    assert (run.step, run.left) == (20, pytest.approx(40.0))  # 10 updates in 5 s; 80 are left
    assert run.values == {"eval/loss": 0.7, "loss": 0.5}
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('ss": 0.4}\n')
    run.look(26.0)
    assert run.final("loss") == 0.4


def test_the_speed_of_a_run_that_goes_on_is_that_of_its_new_updates(tmp_path: Path) -> None:
    """It begins by taking the updates after its checkpoint out of its file."""
    plan(tmp_path, 100)
    append(tmp_path, *({"step": step, "loss": 0.5} for step in range(1, 61)))
    run = Watched("a", tmp_path)
    run.look(0.0)
    assert (run.step, run.left) == (60, None)
    partial = tmp_path / "metrics.partial"
    partial.write_text("".join(json.dumps({"step": step, "loss": 0.4}) + "\n" for step in range(1, 51)))
    partial.replace(tmp_path / "metrics.jsonl")
    run.look(100.0)
    assert (run.step, run.left, run.final("loss")) == (50, None, 0.4)
    append(tmp_path, {"step": 51, "loss": 0.4})
    run.look(200.0)
    append(tmp_path, {"step": 52, "loss": 0.4})
    run.look(203.0)
    assert run.left == pytest.approx(3.0 * 48)


def some(folder: Path, state: State, count: int, *, reason: str = "", best: float = 0.9) -> list[Watched]:
    runs = []
    for number in range(count):
        run = Watched(f"loss.beta=0.{number:03},optim.lr=1e-4,{state}", folder / f"{state}-{number}")
        plan(run.run_dir, 40)
        append(run.run_dir, {"step": 20, "loss": 0.5, "rewards/accuracies": 0.6, "rewards/margins": 0.25})
        append(run.run_dir, {"step": 20, "eval/rewards/accuracies": best - 0.01 * number})
        run.ended(state, reason)
        runs.append(run)
    return runs


def lines_of(runs: Sequence[Watched], *, height: int, width: int = 80, waiting: int = 0, **goal: object) -> list[str]:
    told = Goal(str(goal.get("metric", "eval/rewards/accuracies")), goal.get("lower"))  # type: ignore[arg-type]
    screen = Console(file=io.StringIO(), width=width)
    screen.print(picture("a sweep", runs, told, waiting=waiting, seconds=90.0, height=height))
    return [line.strip() for line in screen.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_row_says_how_far_a_run_is_and_what_it_reached(tmp_path: Path) -> None:
    lines = lines_of(
        some(tmp_path, "running", 1) + some(tmp_path, "done", 1, best=0.8), height=24, waiting=2, width=100
    )
    (running,) = [line for line in lines if line.startswith("beta=0.000,lr=1e-4,running ")]
    assert running.split()[1:] == ["running", "20/40", "0.500", "0.600", "0.250", "0.900"]
    (done,) = [line for line in lines if line.startswith("beta=0.000,lr=1e-4,done ")]
    assert done.split()[-1] == "0.800"
    assert "1 running, 1 done, 2 waiting" in lines[-1]
    assert lines_of([Watched("new", tmp_path / "new")], height=24)[4].split() == ["new", "starting", "0"]


def test_what_failed_is_said_with_its_reason_in_one_line(tmp_path: Path) -> None:
    lines = lines_of(
        some(tmp_path, "failed", 1, reason="the loss is not finite\nlook at the rows " + 300 * "x"), height=24
    )
    (failed,) = [line for line in lines if line.startswith("failed ")]
    assert "beta=0.000,lr=1e-4,failed: the loss is not finite look at" in failed
    assert len(failed) == 80
    assert failed.endswith("…")


@pytest.mark.parametrize("height", [24, 50])
@pytest.mark.parametrize("width", [60, 120])
def test_a_large_sweep_fits_on_the_screen(tmp_path: Path, height: int, width: int) -> None:
    runs = some(tmp_path, "running", 8) + some(tmp_path, "failed", 20, reason="no") + some(tmp_path, "done", 60)
    lines = lines_of(runs, height=height, width=width, waiting=12)
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)
    assert sum(" running " in line for line in lines) == 8
    assert lines[-2].startswith("failed ")
    assert lines[-1].startswith("8 running, 60 done, 20 failed, 12 waiting"[: width - 2])
    best = [line for line in lines if " done " in line]
    assert 0 < len(best) < 60
    assert [line[:10] for line in best] == [f"beta=0.{number:03}" for number in range(len(best))]


def test_the_best_are_those_by_the_metric_and_its_direction(tmp_path: Path) -> None:
    runs = some(tmp_path, "done", 30)  # the first has the highest accuracy
    for lower, first in ((None, "0.000"), (False, "0.000"), (True, "0.029")):
        best = [line for line in lines_of(runs, height=24, lower=lower) if " done " in line]
        assert best[0].startswith(f"beta={first}")
    for number, run in enumerate(runs):
        run.values["loss"] = abs(number - 7)
    assert next(line for line in lines_of(runs, height=24, metric="loss") if " done " in line).startswith("beta=0.007")


def test_the_time_left_is_shared_by_what_runs_side_by_side(tmp_path: Path) -> None:
    plan(tmp_path, 100)
    fast, new = Watched("fast", tmp_path), Watched("new", tmp_path / "new")
    for second, step in ((0.0, 0), (1.0, 10), (2.0, 20)):
        append(tmp_path, {"step": step, "loss": 0.5})
        fast.look(second)
    assert fast.left == pytest.approx(8.0)
    assert seconds_left([fast], 0, None, 1) == pytest.approx(8.0)
    assert seconds_left([fast, new], 3, 10.0, 2) == pytest.approx((8 + 10 + 30) / 2)
    assert seconds_left([fast], 1, 1.0, 4) == pytest.approx(8.0)  # not before the last of them
    assert seconds_left([fast, new], 0, None, 2) is None
    assert seconds_left([fast], 1, None, 1) is None
