"""Bootstrap intervals of anything that follows from sums over comparisons.

What is drawn again are prompts, with all their comparisons: answers to one prompt are not independent of each other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.stats import DegenerateDataWarning

Measures = Callable[[Mapping[str, NDArray]], Mapping[str, NDArray]]
"""From sums over comparisons, by column and ``[...]`` each, to measures ``[...]``; NaN where there is none."""
_AT_A_TIME = 64
"""Resamples that are held in memory at once."""


class Estimate(NamedTuple):
    """A number and where it would lie with other prompts of the same kind."""

    value: float
    low: float
    """NaN, as ``high``, where the interval can't be said: one prompt alone, or too few of what is measured."""
    high: float

    def plain(self) -> dict[str, float]:
        """For JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are found: by percentiles of so many resamples of the prompts."""

    resamples: int
    seed: int
    level: float = 0.95

    def __call__(self, columns: Mapping[str, NDArray], prompts: NDArray, measures: Measures) -> dict[str, Estimate]:
        """Every measure with its interval.

        Args:
            columns: numbers of each comparison, ``[C]`` each.
            prompts: ``[C]`` int: the prompt that each comparison is of.
            measures: what to find in sums of the columns.
        """
        names = list(columns)
        table = np.stack([np.asarray(columns[name], dtype=np.float64) for name in names], axis=-1)
        _, place = np.unique(prompts, return_inverse=True)
        totals = np.zeros((int(place.max(initial=-1)) + 1, len(names)))
        np.add.at(totals, place, table)
        count = len(totals)

        def measured(sums: NDArray) -> dict[str, NDArray]:
            with np.errstate(invalid="ignore", divide="ignore"):
                found = measures({name: sums[..., column] for column, name in enumerate(names)})
            return {name: np.asarray(value, dtype=np.float64) for name, value in found.items()}

        def statistic(drawn: NDArray, axis: int = -1) -> NDArray:
            del axis  # always the last
            counts = np.stack([np.bincount(row, minlength=count) for row in drawn.reshape(-1, count)])
            return np.stack(list(measured((counts @ totals).reshape(*drawn.shape[:-1], -1)).values()))

        values = measured(totals.sum(0))
        if count < 2:
            return {name: Estimate(float(value), np.nan, np.nan) for name, value in values.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateDataWarning)  # of a missing interval, which is shown as missing
            found = stats.bootstrap(
                (np.arange(count),),
                statistic,
                n_resamples=self.resamples,
                batch=_AT_A_TIME,
                vectorized=True,
                confidence_level=self.level,
                method="percentile",
                rng=np.random.default_rng(self.seed),
            ).confidence_interval
        return {
            name: Estimate(float(value), float(low), float(high))
            for (name, value), low, high in zip(values.items(), found.low, found.high, strict=True)
        }


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Estimates in nested dictionaries and lists as plain numbers, for JSON."""

    def one(value: Any) -> Any:
        if isinstance(value, Estimate):
            return value.plain()
        if isinstance(value, Mapping):
            return plain(value)
        return [one(inner) for inner in value] if isinstance(value, list) else value

    return {str(name): one(value) for name, value in values.items()}
