"""Measures on comparisons, held against loops over rows, and intervals against a bootstrap written out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.comparisons import made
from scipy import stats

from dpo_cli.evaluation import measures
from dpo_cli.evaluation.intervals import Bootstrap
from dpo_cli.evaluation.paired import compare, shared
from dpo_cli.evaluation.scores import Comparisons

BOOTSTRAP = Bootstrap(300, 0)


def by_hand(found: Comparisons) -> dict[str, float]:
    """A comparison at a time."""
    right, losses, briers, confidences, margins = [], [], [], [], []
    inside: dict[int, list[tuple[float, float]]] = {}
    for chosen, rejected in found.rewards.tolist():
        margin = chosen - rejected
        p = 1 / (1 + math.exp(-margin))
        confidence = max(p, 1 - p)
        correct = 0.5 if margin == 0 else float(margin > 0)
        right.append(correct)
        losses.append(-math.log(p))
        briers.append((1 - p) ** 2)
        confidences.append(confidence)
        margins.append(margin)
        inside.setdefault(min(int((confidence - 0.5) / 0.05), 9), []).append((confidence, correct))
    count = len(right)
    error = 0.0
    for members in inside.values():
        mean = [sum(values) / len(members) for values in zip(*members, strict=True)]
        error += len(members) / count * abs(mean[0] - mean[1])
    return {
        "accuracy": sum(right) / count,
        "margin": sum(margins) / count,
        "log_loss": sum(losses) / count,
        "brier": sum(briers) / count,
        "confidence": sum(confidences) / count,
        "overconfidence": sum(confidences) / count - sum(right) / count,
        "calibration_error": error,
    }


def test_preferences_are_those_of_a_loop_over_rows() -> None:
    found = made()
    measured = measures.preferences(found, BOOTSTRAP)
    assert {name: value.value for name, value in measured.items()} == pytest.approx(by_hand(found), rel=1e-12)
    bins = measures.bins(found)
    assert sum(each["comparisons"] for each in bins) == len(found)
    gaps = sum(each["comparisons"] * abs(each["confidence"] - each["accuracy"]) for each in bins if each["comparisons"])
    assert gaps / len(found) == pytest.approx(measured["calibration_error"].value, rel=1e-12)


def test_intervals_are_the_percentiles_of_resampled_prompts() -> None:
    found = made()
    measured = measures.preferences(found, Bootstrap(2000, 0))
    pick = np.random.default_rng(5)
    names = np.unique(found.prompts)
    again: dict[str, list[float]] = {}
    for _ in range(800):
        rows = np.concatenate([np.flatnonzero(found.prompts == name) for name in pick.choice(names, len(names))])
        for name, value in by_hand(found.select(rows)).items():
            again.setdefault(name, []).append(value)
    for name, estimate in measured.items():
        low, high = np.percentile(again[name], [2.5, 97.5])
        near = 0.15 * (high - low)  # of two bootstraps of this size
        assert estimate.low == pytest.approx(low, abs=near), name
        assert estimate.high == pytest.approx(high, abs=near), name


def test_intervals_over_prompts_are_wider_than_over_repeated_rows() -> None:
    """Every comparison five times says no more than once, if the five are of one prompt."""
    found = replace(made(), prompts=np.arange(60))
    five = found.select(np.repeat(np.arange(60), 5))
    once, repeated, pretended = (
        measures.preferences(each, BOOTSTRAP)["accuracy"]
        for each in (found, five, replace(five, prompts=np.arange(300)))
    )
    assert repeated == pytest.approx(once, abs=1e-12)
    assert pretended.high - pretended.low < 0.6 * (once.high - once.low)


def test_one_prompt_has_no_interval() -> None:
    found = replace(made(), prompts=np.zeros(60, dtype=np.int64))
    accuracy = measures.preferences(found, BOOTSTRAP)["accuracy"]
    assert accuracy.value > 0
    assert math.isnan(accuracy.low)


def test_baselines_and_length() -> None:
    found = made()
    longer = [0.5 if c == r else float(c > r) for c, r in found.lengths.tolist()]
    correct = [0.5 if c == r else float(c > r) for c, r in found.rewards.tolist()]
    per_token = [float(a / n > b / m) for (a, b), (n, m) in zip(found.reference, found.lengths, strict=True)]
    rules = measures.baselines(found, BOOTSTRAP)
    assert rules["longer_wins"]["accuracy"].value == pytest.approx(np.mean(longer))
    assert rules["longer_wins"]["gain"].value == pytest.approx(np.mean(correct) - np.mean(longer))
    assert rules["reference_logp_per_token"]["accuracy"].value == pytest.approx(np.mean(per_token))
    assert "policy_logp" in measures.baselines(replace(found, reference=None), BOOTSTRAP)

    gap = found.lengths[:, 0] - found.lengths[:, 1]
    length = measures.length(found, BOOTSTRAP)
    parts = [np.mean(np.array(correct)[mask]) for mask in (gap > 0, gap < 0)]
    assert length["chosen_longer"].value == pytest.approx(parts[0])
    assert length["chosen_shorter"].value == pytest.approx(parts[1])
    assert length["balanced_accuracy"].value == pytest.approx(np.mean(parts))
    assert length["gap"].value == pytest.approx(parts[0] - parts[1])
    margins = found.rewards[:, 0] - found.rewards[:, 1]
    both = stats.pearsonr(np.concatenate([margins, -margins]), np.concatenate([gap, -gap])).statistic
    assert length["correlation"].value == pytest.approx(both)
    swapped = replace(found, rewards=found.rewards[:, ::-1], lengths=found.lengths[:, ::-1])
    assert measures.length(swapped, BOOTSTRAP)["correlation"].value == pytest.approx(both)


def test_a_reward_that_is_length_has_a_balanced_accuracy_of_a_half() -> None:
    found = made()
    by_length = replace(found, rewards=found.lengths.astype(np.float64))
    assert measures.length(by_length, BOOTSTRAP)["balanced_accuracy"].value == 0.5
    assert measures.baselines(by_length, BOOTSTRAP)["longer_wins"]["gain"] == pytest.approx((0, 0, 0))


def test_shifts_are_means_over_answers_of_nats_per_token() -> None:
    found = made()
    shifts = measures.shifts(found, BOOTSTRAP)
    for side, name in enumerate(("chosen", "rejected")):
        each = [
            (logp - reference) / length
            for logp, reference, length in zip(
                found.logps[:, side], found.reference[:, side], found.lengths[:, side], strict=True
            )
        ]
        assert shifts[name].value == pytest.approx(sum(each) / len(each))
    assert measures.shifts(replace(found, reference=None), BOOTSTRAP) == {}


# -- two models


def test_mcnemar_is_the_binomial_test_on_what_one_alone_gets_right() -> None:
    first = replace(made(seed=1), prompts=np.arange(60))
    first = replace(first, rewards=np.column_stack([np.ones(60), np.zeros(60)]))
    second = replace(first, rewards=first.rewards.copy())
    first.rewards[:4] *= -1
    second.rewards[2:17] *= -1  # rows 2 and 3 both get wrong
    found = compare(first, second, BOOTSTRAP)
    assert (found["first_only"], found["second_only"], found["test"]) == (13, 2, "mcnemar")
    exact = 2 * sum(math.comb(15, k) for k in range(3)) / 2**15
    assert found["p_value"] == pytest.approx(exact)
    assert found["accuracy"].value == pytest.approx(11 / 60)
    back = compare(second, first, BOOTSTRAP)
    assert back["p_value"] == found["p_value"]
    assert back["accuracy"].value == -found["accuracy"].value


def test_comparisons_of_one_prompt_are_permuted_together() -> None:
    """Eight prompts of five comparisons, of which the first model alone is right in all: 2 / 2^8, not 2 / 2^40."""
    prompts = np.repeat(np.arange(8), 5)
    base = made(40).select(np.arange(40))
    first = replace(base, prompts=prompts, rewards=np.tile([1.0, 0.0], (40, 1)))
    second = replace(first, rewards=-first.rewards)
    found = compare(first, second, BOOTSTRAP)
    assert found["test"] == "permutation"
    assert found["p_value"] == pytest.approx(2 / 2**8)
    assert compare(first, first, BOOTSTRAP)["p_value"] == 1.0


def test_shared_comparisons_are_found_by_name() -> None:
    first = [("a", 0, 1), ("b", 0, 1), ("c", 1, 0)]
    second = [("c", 1, 0), ("d", 0, 1), ("a", 0, 1)]
    mine, theirs = shared(first, second)
    assert [(first[i], second[j]) for i, j in zip(mine, theirs, strict=True)] == [
        (("a", 0, 1), ("a", 0, 1)),
        (("c", 1, 0), ("c", 1, 0)),
    ]
    assert [len(side) for side in shared(first, [])] == [0, 0]
