"""Learning-rate schedules."""

from __future__ import annotations

import math


def learning_rate(
    step: int,
    total: int,
    *,
    peak: float,
    schedule: str,
    warmup_ratio: float,
    warmup_steps: int | None = None,
    min_lr_ratio: float | None = None,
) -> float:
    """The rate of update ``step`` (from 0) of ``total``.

    Linear warm-up, then ``linear`` or ``cosine`` down to 0 at ``total``, ``cosine_with_min_lr`` down to
    ``min_lr_ratio x peak``, ``inverse_sqrt`` like one over the root of the updates, or ``constant``. As in
    transformers' schedules of these names, but that the last update is never in the warm-up: a run of one update would
    learn nothing.

    Args:
        step: updates done.
        total: updates of the run.
        peak: the largest rate.
        schedule: its name.
        warmup_ratio: the warm-up takes the first ``ceil(warmup_ratio x total)`` updates ...
        warmup_steps: ... or this many; None = the ratio says.
        min_lr_ratio: of ``cosine_with_min_lr`` alone.
    """
    warmup = min(math.ceil(warmup_ratio * total) if warmup_steps is None else warmup_steps, total - 1)
    if step < warmup:
        return peak * step / warmup
    done = (step - warmup) / max(1, total - warmup)
    match schedule:
        case "linear":
            return peak * (1.0 - done)
        case "cosine":
            return peak * _cosine(done)
        case "cosine_with_min_lr" if min_lr_ratio is not None:
            return peak * (min_lr_ratio + (1.0 - min_lr_ratio) * _cosine(done))
        case "inverse_sqrt":
            scale = warmup or _SCALE_WITHOUT_WARMUP
            return peak / math.sqrt((step - warmup + scale) / scale)
        case "constant":
            return peak
    raise ValueError(f"unknown schedule {schedule}")


_SCALE_WITHOUT_WARMUP = 10_000
"""Updates after which ``inverse_sqrt`` has fallen to one over the root of 2; with a warm-up, as many as that has."""


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))
