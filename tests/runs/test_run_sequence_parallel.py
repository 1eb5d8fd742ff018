"""Runs of the real command in which processes share rows are those of one process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.runs import SHARD_ALL, Place, assert_same_curve, metrics, record, updates

SHARED: dict[str, object] = {"launch.num_processes": 2, "engine.sequence_parallel": 2}


def test_two_processes_share_rows(place: Place, whole: Path, tmp_path: Path) -> None:
    """With log-probs of the reference that they compute themselves."""
    run_dir = tmp_path / "run"
    ended = place.try_run(run_dir, SHARED, cache=tmp_path / "cache")
    assert ended.code == 0, ended.err
    assert_same_curve(run_dir, whole, 2e-6)
    assert "each row shared by 2 processes (tokens differ from the model's own attention" in ended.err
    assert "12 updates of 6 pairs (the last of each epoch smaller: 4), 2 processes, 2 to a row, ZeRO 2" in ended.err
    # Each answer is scored once, and the stores' numbers are the same.
    found, expected = (record(folder)["reference"] for folder in (run_dir, whole))
    assert found["tokens_computed"] == expected["tokens_computed"] + expected["tokens_read"] > 0
    assert found["identity"] == expected["identity"]
