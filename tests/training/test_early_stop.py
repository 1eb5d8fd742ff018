"""When enough has been trained."""

from __future__ import annotations

import pytest

from dpo_cli.training.early_stop import CHOSEN, KL, MARGIN, Limits, reached


def of(name: str, *values: float) -> list[tuple[int, dict[str, float]]]:
    return [(10 * number, {name: value, "other": 1e9}) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("measured", "limits", "says"),
    [
        (of(KL, 1, 5, 12.5), Limits(kl=12), "sampled answers are 12.5 nats from the reference, more than train.stop"),
        (of(KL, 1, 99, 11), Limits(kl=12), None),  # the newest counts
        ([], Limits(kl=1, plateau=1, displacement=1), None),
        (of(MARGIN, 0, 1, 2, 2.01, 2.02), Limits(plateau=2), "has not risen by 1% in 2 evaluations"),
        (of(MARGIN, 0, 1, 2, 2.01, 2.02), Limits(plateau=3), None),
        (of(MARGIN, 0, 1, 2, 2.01, 2.02), Limits(plateau=2), "it was 2 after update 20"),
        (of(MARGIN, 0, 1, 1, 2, 2.01), Limits(plateau=2), None),  # in a row
        (of(MARGIN, -2, -1, -1.001), Limits(plateau=1), "in 1 evaluation (train.stop.plateau=1)"),
        (of(CHOSEN, -50, -40, -53.5), Limits(displacement=3), "fell from -50 to -53.5 nats"),
        (of(CHOSEN, -50, -60, -52), Limits(displacement=3), None),
        (of(CHOSEN, -50, -40, -49), Limits(displacement=3), None),  # below where it began
        (of(CHOSEN, -50, -90), Limits(), None),
    ],
)
def test_a_limit_is_reached_or_not(measured, limits: Limits, says: str | None) -> None:
    found = reached(measured, limits)
    assert found is None if says is None else says in (found or "")
