"""Learning-rate schedules."""

from __future__ import annotations

import math


def learning_rate(step: int, total: int, *, peak: float, schedule: str, warmup_ratio: float) -> float:
    """The rate of update ``step`` (from 0) of ``total``.

    Linear warm-up over the first ``ceil(warmup_ratio x total)`` updates, then ``linear`` or ``cosine`` down to 0 at
    ``total``, or ``constant``. As in transformers' schedules of these names, but that the last update is never in the
    warm-up: a run of one update would learn nothing.
    """
    warmup = min(math.ceil(warmup_ratio * total), total - 1)
    if step < warmup:
        return peak * step / warmup
    done = (step - warmup) / max(1, total - warmup)
    match schedule:
        case "linear":
            return peak * (1.0 - done)
        case "cosine":
            return peak * 0.5 * (1.0 + math.cos(math.pi * done))
        case "constant":
            return peak
    raise ValueError(f"unknown schedule {schedule}")
