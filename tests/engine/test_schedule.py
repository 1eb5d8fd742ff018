"""The learning rate of every update against transformers' schedules."""

from __future__ import annotations

import math

import pytest
import torch
import transformers

from dpo_cli.engine.schedule import learning_rate

THEIRS = {
    "linear": transformers.get_linear_schedule_with_warmup,
    "cosine": transformers.get_cosine_schedule_with_warmup,
    "constant": lambda optimizer, warmup, total: transformers.get_constant_schedule_with_warmup(optimizer, warmup),
}


@pytest.mark.parametrize(("total", "warmup_ratio"), [(50, 0.1), (37, 0.15), (10, 0.0), (1, 0.0), (3, 0.6)])
@pytest.mark.parametrize("schedule", THEIRS)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_every_rate_is_transformers(schedule: str, total: int, warmup_ratio: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-7)
    theirs = THEIRS[schedule](optimizer, math.ceil(warmup_ratio * total), total)
    expected = []
    for _ in range(total):
        expected.append(theirs.get_last_lr()[0])
        theirs.step()
    found = [learning_rate(s, total, peak=5e-7, schedule=schedule, warmup_ratio=warmup_ratio) for s in range(total)]
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-24)


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
        ("constant", 1, 0.5),
        ("constant", 19, 1.0),
    ],
)
def test_landmarks(schedule: str, step: int, expected: float) -> None:
    rate = learning_rate(step, 20, peak=1.0, schedule=schedule, warmup_ratio=0.1)
    assert rate == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("schedule", THEIRS)
@pytest.mark.parametrize(("total", "warmup_ratio"), [(1, 0.1), (1, 0.9), (2, 0.99), (3, 0.99)])
def test_the_last_update_is_never_in_the_warm_up(schedule: str, total: int, warmup_ratio: float) -> None:
    """transformers would give the only update of a run of one the rate 0: nothing would be learned."""
    assert learning_rate(total - 1, total, peak=1.0, schedule=schedule, warmup_ratio=warmup_ratio) == 1.0


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match=r"^unknown schedule step$"):
        learning_rate(5, 10, peak=1.0, schedule="step", warmup_ratio=0.0)
