from __future__ import annotations

import math

import numpy as np
import pytest

from dpo_cli.evaluation.alarms import of_drift, of_preferences, of_sampling
from dpo_cli.evaluation.drift import repeated, sample_means, sample_measures
from dpo_cli.evaluation.generation import as_groups
from dpo_cli.evaluation.intervals import Bootstrap, Estimate
from dpo_cli.evaluation.samples import Samples
from dpo_cli.metric_names import of_samples

BOOTSTRAP = Bootstrap(200, 0)


def tokens(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int32)


def test_repeated_4_grams() -> None:
    assert repeated(tokens(1, 2, 3)) == (0, 0)
    assert repeated(tokens(1, 2, 3, 4)) == (0, 1)
    assert repeated(tokens(7, 7, 7, 7, 7, 7)) == (2, 3)
    assert repeated(tokens(1, 2, 3, 4, 1, 2, 3, 4)) == (1, 5)


def test_sample_measures_by_hand() -> None:
    answers = [tokens(7, 7, 7, 7, 7, 9), tokens(1, 9), tokens(1, 2, 3)]
    logps = [np.full(6, -1.0), np.array([-0.5, -0.25]), np.full(3, -2.0)]
    reference = [np.full(6, -1.5), np.array([-0.5, -1.25]), np.full(3, -1.0)]
    found = sample_measures(answers, logps, reference, ends=[9], bootstrap=BOOTSTRAP)
    values = {name: estimate.value for name, estimate in found.items()}
    assert values == pytest.approx(
        {
            "length": 11 / 3,
            "entropy": (6 + 0.75 + 6) / 11,
            "repetition": 1 / 3,
            "unfinished": 1 / 3,
            "kl": (3.0 + 1.0 - 3.0) / 3,
            "kl_per_token": 1.0 / 11,
        }
    )
    assert sample_means(answers, logps, reference, ends=[9]) == pytest.approx(values)
    assert "kl" not in sample_measures(answers, logps, None, ends=[9], bootstrap=BOOTSTRAP)
    assert sample_means(answers, None, None, ends=[9]).keys() == {"length", "repetition", "unfinished"}


def test_what_training_measures_of_samples_has_the_names_that_are_announced() -> None:
    """And at another temperature than 1 nothing that would need samples of the model itself."""
    groups = as_groups([tokens(5), tokens(6)], [tokens(1, 9), tokens(2, 3, 9)])
    samples = Samples(["a", "b"], ["1", "2 3"], groups, [0.25, 0.75])
    mine, theirs = [np.full(2, -1.0), np.full(3, -2.0)], [np.full(2, -2.0), np.full(3, -2.0)]
    found = samples.metrics(mine, theirs, ends=[9])
    assert set(found) == set(of_samples(true_reward=True, kl=True))
    assert found["samples/kl"] == 1.0
    assert found["samples/kl_error"] == pytest.approx(math.sqrt(2) / math.sqrt(2))  # 2 and 0: deviation sqrt 2, of two
    assert found["samples/kl_per_token"] == pytest.approx(2 / 5)
    assert found["samples/true_reward"] == 0.5
    assert samples.true_reward(BOOTSTRAP)["true_reward"].value == 0.5
    assert set(samples.metrics(None, None, ends=[9])) == set(of_samples(true_reward=True, kl=False))


def test_kl_and_entropy_of_samples_are_those_of_the_distributions() -> None:
    """Answers of one token from known distributions."""
    pick = np.random.default_rng(0)
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
    drawn = pick.choice(3, 8000, p=p)
    found = sample_measures(
        [tokens(int(token)) for token in drawn],
        [np.log(p[[token]]) for token in drawn],
        [np.log(q[[token]]) for token in drawn],
        ends=[9],
        bootstrap=BOOTSTRAP,
    )
    kl, entropy = float((p * np.log(p / q)).sum()), float(-(p * np.log(p)).sum())
    for name, true in (("kl", kl), ("entropy", entropy)):
        spread = (found[name].high - found[name].low) / (2 * 1.96)  # the interval is +- 1.96 standard errors wide
        assert abs(found[name].value - true) < 4 * spread
        error = {"kl": np.std(np.log(p / q)[drawn]), "entropy": np.std(np.log(p)[drawn])}[name] / math.sqrt(len(drawn))
        assert spread == pytest.approx(error, rel=0.2)


