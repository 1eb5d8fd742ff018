"""Run folders read back: whole ones, ones that were cut off, and ones that are damaged."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from helpers.run_folders import make_run, make_sweep, record, write_lines

from dpo_cli.errors import DpoError
from dpo_cli.reporting.runs import (
    byte_size,
    duration,
    find_runs,
    last_change,
    may_be_running,
    names_of,
    newest_step,
    read_run,
    size_of,
    some_metrics,
    status_of,
)
from dpo_cli.run_folder import is_alive, this_process

OVER = {**this_process(), "began": "0"}
"""A process of this machine that is no more: its number belongs to another now."""
ELSEWHERE = {**this_process(), "space": "another machine"}


def test_a_whole_run(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", steps=8, samples=2))
    assert (run.step, run.planned, run.status.word) == (8, 8, "done")
    assert run.unread == []
    assert run.metrics["loss"].steps.tolist() == list(range(1, 9))
    assert run.metrics["eval/loss"].steps.tolist() == [0, 2, 4, 6, 8]
    assert run.final("eval/loss") == run.metrics["eval/loss"].values[-1]
    assert run.final("no such metric") is None
    assert [row["step"] for row in run.samples] == [0, 0, 8, 8]


def test_what_is_damaged_is_said_and_the_rest_is_read(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=4, samples=2)
    (folder / "config.yaml").write_text("loss: [", encoding="utf-8")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "loss": null}\n[1]\n{"step": 6, "lo')
    run = read_run(folder)
    assert run.unread == [
        "config.yaml could not be read",
        "metrics.jsonl: 2 lines could not be read, the first is 13",
    ]
    assert run.metrics["loss"].steps.tolist() == [1, 2, 3, 4, 5]
    assert run.final("loss") == run.metrics["loss"].values[3]  # the null is no number to end with
    assert newest_step(folder) == 5


def test_metrics_of_lines_that_are_not_alike(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=1, samples=0)
    lines = [
        {"step": 1, "a": 1.0, "b": 5},
        {"step": 2, "b": 6.0},
        {"step": 3, "b": 7.0, "a": None, "said": "a word"},
        {"a": 4.0, "step": 4},
    ]
    write_lines(folder / "metrics.jsonl", lines)
    metrics = read_run(folder).metrics
    assert sorted(metrics) == ["a", "b"]
    assert metrics["a"].steps.tolist() == [1, 3, 4]
    assert metrics["a"].finite().values.tolist() == [1.0, 4.0]
    assert (metrics["b"].steps.tolist(), metrics["b"].values.tolist()) == ([1, 2, 3], [5.0, 6.0, 7.0])


def test_no_code_is_run_from_a_configuration(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=1, samples=0)
    (folder / "config.yaml").write_text("a: !!python/object/apply:os.system ['touch hit']\n", encoding="utf-8")
    assert read_run(folder).unread == ["config.yaml could not be read"]
    assert not Path("hit").exists()


def test_a_single_metric_is_that_of_the_whole(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=9, samples=0)
    alone, among = some_metrics(folder, "eval/loss"), read_run(folder).metrics["eval/loss"]
    assert alone is not None
    assert alone.steps.tolist() == among.steps.tolist()
    assert alone.values.tolist() == among.values.tolist()
    assert some_metrics(folder, "eval/lo") is None


def test_runs_are_found_at_any_depth_and_named_apart(tmp_path: Path) -> None:
    make_sweep(tmp_path / "a", 2, steps=1, samples=0)
    make_sweep(tmp_path / "b" / "c", 1, steps=1, samples=0)
    (tmp_path / "empty").mkdir()
    found = find_runs([tmp_path])
    assert [folder.parent.name for folder in found] == ["a", "a", "c"]
    assert find_runs([tmp_path / "a", tmp_path]) == found  # each once
    assert names_of(found) == ["a/loss.beta=0.1,seed=0", "a/loss.beta=0.3,seed=0", "c/loss.beta=0.1,seed=0"]
    assert names_of(found[:2]) == ["loss.beta=0.1,seed=0", "loss.beta=0.3,seed=0"]


@pytest.mark.parametrize(("place", "says"), [("nowhere", "there is no such folder"), (".", "holds no run")])
def test_no_runs(tmp_path: Path, place: str, says: str) -> None:
    with pytest.raises(DpoError, match=says):
        find_runs([tmp_path / place])


@pytest.mark.parametrize(
    ("told", "silent", "word", "why", "may_run"),
    [
        (record("done"), 1e9, "done", "final/ has been removed", False),
        (record("preempted"), 0, "preempted", "resume=auto", False),
        (record("failed", error="NumericsError: bad\nnumbers"), 0, "failed", "NumericsError: bad numbers", False),
        (record("running"), 1e9, "running", "", True),
        (record("running", process=OVER), 0, "broken", "its process is gone", False),
        (record("running", process=ELSEWHERE), 60, "running", "", True),
        (record("running", process=ELSEWHERE), 7200, "broken", "nothing was written for 2 h", True),
        (record("running", process=ELSEWHERE), 90_000, "broken", "nothing was written for 1 d", False),
        (record("running", process=None), 7200, "broken", "nothing was written for 2 h", True),
        ({}, 60, "broken", "run.json is missing or damaged", True),
        (record("strange"), 60, "broken", "'strange'", True),
    ],
)
def test_status(tmp_path: Path, told: dict, silent: float, word: str, why: str, may_run: bool) -> None:
    (tmp_path / "run.json").write_text(json.dumps(told) if told else "{", encoding="utf-8")
    now = last_change(tmp_path) + silent
    status = status_of(tmp_path, told, now)
    assert status.word == word
    assert why in status.why
    assert bool(status.why) == bool(why)
    assert may_be_running(tmp_path, now) == may_run


def test_processes() -> None:
    assert is_alive(this_process()) is True
    assert is_alive(OVER) is False
    assert is_alive(ELSEWHERE) is None
    assert is_alive({}) is None
    child = subprocess.Popen(["sleep", "60"])
    try:
        mine = {**this_process(), "pid": child.pid}
        assert is_alive(mine) is False  # began at another time than this process
        stat = Path("/proc", str(child.pid), "stat").read_text(encoding="utf-8")
        mine["began"] = stat.rpartition(")")[2].split()[19]
        assert is_alive(mine) is True
    finally:
        child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_alive(mine) is False  # ended, and not yet waited for
    child.wait()
    assert is_alive(mine) is False


def test_sizes_and_durations(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"x" * 1500)
    (tmp_path / "c").write_bytes(b"x" * 500)
    assert size_of(tmp_path) == 2000
    assert [byte_size(2000), byte_size(5), byte_size(3 * 2**30)] == ["2.0 KiB", "5 B", "3.0 GiB"]
    assert [duration(seconds) for seconds in (5, 120, 7200, 90_000)] == ["5 s", "2 min", "2 h", "1 d"]
