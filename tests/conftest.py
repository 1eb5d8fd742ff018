"""For every test."""

from __future__ import annotations

import os

# Tests run side by side, and two programs with several OpenMP threads each take turns waiting for the other.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "disabled"

import pytest
from hypothesis import settings

# No time limit per example: on a busy machine it fails tests that are right.
settings.register_profile("dpo", deadline=None)
settings.load_profile("dpo")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Where the real data is there (DPO_TEST_REQUIRED), skipping its tests is a failure."""
    report = yield
    if report.skipped and "realdata" in item.keywords and os.environ.get("DPO_TEST_REQUIRED"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} needs DPO_TEST_DATA or DPO_TEST_MODEL and was skipped"
    return report
