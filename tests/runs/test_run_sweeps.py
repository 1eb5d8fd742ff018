"""One reference pass for all runs over the same rows; sweeps that survive their jobs and go on where they ended."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from helpers.runs import Place, assert_identical_runs, record, snapshot

pytestmark = pytest.mark.slow


def of_short_runs(place: Place) -> dict[str, object]:
    return {**place.arguments(), "train.max_steps": 3, "train.eval_every": None}


@pytest.mark.parametrize("processes", [1, 2])
def test_precompute_ref_leaves_nothing_to_compute(place: Place, tmp_path: Path, processes: int) -> None:
    arguments = {**of_short_runs(place), "launch.num_processes": processes}
    cache = tmp_path / "cache"
    ended = place.dpo("precompute-ref", {**arguments, "run_dir": tmp_path / "run"}, cache=cache)
    assert ended.code == 0, ended.err
    assert not (tmp_path / "run").exists()
    computed = int(re.search(r"([\d,]+) tokens computed, 0 were there", ended.out)[1].replace(",", ""))
    store = snapshot(cache / "reference")
    run_dir = place.run(tmp_path / "run", {**of_short_runs(place), "loss.beta": 0.3}, cache=cache)
    assert record(run_dir)["reference"]["tokens_computed"] == 0
    assert record(run_dir)["reference"]["tokens_read"] == computed > 0
    chunks = {name: seen for name, seen in snapshot(cache / "reference").items() if "chunk" in name}
    assert chunks == {name: seen for name, seen in store.items() if "chunk" in name}


def test_a_sweep_makes_one_reference_pass_and_only_what_is_missing(place: Place, tmp_path: Path) -> None:
    """Of three points one is nonsense from the start."""
    arguments = {**of_short_runs(place), "optim.max_grad_norm": None}
    points = {"loss.beta": "0.05,-1,0.1"}
    options = {"cache": tmp_path / "cache", "cwd": tmp_path}
    ended = place.dpo("train", {**arguments, **points}, "-m", **options)
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    assert "loss.beta=-1: failed" in ended.err
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("sweep-train-")
    first, second = folder / "loss.beta=0.05", folder / "loss.beta=0.1"
    assert sorted(path for path in folder.iterdir() if path.is_dir()) == [first, second]
    assert record(first)["reference"]["tokens_computed"] > 0
    assert record(second)["reference"]["tokens_computed"] == 0
    assert record(second)["reference"]["tokens_read"] == record(first)["reference"]["tokens_computed"]
    assert record(first)["reference"]["seconds"] > 0 == record(second)["reference"]["seconds"]
    assert [record(run)["status"] for run in (first, second)] == ["done", "done"]
    table = ended.out.replace("\n", " ")
    assert re.search(r"Best by eval/rewards/accuracies: beta=0\.\d+, .* Next: beta=0\.\d+, ", table)
    page = folder / "report.html"
    assert f"in one page: {page.relative_to(tmp_path)}" in ended.out
    assert "loss.beta=0.05" in page.read_text(encoding="utf-8")
    assert all(word in table for word in ("loss.beta=0.05", "loss.beta=0.1", "loss.beta=-1", "failed (2)", "done"))
    # A job of a sweep is the run of its own command line.
    alone = place.run(tmp_path / "alone", {**arguments, "loss.beta": 0.1}, **options)
    assert_identical_runs(second, alone)

    before = snapshot(first)
    shutil.move(second, tmp_path / "elsewhere")
    ended = place.dpo("train", {**arguments, **points}, "-m", **options)
    assert ended.code == 2
    assert "loss.beta=0.05: done before" in ended.err
    assert snapshot(first) == before
    assert record(second)["reference"]["tokens_computed"] == 0
    assert_identical_runs(second, alone)


def test_a_job_that_goes_bad_does_not_stop_the_others(place: Place, tmp_path: Path) -> None:
    arguments = {**of_short_runs(place), "optim.max_grad_norm": None, "optim.lr": "1e30,1e-3"}
    ended = place.dpo("train", arguments, "-m", cwd=tmp_path)
    assert ended.code == 76, ended.err
    assert "not finite" in ended.err
    (folder,) = (tmp_path / "runs").iterdir()
    outcomes = {run.name: record(run)["status"] for run in folder.iterdir() if run.is_dir()}
    assert sorted(outcomes.values()) == ["done", "failed"]
    assert outcomes["optim.lr=0.001"] == "done"
    assert "failed (76)" in ended.out


def test_a_finished_job_of_another_configuration_is_not_taken_for_this_one(place: Place, tmp_path: Path) -> None:
    """The user's own experiment file is not on the command line, and may change between two sweeps."""
    experiment = tmp_path / "mine" / "experiment" / "short.yaml"
    experiment.parent.mkdir(parents=True)
    words = ["--config-dir", "mine", "+experiment=short", "-m"]
    arguments = {**of_short_runs(place), "loss.beta": "0.1,0.2"}
    del arguments["optim.lr"]
    for lr, code in ((1e-3, 0), (2e-3, 2)):
        experiment.write_text(f"# @package _global_\noptim:\n  lr: {lr}\n")
        ended = place.dpo("train", arguments, *words, cwd=tmp_path)
        assert ended.code == code, ended.err
    assert ended.err.count("holds a finished run of another configuration") == 2
