"""Trials of what a run survives: something goes wrong with the real command, and the same command goes on."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from helpers.runs import Place, assert_identical_runs, make_place, steps

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