# -- alarms


def sure(value: float, width: float = 0.01) -> Estimate:
    return Estimate(value, value - width, value + width)


GOOD = {"accuracy": sure(0.75), "margin": sure(1.0), "overconfidence": sure(0.02), "confidence": sure(0.77)}
RULES = {"longer_wins": {"accuracy": sure(0.55), "gain": sure(0.2)}}


def by_length(longer: float, shorter: float) -> dict[str, Estimate]:
    return {"chosen_longer": sure(longer), "chosen_shorter": sure(shorter), "gap": sure(longer - shorter, 0.02)}


LENGTH = by_length(0.76, 0.74)
SHIFTS = {"chosen": sure(0.05), "rejected": sure(-0.1)}


def test_a_good_run_raises_no_alarm() -> None:
    assert of_preferences(GOOD, RULES, LENGTH, SHIFTS) == []
    assert of_preferences(GOOD, RULES, LENGTH, {}) == []
    sides = {"length": 20.0, "entropy": 1.0, "repetition": 0.05, "kl_per_token": 0.05}
    assert of_drift(sides, sides, sure(0.6)) == []


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("no-better-than-length", {"rules": {"longer_wins": {"accuracy": sure(0.74), "gain": sure(0.005)}}}),
        ("length-bias", {"length": by_length(0.9, 0.6)}),
        ("length-bias", {"length": by_length(0.6, 0.9)}),
        ("likelihood-displacement", {"shifts": {"chosen": sure(-0.2), "rejected": sure(-0.5)}}),
        ("overconfident", {"measured": {**GOOD, "overconfidence": sure(0.2)}}),
    ],
)
def test_alarms_of_preferences(name: str, changes: dict) -> None:
    given = {"measured": GOOD, "rules": RULES, "length": LENGTH, "shifts": SHIFTS, **changes}
    assert [alarm.name for alarm in of_preferences(*given.values())] == [name]


BEFORE = {"length": 20.0, "entropy": 1.0, "repetition": 0.05, "true_reward": 0.5}
CLOSE = {**BEFORE, "kl_per_token": 0.05, "true_reward": 0.6}
UNKNOWN = {name: value for name, value in CLOSE.items() if name != "true_reward"}


@pytest.mark.parametrize(
    ("name", "policy", "rate"),
    [
        ("over-optimised", {**UNKNOWN, "kl_per_token": 0.5}, sure(0.5)),
        ("over-optimised", {**CLOSE, "kl_per_token": 0.5, "true_reward": 0.4}, None),
        ("over-optimised", {**CLOSE, "kl_per_token": 0.5, "true_reward": 0.4}, sure(0.6)),
        ("far-from-reference", {**UNKNOWN, "kl_per_token": 0.5}, None),
        ("longer-answers", {**CLOSE, "length": 40.0}, None),
        ("repetition", {**CLOSE, "repetition": 0.3}, None),
        ("entropy-collapse", {**CLOSE, "entropy": 0.3}, None),
    ],
)
def test_alarms_of_samples(name: str, policy: dict, rate: Estimate | None) -> None:
    assert of_drift(CLOSE, BEFORE, rate) == []
    assert [alarm.name for alarm in of_drift(policy, BEFORE, rate)] == [name]
    # During training the same is said of what was logged.
    logged = [(step, {f"samples/{key}": v for key, v in side.items()}) for step, side in ((0, BEFORE), (8, policy))]
    said = of_sampling([(0, {"eval/loss": 0.7}), *logged, (8, {"eval/loss": 0.5})], 8)
    assert [alarm.name for alarm in said] == [name if rate is None or "true_reward" in policy else "far-from-reference"]
    assert "the reference's" not in said[0].text


def test_a_model_that_is_far_away_and_better_raises_no_alarm() -> None:
    assert of_drift({**UNKNOWN, "kl_per_token": 0.5}, BEFORE, sure(0.6)) == []
    assert of_drift({**CLOSE, "kl_per_token": 0.5}, BEFORE) == []


def test_samples_with_nothing_to_compare_them_with() -> None:
    """Of a run that began from another run's checkpoint."""
    assert [alarm.name for alarm in of_sampling([(8, {"samples/kl_per_token": 0.5, "samples/length": 9.0})], 8)] == [
        "far-from-reference"
    ]
