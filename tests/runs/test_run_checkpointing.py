"""``train.activation_checkpointing=auto`` in a run: what it decides, and that it is the same run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers import forks
from helpers.runs import Place, assert_identical_runs, record

from dpo_cli.commands.layout import HEADROOM
from dpo_cli.model.memory import KINDS


def go_on(place: Place, run_dir: Path, room: float) -> str:
    """Go on with a run where a process may hold ``room`` bytes; returns what was said."""
    arguments = {**place.arguments(), "train.activation_checkpointing": "auto", "resume": "auto", "run_dir": run_dir}
    words = ["train", *(f"{key}={'null' if value is None else value}" for key, value in arguments.items())]
    environment = {**os.environ, **forks.FIXED, "DPO_CACHE": str(place.root / "cache")}
    script, said = Path(__file__).with_name("little_memory.py"), run_dir.with_name(f"{run_dir.name}-said")
    given = json.dumps([room / (1 - HEADROOM), *words])
    assert forks.run_script(script, [given], [(environment, said)]) == [0], said.read_text()[-3000:]
    return said.read_text()


def test_where_there_is_less_memory_more_is_computed_again_and_it_is_the_same_run(
    place: Place, whole: Path, stopped: Path, tmp_path: Path
) -> None:
    little, more = (shutil.copytree(stopped, tmp_path / name) for name in ("little", "more"))
    said = go_on(place, little, 1000)
    found = record(little)["activation_checkpointing"]
    assert found["kind"] == "full"
    assert found["room"] == pytest.approx(1000)
    none, selective, full = (found["estimated"][kind] for kind in KINDS)
    assert none > selective > full > 1000
    assert "activation checkpointing: full: " in said
    assert "this run may not fit into memory: `dpo plan`" in said
    assert_identical_runs(little, whole)
    said = go_on(place, more, (none + selective) / 2)
    found = record(more)["activation_checkpointing"]
    assert found["kind"] == "selective"
    assert found["estimated"] == {"none": none, "selective": selective}
    assert "activation checkpointing: selective: " in said
    assert "may not fit" not in said
    assert_identical_runs(more, whole)
