"""When enough has been trained: limits on what evaluations and samples measure, and in words why one is reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Measured = Sequence[tuple[int, Mapping[str, float]]]
"""Updates done, and what was measured then, in order."""

MARGIN, CHOSEN, KL = "eval/rewards/margins", "eval/logps/chosen", "samples/kl"
_RISE = 0.01
"""Share of the best margin by which a margin must rise above it, or it counts as no rise: most rise a little always."""


@dataclass(frozen=True)
class Limits:
    """At which a run ends early; None = no such limit."""

    kl: float | None = None
    """Nats per answer that sampled answers may be away from the reference."""
    plateau: int | None = None
    """Evaluations in a row in which the held-out margin has not risen."""
    displacement: float | None = None
    """Nats per answer that held-out chosen answers may lose."""


def reached(measured: Measured, limits: Limits) -> str | None:
    """Why a run should end, by what it has measured so far; None = it should not."""
    if limits.kl is not None and (values := _series(measured, KL)) and values[-1][1] > limits.kl:
        return f"sampled answers are {values[-1][1]:.3g} nats from the reference, more than train.stop.kl={limits.kl:g}"
    if limits.plateau is not None and (why := _plateau(_series(measured, MARGIN), limits.plateau)):
        return why
    chosen = _series(measured, CHOSEN)
    if limits.displacement is not None and chosen and chosen[0][1] - chosen[-1][1] > limits.displacement:
        return (
            f"held-out chosen answers' log-prob fell from {chosen[0][1]:.4g} to {chosen[-1][1]:.4g} nats, by more than "
            f"train.stop.displacement={limits.displacement:g}"
        )
    return None


def _plateau(margins: Sequence[tuple[int, float]], patience: int) -> str | None:
    best: tuple[int, float] | None = None
    since = 0
    for step, value in margins:
        if best is None or value > best[1] + _RISE * abs(best[1]):
            best, since = (step, value), 0
        else:
            since += 1
    if best is None or since < patience:
        return None
    return (
        f"the held-out margin has not risen by {_RISE:.0%} in {since} evaluation{'s' * (since > 1)} "
        f"(train.stop.plateau={patience}): it was {best[1]:.4g} after update {best[0]}"
    )


def _series(measured: Measured, name: str) -> list[tuple[int, float]]:
    return [(step, values[name]) for step, values in measured if name in values]
