"""A long run of tiny updates, watched from outside: memory, open files, what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from helpers import forks
from helpers.command import RANKS
from helpers.runs import record
from helpers.trials import Ground, assert_nothing_left

WARM = 0.2
"""The share of a run in which memory may still grow: pools fill up."""
GROWTH = 0.01
"""Of memory, for 1,000 updates after that."""


def soak(on: Ground, folder: Path, updates: int) -> str:
    """A run of this many updates; returns what was seen.

    Raises:
        AssertionError: if memory grows, descriptors do, or something is left behind.
    """
    every = max(1, updates // 20)
    changes = {"train.epochs": 1 + updates // 4, "train.max_steps": updates, "train.log_every": 10}
    changes |= {"train.save_every": every, "train.eval_every": every, "data.cache_dir": folder / "tables"}
    arguments = {**on.place.arguments(), **changes, "run_dir": folder / "run"}
    environment = {name: value for name, value in os.environ.items() if name not in RANKS}
    environment |= {**forks.FIXED, "DPO_CACHE": str(folder / "cache")}
    with (folder / "log").open("wb") as log:
        words = [sys.executable, "-m", "dpo_cli", "train", *(f"{key}={value}" for key, value in arguments.items())]
        process = psutil.Process(subprocess.Popen(words, env=environment, stdout=log, stderr=log).pid)
        seen: list[tuple[int, int, int]] = []
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            try:
                seen.append((_updates(folder / "run"), process.memory_info().rss, process.num_fds()))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                break
            time.sleep(1.0)
        code = process.wait()
    assert code == 0, (folder / "log").read_text()[-2000:]
    assert record(folder / "run")["updates"] == updates
    assert_nothing_left(folder / "run")
    assert process.children(recursive=True) == [] if process.is_running() else True
    warm = np.array([row for row in seen if WARM * updates < row[0] < updates], dtype=float)
    assert len(warm) >= 10, seen
    slope = float(np.polyfit(warm[:, 0], warm[:, 1], 1)[0]) * 1000 / float(warm[0, 1])
    files = sorted({int(count) for count in warm[:, 2]})
    # A checkpoint that is being written has a few files open.
    assert np.median(warm[: len(warm) // 2, 2]) == np.median(warm[len(warm) // 2 :, 2]), files
    assert slope < GROWTH, slope
    return (
        f"{updates:,} updates, {warm[0, 1] / 2**20:.0f} MiB resident at update {warm[0, 0]:.0f} and "
        f"{warm[-1, 1] / 2**20:.0f} at {warm[-1, 0]:.0f} ({slope:+.2%} per 1,000), {files} files open"
    )


def _updates(run_dir: Path) -> int:
    try:
        with (run_dir / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().splitlines()
        return max((int(line.split(b'"step": ')[1].split(b",")[0]) for line in lines if b'"step": ' in line), default=0)
    except OSError:
        return 0
