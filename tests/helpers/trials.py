"""Trials of what a run survives: something goes wrong with the real command, and the same command goes on."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.training.checkpoint import folder_of, read
from helpers.runs import (
    Place,
    assert_identical_runs,
    assert_same_bits,
    make_place,
    metrics,
    record,
    steps,
    weights,
)

RESUME = {"resume": "auto"}
TWO: dict[str, object] = {"launch.num_processes": 2, "engine.zero_stage": 2}


@dataclass(frozen=True)
class Ground:
    """A place, and its runs that nothing went wrong with, by what is changed in them."""

    place: Place

    def whole(self, changes: Mapping[str, object]) -> tuple[Path, float]:
        """Such a run with a cache of its own, and the seconds it takes."""
        run_dir = self.place.root / "whole" / hashlib.sha256(repr(sorted(changes.items())).encode()).hexdigest()[:12]
        took = run_dir.with_suffix(".seconds")
        if not took.exists():
            began = time.monotonic()
            self.place.run(run_dir, changes, cache=run_dir.with_suffix(".cache"))
            took.write_text(str(time.monotonic() - began))
        return run_dir, float(took.read_text())


def ground(root: Path) -> Ground:
    """The ground of trials; its imports are done, so that seconds are those of runs."""
    place = make_place(root)
    place.dpo("train", {"run_dir": root / "nothing"})
    return Ground(place)


def killed_at_random(on: Ground, folder: Path, seed: int, changes: Mapping[str, object]) -> str:
    """SIGKILL of every process at a moment drawn uniformly from the run's time, then on to the end.

    Returns:
        Where it was killed.

    Raises:
        AssertionError: if it is not the run that was never killed, to the bit.
    """
    whole, seconds = on.whole(changes)
    run_dir, cache = folder / "run", folder / "cache"
    ended = on.place.try_run(
        run_dir, {**changes, **RESUME}, cache=cache, seconds=random.Random(seed).uniform(0.0, seconds)
    )
    if ended.code == 0:
        where = "not at all: it was done"
    else:
        assert ended.code == -9, ended.err[-2000:]
        where = _where(run_dir, ended.err)
        on.place.run(run_dir, {**changes, **RESUME}, cache=cache)
    assert_identical_runs(run_dir, whole)
    assert_nothing_left(run_dir)
    return where


def killed_at(on: Ground, folder: Path, where: str, changes: Mapping[str, object]) -> str:
    """SIGKILL of every process at a named place, then on to the end; see ``killed_at_random``."""
    run_dir, cache = folder / "run", folder / "cache"
    ended = on.place.try_run(run_dir, {**changes, **RESUME}, cache=cache, fault=f"{where}=kill-group")
    assert ended.code == -9, ended.err[-2000:]
    on.place.run(run_dir, {**changes, **RESUME}, cache=cache)
    assert_identical_runs(run_dir, on.whole(changes)[0])
    assert_nothing_left(run_dir)
    return where


def stopped_at(on: Ground, folder: Path, fault: str, changes: Mapping[str, object]) -> str:
    """A signal at a named place, which ends it with exit code 75, then on to the end."""
    run_dir, cache = folder / "run", folder / "cache"
    ended = on.place.try_run(run_dir, {**changes, **RESUME}, cache=cache, fault=fault)
    assert ended.code == 75, (ended.code, ended.err[-2000:])
    assert "Traceback" not in ended.err
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("dpo: stopped by a signal"), ended.err[-2000:]
    if " after update " in last:
        assert steps(run_dir)[-1] == int(last.split(" after update ")[1].split(";")[0])
    on.place.run(run_dir, {**changes, **RESUME}, cache=cache)
    assert_identical_runs(run_dir, on.whole(changes)[0])
    return fault


def ended_at(on: Ground, folder: Path, fault: str, changes: Mapping[str, object], *, code: int, says: str) -> str:
    """One rank goes wrong: all end soon, with its own word once, and last."""
    began = time.monotonic()
    ended = on.place.try_run(folder / "run", {**changes}, cache=folder / "cache", fault=fault)
    seconds = time.monotonic() - began
    assert ended.code == code, (ended.code, ended.err[-2000:])
    assert says in "\n".join(ended.err.strip().splitlines()[-3:]), ended.err[-2000:]
    assert ended.err.count("Traceback (most recent call last)") <= 1, ended.err[-4000:]
    return f"{fault} ({seconds:.0f} s)"


def passed_over_at(on: Ground, folder: Path, fault: str, changes: Mapping[str, object]) -> str:
    """An update whose numbers are not finite on one rank: none makes it, and the schedule waits for it.

    Returns:
        The fault.

    Raises:
        AssertionError: if not, or if a run that goes on after it ends otherwise.
    """
    number = int(fault.partition(":")[2].partition(".")[0])
    changes = {
        **changes,
        "optim.schedule": "cosine",
        "train.log_every": 1,
        "train.save_every": 1,
        "train.keep_last": 12,
    }
    run_dir, whole = folder / "run", on.whole(changes)[0]
    ended = on.place.try_run(run_dir, changes, cache=folder / "cache", fault=fault)
    assert ended.code == 0, ended.err[-2000:]
    assert f"update {number} is passed over" in " ".join(ended.err.split())
    noted = record(run_dir)["passed_over"]
    assert (noted["count"], [one["step"] for one in noted["last"]]) == (1, [number])
    usual = _rates(whole)
    assert _rates(run_dir) == {step: usual[step - (step > number)] for step in usual if step != number}
    assert number not in steps(run_dir)  # what may be spoilt is no checkpoint
    _goes_on_alike(on, folder, changes, after=number + 1)
    return fault


def rolled_back_at(on: Ground, folder: Path, fault: str, changes: Mapping[str, object]) -> str:
    """A spike of the loss that sends a run back: it goes on with the old weights, moments and schedule.

    Returns:
        The fault.

    Raises:
        AssertionError: if not, or if a run that goes on after it ends otherwise.
    """
    number, saved_at = int(fault.partition(":")[2].partition(".")[0]), 100
    assert saved_at < number < 120
    changes = {**changes, "train.epochs": 30, "train.max_steps": 120, "train.save_every": saved_at}
    changes |= {"optim.schedule": "cosine", "train.log_every": 1, "train.eval_every": None}
    run_dir, whole = folder / "run", on.whole(changes)[0]
    changes["train.on_spike"] = "rollback"
    ended = on.place.try_run(run_dir, changes, cache=folder / "cache", fault=fault)
    assert ended.code == 0, ended.err[-2000:]
    said = f"update {number}: going on with the weights of update {saved_at}; updates {saved_at + 1} to {number} are"
    assert said in " ".join(ended.err.split()), ended.err[-2000:]
    assert steps(run_dir) == [saved_at, number]
    for kind in ("weights", "moments"):
        assert_same_bits(*(getattr(read(folder_of(run_dir / "checkpoints", n)), kind)() for n in (number, saved_at)))
    usual, rates, gone = _rates(whole), _rates(run_dir), number - saved_at
    assert [rates[step] for step in range(number + 1, 121)] == [usual[step - gone] for step in range(number + 1, 121)]
    assert record(run_dir)["passed_over"]["count"] == gone
    _goes_on_alike(on, folder, changes, after=number)
    return fault


def _rates(run_dir: Path) -> dict[int, float]:
    """The learning rate of each update that was made."""
    return {line["step"]: line["lr"] for line in metrics(run_dir) if "lr" in line and "loss" in line}


def _goes_on_alike(on: Ground, folder: Path, changes: Mapping[str, object], *, after: int) -> None:
    """From a checkpoint of ``run``, to the same weights."""
    start = folder_of(folder / "run" / "checkpoints", after)
    on.place.run(folder / "on", {**changes, "resume": start}, cache=folder / "cache")
    assert_same_bits(weights(folder / "on"), weights(folder / "run"))


def assert_nothing_left(run_dir: Path) -> None:
    """No partial file or folder of a killed process."""
    hidden = [path for path in run_dir.rglob(".*") if path.name.split("-")[0] in (".partial", ".removed", ".replaced")]
    assert [*hidden, *run_dir.rglob("*.partial")] == []


def _where(run_dir: Path, said: str) -> str:
    if any(run_dir.glob("checkpoints/.partial-*")):
        return "saving"
    if (run_dir / ".partial-final").exists():
        return "writing final/"
    if "loss at the start" in said:
        return "training and evaluating"
    return "reference pass and engine" if "attention:" in said else "start and loading"
