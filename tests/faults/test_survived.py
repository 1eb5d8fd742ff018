"""A short set of what ``make faults`` tries in full."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.runs import make_place
from helpers.trials import TWO, Ground, ended_at, killed_at_random, passed_over_at, rolled_back_at, stopped_at

from dpo_cli import faults
from dpo_cli.errors import DpoError


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(make_place(tmp_path_factory.mktemp("ground")))


@pytest.mark.slow
def test_killed_at_a_random_moment_it_is_still_the_same_run(on: Ground, tmp_path: Path) -> None:
    killed_at_random(on, tmp_path, seed=1, changes={})


@pytest.mark.slow
def test_a_signal_to_one_process_while_saving(on: Ground, tmp_path: Path) -> None:
    stopped_at(on, tmp_path, "mid-save:4=usr2", TWO)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "says"),
    [("stop", "rank 1 was stopped by a signal"), ("hang", "rank 1 is the one that the others wait for")],
)
def test_the_process_that_does_not_get_on_is_named_and_all_are_ended(
    on: Ground, tmp_path: Path, action: str, says: str
) -> None:
    ended_at(on, tmp_path, f"micro-batch:3.1@1={action}", {**TWO, "launch.hang_timeout": 15.0}, code=70, says=says)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_gradient_that_is_no_number_on_one_rank_changes_nothing(on: Ground, tmp_path: Path, stage: int) -> None:
    """At stage 3 DeepSpeed leaves the step out, and reports the norm of the step before."""
    passed_over_at(on, tmp_path, "micro-batch:5.1@1=nan-gradient", {**TWO, "engine.zero_stage": stage})


def test_a_loss_that_is_no_number_is_passed_over_and_one_too_many_ends_the_run(on: Ground, tmp_path: Path) -> None:
    passed_over_at(on, tmp_path, "micro-batch:5.1=nan", {})
    says = "dpo: update 5: the loss is not finite (nan); this update was not made (learning rate"
    ended_at(on, tmp_path / "limit", "micro-batch:5.1=nan", {"train.nonfinite_limit": 1}, code=76, says=says)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {**TWO, "engine.zero_stage": 3}])
def test_a_spike_sends_a_run_back(on: Ground, tmp_path: Path, changes: dict[str, object]) -> None:
    rolled_back_at(on, tmp_path, "micro-batch:115.1=spike", changes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("before-rename", "expected POINT"),
        ("nowhere=kill", "there is no point nowhere"),
        ("update:1=explode", "there is no action explode"),
        ("update:1=nan", "only a micro-batch can have nan"),
        ("update:x=kill", "expected POINT"),
    ],
)
def test_a_fault_that_is_not_understood_is_refused(text: str, says: str) -> None:
    with pytest.raises(DpoError, match=says):
        faults.parse(text)


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    numbers = object()
    for point in faults.POINTS:
        assert faults.reached(point, 1) is None
    assert faults.spoiled(numbers, 1) is numbers


def test_a_fault_happens_once_at_its_place_and_on_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, "micro-batch:2.3@1=enospc")
    monkeypatch.setenv("RANK", "0")
    faults.reached("update", 2)
    faults.reached("micro-batch", 3)
    monkeypatch.setenv("RANK", "1")
    faults.reached("update", 1)
    faults.reached("micro-batch", 3)
    faults.reached("update", 2)
    faults.reached("micro-batch", 2)
    with pytest.raises(OSError, match="No space left"):
        faults.reached("micro-batch", 3)
    faults.reached("micro-batch", 3)
