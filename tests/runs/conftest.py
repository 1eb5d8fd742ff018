"""Runs that several tests look at, each made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.runs import Place, make_place


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="session")
def whole(place: Place) -> Path:
    """The usual run, from beginning to end in one go, on one process. Not to be changed."""
    return place.run(place.root / "whole")


@pytest.fixture(scope="session")
def stopped(place: Place) -> Path:
    """The usual run stopped by SIGTERM in its seventh update. To be copied, not to be gone on with."""
    run_dir = place.root / "stopped"
    ended = place.try_run(run_dir, fault="micro-batch:7.1=term")
    assert ended.code == 75, ended.err
    return run_dir
