"""DPO against the paper, pair by pair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.loss_cases import logps_of, loss, preferences_of, random_answers
from hypothesis import given
from hypothesis import strategies as st
from parity.reference_impl import dpo_pair, dpo_pair_slope, sigmoid

from dpo_cli.data.collate import collate
from dpo_cli.data.types import Group
from dpo_cli.losses import AnswerLogps, Preferences, Sums
from dpo_cli.objective import answer_logps

BETAS = [0.01, 0.1, 0.5, 2.0]
SMOOTHINGS = [0.0, 0.1, 0.25, 0.49]


def dpo(logps: AnswerLogps, preferences: Preferences, *, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    return loss("dpo", beta=beta, label_smoothing=label_smoothing)(logps, preferences).losses


PAIRS = [(0, 1), (2, 0), (2, 3), (4, 1), (3, 4), (4, 2)]


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_losses_are_the_papers(beta: float, smoothing: float, dtype: torch.dtype, tolerance: float) -> None:
    policy, reference = random_answers()
    found = dpo(
        logps_of(policy, reference, dtype), preferences_of(*PAIRS, dtype=dtype), beta=beta, label_smoothing=smoothing
    )
    expected = [
        dpo_pair(policy[winner], policy[loser], reference[winner], reference[loser], beta, smoothing)
        for winner, loser in PAIRS
    ]
    assert found.dtype == dtype
    assert found.tolist() == pytest.approx(expected, rel=tolerance)


# -log sigmoid(z) = log(1 + exp(-z)), worked out by hand for z = beta x margin.
GOLDEN = [
    (0.1, 0.0, 10.0, 0.31326168751822286),
    (0.1, 0.0, -10.0, 1.3132616875182228),
    (0.5, 0.0, 4.0, 0.12692801104297263),
    (0.1, 0.1, 10.0, 0.9 * 0.31326168751822286 + 0.1 * 1.3132616875182228),
    (0.1, 0.0, 1e4, 0.0),
    (0.1, 0.0, -1e4, 1000.0),
    (0.1, 0.2, 1e4, 200.0),
    (1.0, 0.0, -1e4, 1e4),
    (1.0, 0.25, 1e4, 2500.0),
]


@pytest.mark.parametrize(("beta", "smoothing", "margin", "expected"), GOLDEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_values_and_their_gradient(beta, smoothing, margin, expected, dtype) -> None:
    logps = logps_of([[-2.0 + margin / 2, margin / 2], [-5.0]], [[-1.0, -1.0], [-5.0]], dtype)
    logps.policy.requires_grad_()
    found = dpo(logps, preferences_of((0, 1), dtype=dtype), beta=beta, label_smoothing=smoothing)
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    found.sum().backward()
    slope = dpo_pair_slope(beta * margin, beta, smoothing)
    assert logps.policy.grad.tolist() == pytest.approx([slope, slope, -slope], rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_gradient_is_the_closed_form(beta: float, smoothing: float) -> None:
    policy, reference = random_answers()
    logps = logps_of(policy, reference)
    logps.policy.requires_grad_()
    dpo(logps, preferences_of(*PAIRS), beta=beta, label_smoothing=smoothing).sum().backward()
    slopes = [0.0] * len(policy)
    ratios = [sum(p) - sum(r) for p, r in zip(policy, reference, strict=True)]
    for winner, loser in PAIRS:
        slope = dpo_pair_slope(beta * (ratios[winner] - ratios[loser]), beta, smoothing)
        slopes[winner] += slope
        slopes[loser] -= slope
    # Every token of an answer pulls alike.
    expected = [slopes[number] for number, tokens in enumerate(policy) for _ in tokens]
    assert logps.policy.grad.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_gradcheck(smoothing: float) -> None:
    policy, reference = random_answers()
    start = logps_of(policy, reference)

    def losses(tokens: torch.Tensor) -> torch.Tensor:
        logps = AnswerLogps(tokens, start.reference, start.answer, start.count)
        return dpo(logps, preferences_of(*PAIRS), beta=0.3, label_smoothing=smoothing)

    assert torch.autograd.gradcheck(losses, start.policy.clone().requires_grad_())


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_is_ln_2_where_policy_is_reference(beta: float, smoothing: float, dtype: torch.dtype) -> None:
    policy, _ = random_answers()
    losses = dpo(
        logps_of(policy, policy, dtype), preferences_of(*PAIRS, dtype=dtype), beta=beta, label_smoothing=smoothing
    )
    assert losses.tolist() == pytest.approx([math.log(2)] * len(PAIRS), rel=2e-7 if dtype == torch.float32 else 1e-15)


@given(
    margin=st.floats(-300, 300),
    beta=st.floats(0.01, 1.0),
    smoothing=st.floats(0.0, 0.49),
)
def test_swapping_winner_and_loser_negates_the_margin(margin: float, beta: float, smoothing: float) -> None:
    def value(policy: float, pair: tuple[int, int], e: float) -> float:
        return dpo(
            logps_of([[policy], [-1.0]], [[0.0], [-1.0]]), preferences_of(pair), beta=beta, label_smoothing=e
        ).item()

    assert value(margin, (1, 0), smoothing) == pytest.approx(value(-margin, (0, 1), smoothing), rel=1e-12, abs=1e-300)
    # log sigmoid(z) - log sigmoid(-z) = z
    assert value(margin, (1, 0), 0.0) - value(margin, (0, 1), 0.0) == pytest.approx(beta * margin, rel=1e-9, abs=1e-9)


def test_no_smoothing_is_the_limit_of_little_smoothing() -> None:
    policy, reference = random_answers()
    logps, preferences = logps_of(policy, reference), preferences_of(*PAIRS)
    without = dpo(logps, preferences, beta=0.3)
    assert torch.equal(without, dpo(logps, preferences, beta=0.3, label_smoothing=0.0))
    margins = torch.tensor([0.3 * float(logps.log_ratios[winner] - logps.log_ratios[loser]) for winner, loser in PAIRS])
    for smoothing in (1e-3, 1e-6):
        # (1 - e) L(z) + e L(-z) = L(z) + e z
        difference = dpo(logps, preferences, beta=0.3, label_smoothing=smoothing) - without
        assert difference.tolist() == pytest.approx((smoothing * margins).tolist(), rel=1e-5, abs=1e-15)


def test_a_shared_token_counts_in_every_answer_that_starts_with_it() -> None:
    """Two answers [a b] and [a c]: a was computed once; its log-ratio cancels in the margin, its gradient too."""
    tokens = torch.tensor([-3.0, -1.0, -2.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-2.5, -1.5, -2.5, -1.0], dtype=torch.float64)
    ids = [np.array(row, dtype=np.int32) for row in ([9], [1, 2], [1, 3])]
    logps = answer_logps(tokens, reference, collate([Group(ids[0], tuple(ids[1:]), (), "a row")]))
    assert logps.policy_sums.tolist() == [-4.0, -5.0]
    assert logps.log_ratios.tolist() == [0.0, -1.5]
    assert logps.lengths.tolist() == [2, 2]
    found = dpo(logps, preferences_of((0, 1)), beta=1.0)
    assert found.item() == pytest.approx(dpo_pair([-3, -1], [-3, -2], [-2.5, -1.5], [-2.5, -1.0], 1.0), rel=1e-14)
    found.sum().backward()
    slope = sigmoid(-1.5)
    assert tokens.grad.tolist() == pytest.approx([0.0, -slope, slope], abs=1e-15)


def test_log_ratios_of_long_answers_keep_their_digits_in_float32() -> None:
    """A difference of two sums of 4000 nats would be off by some 1e-4."""
    random = np.random.default_rng(0)
    reference = -random.exponential(2.0, 2000)
    policy = reference + 1e-3 * random.normal(size=2000)
    logps = logps_of([policy.tolist()], [reference.tolist()], torch.float32)
    exact = np.float64(np.float32(policy) - np.float32(reference)).sum()
    assert logps.log_ratios.item() == pytest.approx(exact, abs=2e-6)


def test_a_loss_without_its_reference_says_so() -> None:
    with pytest.raises(ValueError, match=r"^this loss needs reference log-probs, and was given none$"):
        dpo(logps_of([[-1.0], [-2.0]], None), preferences_of((0, 1)), beta=0.1)


# Metrics


def sums_of(policy: Any, reference: Any, pairs: Any, beta: float = 0.1) -> Sums:
    which = loss("dpo", beta=beta)
    sums = Sums(which.metric_names)
    sums.add(which(logps_of(policy, reference), preferences_of(*pairs)).metrics)
    return sums


def test_metrics_by_hand() -> None:
    # log-ratios 2, -1, 2
    means = sums_of([[-1.0, -1.0], [-5.0], [-4.0]], [[-2.0, -2.0], [-4.0], [-6.0]], [(0, 1), (1, 0), (0, 2)]).means(
        list
    )
    assert means == pytest.approx(
        {
            "loss": (math.log1p(math.exp(-0.3)) + math.log1p(math.exp(0.3)) + math.log(2)) / 3,
            "rewards/chosen": 0.1 * (2 - 1 + 2) / 3,
            "rewards/rejected": 0.1 * (-1 + 2 + 2) / 3,
            "rewards/accuracies": (1 + 0 + 0.5) / 3,
            "rewards/margins": 0.0,
            "logps/chosen": (-2 - 5 - 2) / 3,
            "logps/rejected": (-5 - 2 - 4) / 3,
        },
        abs=1e-12,
    )


def test_ties_count_half() -> None:
    policy, _ = random_answers()
    assert sums_of(policy, policy, PAIRS).means(list)["rewards/accuracies"] == 0.5


@given(cut=st.integers(1, len(PAIRS) - 1))
def test_means_do_not_depend_on_the_split(cut: int) -> None:
    policy, reference = random_answers()
    whole = sums_of(policy, reference, PAIRS).means(list)
    parts = [sums_of(policy, reference, PAIRS[:cut]), sums_of(policy, reference, PAIRS[cut:])]
    # Over ranks ...
    over_ranks = parts[0].means(lambda values: [a + b for a, b in zip(values, parts[1].values, strict=True)])
    assert over_ranks == pytest.approx(whole, rel=1e-12)
    # ... and over micro-batches of one.
    which = loss("dpo")
    sums, logps = Sums(which.metric_names), logps_of(policy, reference)
    for some in (PAIRS[:cut], PAIRS[cut:]):
        sums.add(which(logps, preferences_of(*some)).metrics)
    assert sums.means(list) == pytest.approx(whole, rel=1e-12)


def test_metrics_keep_no_graph() -> None:
    policy, reference = random_answers()
    logps = logps_of(policy, reference)
    logps.policy.requires_grad_()
    which = loss("dpo")
    sums = Sums(which.metric_names)
    result = which(logps, preferences_of(*PAIRS))
    sums.add(result.metrics)
    assert all(type(value) is float for value in sums.values)
    result.losses.sum().backward()
    assert logps.policy.grad.abs().min() > 0
