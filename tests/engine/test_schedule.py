"""The learning rate of every update against transformers' schedules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers

from dpo_cli.engine.schedule import learning_rate

MIN_LR_RATIO = 0.15
THEIRS = {
    "linear": transformers.get_linear_schedule_with_warmup,
    "cosine": transformers.get_cosine_schedule_with_warmup,
    "cosine_with_min_lr": lambda optimizer, warmup, total: transformers.get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, warmup, total, min_lr_rate=MIN_LR_RATIO
    ),
    "inverse_sqrt": lambda optimizer, warmup, total: transformers.get_inverse_sqrt_schedule(optimizer, warmup),
    "constant": lambda optimizer, warmup, total: transformers.get_constant_schedule_with_warmup(optimizer, warmup),
}


@pytest.mark.parametrize(("total", "warmup_ratio"), [(50, 0.1), (37, 0.15), (10, 0.0), (1, 0.0), (3, 0.6)])
@pytest.mark.parametrize("schedule", THEIRS)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_every_rate_is_transformers(schedule: str, total: int, warmup_ratio: float) -> None:
    expected = their_rates(schedule, math.ceil(warmup_ratio * total), total)
    found = [rate_of(s, total, schedule, warmup_ratio=warmup_ratio) for s in range(total)]
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-24)


def their_rates(schedule: str, warmup: int, total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-7)
    theirs = THEIRS[schedule](optimizer, warmup, total)
    rates = []
    for _ in range(total):
        rates.append(theirs.get_last_lr()[0])
        theirs.step()
    return rates


def rate_of(step: int, total: int, schedule: str, **warmup: Any) -> float:
    smallest = MIN_LR_RATIO if schedule == "cosine_with_min_lr" else None
    return learning_rate(step, total, peak=5e-7, schedule=schedule, min_lr_ratio=smallest, **warmup)


@pytest.mark.parametrize(("total", "warmup_steps"), [(50, 1), (37, 12), (10, 9)])
@pytest.mark.parametrize("schedule", THEIRS)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_warm_up_may_be_a_count(schedule: str, total: int, warmup_steps: int) -> None:
    found = [rate_of(s, total, schedule, warmup_ratio=0.0, warmup_steps=warmup_steps) for s in range(total)]
    assert found == pytest.approx(their_rates(schedule, warmup_steps, total), rel=1e-12, abs=1e-24)


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("linear", 0, 0.0),
        ("linear", 1, 0.5),
        ("linear", 2, 1.0),
        ("linear", 11, 0.5),
        ("linear", 20, 0.0),
        ("cosine", 11, 0.5),
        ("cosine", 20, 0.0),
        ("cosine_with_min_lr", 11, 0.55),
        ("cosine_with_min_lr", 20, 0.1),
        ("inverse_sqrt", 2, 1.0),
        ("inverse_sqrt", 8, 0.5),
        ("inverse_sqrt", 18, 1 / 3),
        ("constant", 1, 0.5),
        ("constant", 19, 1.0),
    ],
)
def test_landmarks(schedule: str, step: int, expected: float) -> None:
    smallest = 0.1 if schedule == "cosine_with_min_lr" else None
    rate = learning_rate(step, 20, peak=1.0, schedule=schedule, warmup_ratio=0.1, min_lr_ratio=smallest)
    assert rate == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("schedule", THEIRS)
@pytest.mark.parametrize(
    ("total", "warmup"),
    [(1, {"warmup_ratio": 0.1}), (1, {"warmup_ratio": 0.9}), (2, {"warmup_ratio": 0.99}), (3, {"warmup_ratio": 0.99})]
    + [(n, {"warmup_ratio": 0.0, "warmup_steps": 150}) for n in (1, 2, 150)],
)
def test_the_last_update_is_never_in_the_warm_up(schedule: str, total: int, warmup: dict[str, Any]) -> None:
    """transformers would give the only update of a run of one the rate 0: nothing would be learned."""
    assert rate_of(total - 1, total, schedule, **warmup) == 5e-7


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match=r"^unknown schedule step$"):
        learning_rate(5, 10, peak=1.0, schedule="step", warmup_ratio=0.0)
