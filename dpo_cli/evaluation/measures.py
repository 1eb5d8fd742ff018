"""What is measured on comparisons: how often and how surely the chosen answer wins, against what needs no model.

Every measure follows from sums over comparisons, so that ``Bootstrap`` can give it an interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from dpo_cli.evaluation.intervals import Bootstrap, Estimate, Measures
from dpo_cli.evaluation.scores import Comparisons

BINS = 10
"""Of the reliability diagram, of equal width from 0.5 to 1."""


def preferences(found: Comparisons, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Accuracy, margin, log-loss and calibration of the implicit reward.

    ``accuracy``: share of comparisons whose chosen answer has the higher reward, a tie counting half. ``margin``: mean
    difference of the rewards. With p = sigmoid(margin), the Bradley-Terry probability of what was chosen:
    ``log_loss``, mean -log p; ``brier``, mean (1 - p)^2; with the confidence max(p, 1 - p): ``confidence``, its mean;
    ``overconfidence``, that less the accuracy; ``calibration_error``, the expected calibration error over 10 bins of
    confidence. The last is never negative, so that a small set has some of it from chance alone.
    """
    return bootstrap(_preference_columns(found), found.prompts, _preference_measures)


def bins(found: Comparisons) -> list[dict[str, Any]]:
    """The reliability diagram: for each bin of confidence its bounds, comparisons, mean confidence and accuracy."""
    columns = _preference_columns(found)
    rows = []
    for number in range(BINS):
        count = float(columns[f"bin_{number}"].sum())
        sums = {name: float(columns[f"bin_{number}_{name}"].sum()) for name in ("confidence", "correct")}
        rows.append(
            {
                "low": 0.5 + 0.5 * number / BINS,
                "high": 0.5 + 0.5 * (number + 1) / BINS,
                "comparisons": int(count),
                "confidence": sums["confidence"] / count if count else None,
                "accuracy": sums["correct"] / count if count else None,
            }
        )
    return rows


def baselines(found: Comparisons, bootstrap: Bootstrap) -> dict[str, dict[str, Estimate]]:
    """What rules without training would reach on the same comparisons, and by how much the reward does better.

    For each rule its ``accuracy``, and ``gain``: the reward's accuracy less that, paired.
    """
    rules = {"longer_wins": found.lengths[:, 0] - found.lengths[:, 1]}
    named = ("policy", found.logps) if found.reference is None else ("reference", found.reference)
    name, logps = named
    means = logps / found.lengths
    rules[f"{name}_logp"] = logps[:, 0] - logps[:, 1]
    rules[f"{name}_logp_per_token"] = means[:, 0] - means[:, 1]
    columns = {"count": np.ones(len(found)), "model": right(found.margins)}
    columns |= {rule: right(difference) for rule, difference in rules.items()}

    def measures(sums: Mapping[str, NDArray]) -> dict[str, NDArray]:
        accuracy = {rule: sums[rule] / sums["count"] for rule in rules}
        gain = {f"{rule} gain": sums["model"] / sums["count"] - accuracy[rule] for rule in rules}
        return accuracy | gain

    each = bootstrap(columns, found.prompts, measures)
    return {rule: {"accuracy": each[rule], "gain": each[f"{rule} gain"]} for rule in rules}


def length(found: Comparisons, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """How far length decides.

    ``chosen_longer`` and ``chosen_shorter``: the accuracy on such comparisons, and ``gap``, the first less the second;
    ``balanced_accuracy``: the mean of the
    two, which a preference for length alone can't raise above a half; ``share_chosen_longer``, among those that differ;
    ``correlation``: of the difference of rewards with the difference of lengths, each pair taken in both orders, so
    that it doesn't depend on which answer was chosen.
    """
    gap = (found.lengths[:, 0] - found.lengths[:, 1]).astype(np.float64)
    correct, margins = right(found.margins), found.margins
    columns = {
        "longer": (gap > 0).astype(np.float64),
        "shorter": (gap < 0).astype(np.float64),
        "longer_correct": correct * (gap > 0),
        "shorter_correct": correct * (gap < 0),
        "product": margins * gap,
        "margin_square": margins**2,
        "gap_square": gap**2,
    }

    def measures(sums: Mapping[str, NDArray]) -> dict[str, NDArray]:
        longer, shorter = (sums[f"{side}_correct"] / sums[side] for side in ("longer", "shorter"))
        return {
            "chosen_longer": longer,
            "chosen_shorter": shorter,
            "gap": longer - shorter,
            "balanced_accuracy": (longer + shorter) / 2,
            "share_chosen_longer": sums["longer"] / (sums["longer"] + sums["shorter"]),
            "correlation": sums["product"] / np.sqrt(sums["margin_square"] * sums["gap_square"]),
        }

    return bootstrap(columns, found.prompts, measures)


def shifts(found: Comparisons, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """How far log-probs have moved from the reference, in nats per token: the mean over comparisons of log pi - log
    pi_ref of the answer over its tokens, for ``chosen`` and ``rejected`` answers. Needs a reference."""
    if found.reference is None:
        return {}
    moved = (found.logps - found.reference) / found.lengths
    columns = {"count": np.ones(len(found)), "chosen": moved[:, 0], "rejected": moved[:, 1]}
    return bootstrap(columns, found.prompts, means_of("chosen", "rejected"))


def means_of(*names: str) -> Measures:
    """Means of columns, over the column ``count``."""
    return lambda sums: {name: sums[name] / sums["count"] for name in names}


def right(difference: NDArray) -> NDArray:
    """1 where a rule prefers what was chosen, a half on a tie, else 0."""
    found: NDArray = (difference > 0) + 0.5 * (difference == 0)
    return found


def _preference_columns(found: Comparisons) -> dict[str, NDArray]:
    margins = found.margins
    p = expit(margins)
    confidence = np.maximum(p, 1 - p)
    correct = right(margins)
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(np.int64), BINS - 1)
    columns = {
        "count": np.ones(len(found)),
        "correct": correct,
        "margin": margins,
        "log_loss": np.logaddexp(0.0, -margins),
        "brier": (1 - p) ** 2,
        "confidence": confidence,
    }
    for number in range(BINS):
        inside = (place == number).astype(np.float64)
        columns[f"bin_{number}"] = inside
        columns[f"bin_{number}_confidence"] = confidence * inside
        columns[f"bin_{number}_correct"] = correct * inside
    return columns


def _preference_measures(sums: Mapping[str, NDArray]) -> dict[str, NDArray]:
    count = sums["count"]
    gaps = [np.abs(sums[f"bin_{n}_confidence"] - sums[f"bin_{n}_correct"]) for n in range(BINS)]
    return {
        "accuracy": sums["correct"] / count,
        "margin": sums["margin"] / count,
        "log_loss": sums["log_loss"] / count,
        "brier": sums["brier"] / count,
        "confidence": sums["confidence"] / count,
        "overconfidence": (sums["confidence"] - sums["correct"]) / count,
        "calibration_error": sum(gaps) / count,
    }
