"""Thinned curves against the plain definition: in every column of steps the mean and the range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_cli.reporting.curves import columns_for, thin
from dpo_cli.reporting.runs import Series


def series(values: list[float], steps: list[int] | None = None) -> Series:
    return Series(np.array(range(len(values)) if steps is None else steps), np.array(values, dtype=np.float64))


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(-1e6, 1e6) | st.just(float("nan"))), min_size=1, max_size=200),
    st.integers(1, 40),
)
def test_every_column_has_its_mean_and_range(pairs: list[tuple[int, float]], columns: int) -> None:
    steps = np.cumsum([gap for gap, _ in pairs])
    values = np.array([value for _, value in pairs])
    curve = thin(Series(steps, values), columns)
    assert curve.not_finite.tolist() == steps[np.isnan(values)].tolist()
    steps, values = steps[~np.isnan(values)], values[~np.isnan(values)]
    if len(steps) <= columns:
        assert curve.mean.tolist() == curve.low.tolist() == curve.high.tolist() == values.tolist()
        return
    inside: dict[int, list[float]] = {}
    for step, value in zip(steps.tolist(), values.tolist(), strict=True):
        inside.setdefault((step - int(steps[0])) * columns // (int(steps[-1]) - int(steps[0]) + 1), []).append(value)
    assert len(curve.steps) == len(inside) <= columns
    assert curve.low.tolist() == [min(each) for each in inside.values()]
    assert curve.high.tolist() == [max(each) for each in inside.values()]
    assert curve.mean == pytest.approx([sum(each) / len(each) for each in inside.values()], rel=1e-9, abs=1e-6)


def test_a_spike_of_one_step_in_ten_thousand_stays() -> None:
    values = np.ones(10_000)
    values[7123] = 50.0
    curve = thin(series(values.tolist()), 100)
    assert len(curve.steps) == 100
    assert curve.high.max() == 50.0
    assert curve.low.min() == 1.0
    assert abs(curve.steps[curve.high.argmax()] - 7123) <= 100


def test_all_curves_together_stay_small() -> None:
    assert columns_for(20, 1) == 600
    assert columns_for(60, 3) == 200
    for runs in (1, 3, 10, 50):
        assert 20 * runs * columns_for(20 * runs, runs) <= 60_000
