"""Curves thin enough to be drawn: a mean and a range per column of pixels, so that no spike is lost."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpo_cli.reporting.runs import Series

_ALL_COLUMNS = 60_000
"""Of all curves of a report together: what keeps the file small."""
_FEWEST, _MOST = 60, 600


class Curve(NamedTuple):
    """A metric over updates, thinned. All of the same length."""

    steps: NDArray[np.int64]
    """The middle of each column's steps."""
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    not_finite: NDArray[np.int64]
    """Steps at which the value was not a number; of its own length."""


def columns_for(curves: int, runs: int) -> int:
    """How many columns each of so many curves may have. Where several runs lie over each other, fewer show more."""
    return int(np.clip(min(_ALL_COLUMNS // max(1, curves), _MOST // max(1, runs)), _FEWEST, _MOST))


def thin(series: Series, columns: int) -> Curve:
    """Mean, least and largest value in each of ``columns`` equal stretches of steps; empty ones are left out.

    A series that is short enough stays as it is.
    """
    bad = series.steps[~np.isfinite(series.values)]
    steps, values = series.finite()
    if len(steps) <= columns:
        return Curve(steps, values, values, values, bad)
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    column = (steps - steps[0]) * columns // (steps[-1] - steps[0] + 1)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    counts = np.diff(starts, append=len(steps))
    return Curve(
        np.add.reduceat(steps, starts) // counts,
        np.add.reduceat(values, starts) / counts,
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
        bad,
    )
