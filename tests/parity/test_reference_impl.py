"""The numpy losses against themselves: closed-form slopes, known values, symmetries, limits, extremes; golden.json."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parity import reference_free, reference_impl, reference_modifiers, reference_ranked, reference_rewards
from parity.reference_free import alphapo, cpo, log_odds, orpo, sft, simpo, slic
from parity.reference_impl import (
    divergence_reward,
    divergence_slope,
    dpo,
    dpo_pair,
    dpo_pair_slope,
    dpo_slope,
    exo,
    hinge,
    robust,
    rpo_bwd_kl,
    rpo_fwd_kl,
    sigmoid,
)
from parity.reference_modifiers import humanline, humanline_passes, ld, ld_weights, weighted_sum, with_sft, wpo_weight
from parity.reference_ranked import aot, aot_unpaired, plackett_luce
from parity.reference_rewards import apo_down, bco_pair, dpo_norm, ipo, nca
from parity.reference_unpaired import (
    apo_zero_unpaired,
    apo_zero_unpaired_slope,
    bco,
    bco_batch_mean,
    bco_pair_batch_mean,
    bco_slope,
    kto,
    kto_reference_point,
    kto_slope,
    running_mean,
)

REPOSITORY = Path(__file__).resolve().parents[2]
FUNCTIONS = vars(reference_impl) | vars(reference_rewards) | vars(reference_free)
Pair = tuple[list[float], list[float], list[float], list[float]]

PAIRWISE: list[tuple[str, dict[str, Any]]] = [
    ("dpo", {"beta": 0.3}),
    ("dpo", {"beta": 0.3, "label_smoothing": 0.2, "margin": 0.4}),
    ("dpo", {"beta": 0.3, "divergence": "forward_kl"}),
    ("dpo", {"beta": 0.3, "divergence": "js"}),
    ("dpo", {"beta": 0.3, "divergence": "alpha", "divergence_alpha": 0.4}),
    ("dpo", {"beta": 0.3, "divergence": "alpha", "divergence_alpha": 0.0}),
    ("robust", {"beta": 0.3, "label_smoothing": 0.2}),
    ("robust", {"beta": 0.3, "label_smoothing": 0.2, "divergence": "js", "margin": 0.1}),
    ("hinge", {"beta": 0.3}),
    ("exo", {"beta": 0.3, "label_smoothing": 1e-3}),
    ("discopop", {"beta": 0.3, "tau": 0.05}),
    ("discopop", {"beta": 0.3, "tau": 0.7, "margin": -0.2}),
    ("rpo_bwd_kl", {"beta": 0.3, "true_gap": 0.7, "eta": 2.0}),
    ("rpo_fwd_kl", {"beta": 0.3, "true_gap": 0.7, "eta": 2.0}),
    ("rpo_sq", {"beta": 0.3, "true_gap": 0.7, "eta": 2.0}),
    ("ipo", {"beta": 0.1}),
    ("ipo", {"beta": 0.1, "normalise": "sum", "margin": 0.3}),
    ("dpo_norm", {"beta": 5.0, "label_smoothing": 0.1, "margin": 0.4}),
    ("nca", {"beta": 0.3}),
    ("bco_pair", {"beta": 0.3, "delta": 0.2}),
    ("sppo", {"beta": 0.1}),
    ("apo_zero", {"beta": 0.3}),
    ("apo_down", {"beta": 0.3}),
    ("sft", {}),
    ("slic", {"delta": 5.0, "sft_weight": 0.1}),
    ("slic", {"delta": 0.5, "margin": 2.5}),
    ("cpo", {"beta": 0.3, "sft_weight": 1.0, "label_smoothing": 0.1, "margin": 0.4}),
    ("simpo", {"beta": 2.0, "gamma_ratio": 0.5, "label_smoothing": 0.1, "margin": 0.4}),
    ("alphapo", {"beta": 2.5, "alpha": 0.25, "gamma_ratio": 0.1}),
    ("alphapo", {"beta": 2.5, "alpha": -0.5, "gamma_ratio": 0.1, "margin": 0.2}),
    ("alphapo", {"beta": 2.5, "alpha": 0.0, "gamma_ratio": 0.1}),
    ("orpo", {"beta": 0.5}),
    ("orpo", {"beta": 0.5, "prompt": [-2.0, -0.5, -1.0]}),
]
NAMES = [f"{number}-{name}" for number, (name, _) in enumerate(PAIRWISE)]


def answer(draw: random.Random, length: int) -> tuple[list[float], list[float]]:
    """Of the policy, of the reference."""
    reference = [-draw.expovariate(1.0) for _ in range(length)]
    return [min(r + draw.gauss(0, 0.7), -1e-3) for r in reference], reference


def pairs(count: int = 4) -> list[Pair]:
    draw = random.Random(0)
    found = []
    for lengths in [(3, 2), (1, 4), (5, 5), (2, 1)][:count]:
        (policy_winner, reference_winner), (policy_loser, reference_loser) = (answer(draw, n) for n in lengths)
        found.append((policy_winner, policy_loser, reference_winner, reference_loser))
    return found


def moved(tokens: list[float], position: int, step: float) -> list[float]:
    return [token + step * (number == position) for number, token in enumerate(tokens)]


def difference(loss: Callable[[list[float]], float], tokens: list[float], position: int) -> float:
    """d loss / d tokens[position], to the second order."""
    step = 1e-5
    return (loss(moved(tokens, position, step)) - loss(moved(tokens, position, -step))) / (2 * step)


def swapped(pair: Pair) -> Pair:
    policy_winner, policy_loser, reference_winner, reference_loser = pair
    return policy_loser, policy_winner, reference_loser, reference_winner


def exchanged(pair: Pair) -> Pair:
    """Policy and reference exchanged: every log-ratio is negated."""
    policy_winner, policy_loser, reference_winner, reference_loser = pair
    return reference_winner, reference_loser, policy_winner, policy_loser


def as_log_ratios(pair: Pair) -> tuple[list[float], list[float]]:
    """Winner's and loser's, token by token."""
    winner, loser = (zip(pair[side], pair[side + 2], strict=True) for side in (0, 1))
    return [p - r for p, r in winner], [p - r for p, r in loser]


# Slopes


@pytest.mark.parametrize(("name", "hyper"), PAIRWISE, ids=NAMES)
def test_the_slope_is_the_gradient_at_every_token(name: str, hyper: dict[str, Any]) -> None:
    for pair in pairs():
        slopes = FUNCTIONS[f"{name}_slope"](*pair, **hyper)
        for side in (0, 1):

            def loss(tokens: list[float], pair: Pair = pair, side: int = side) -> float:
                return FUNCTIONS[name](*pair[:side], tokens, *pair[side + 1 :], **hyper)

            found = [difference(loss, pair[side], position) for position in range(len(pair[side]))]
            assert found == pytest.approx([slopes[side]] * len(found), rel=1e-6, abs=1e-8)


def test_the_slopes_of_unpaired_losses() -> None:
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.7}
    for pair in pairs():
        for desirable in (True, False):
            for loss, slope, hyper in [
                (kto, kto_slope, {"beta": 0.3, "reference_point": 0.2, **weights}),
                (bco, bco_slope, {"beta": 0.3, "delta": 0.2}),
                (apo_zero_unpaired, apo_zero_unpaired_slope, {"beta": 0.3}),
            ]:
                found = difference(lambda t, f=loss, h=hyper: f(t, pair[2], desirable, **h), pair[0], 0)  # noqa: B023
                assert found == pytest.approx(slope(pair[0], pair[2], desirable, **hyper), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_the_slopes_of_sorted_losses(name: str) -> None:
    batch = [list(side) for side in zip(*pairs(), strict=True)]
    hyper = {"beta": 0.3, "label_smoothing": 0.1}
    slopes = vars(reference_ranked)[f"{name}_slope"](*batch, **hyper)
    for side in (0, 1):
        for number, tokens in enumerate(batch[side]):

            def loss(tokens: list[float], side: int = side, number: int = number) -> float:
                changed = [list(answers) for answers in batch]
                changed[side][number] = tokens
                return sum(vars(reference_ranked)[name](*changed, **hyper))

            assert difference(loss, tokens, 0) == pytest.approx(slopes[side][number], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("scores", [[3, 2, 1, 0], [1, 2, 2, 0], [2, 2, 1, 1], [1, 0, 0, 0]])
def test_the_slope_of_plackett_luce(scores: list[float]) -> None:
    policies, references = [pair[0] for pair in pairs()], [pair[2] for pair in pairs()]
    slopes = reference_ranked.plackett_luce_slope(policies, references, scores, beta=0.5)
    for number, tokens in enumerate(policies):

        def loss(tokens: list[float], number: int = number) -> float:
            changed = [*policies[:number], tokens, *policies[number + 1 :]]
            return plackett_luce(changed, references, scores, beta=0.5)

        assert difference(loss, tokens, 0) == pytest.approx(slopes[number], rel=1e-6, abs=1e-9)
    assert sum(slopes) == pytest.approx(0, abs=1e-15)


# Where the policy is the reference

LN_2 = math.log(2)
TRUE = 1.4  # eta x true gap
AT_START = [
    ("dpo", {"beta": 0.3, "label_smoothing": 0.2}, LN_2),
    ("dpo", {"beta": 0.3, "divergence": "forward_kl"}, LN_2),
    ("dpo", {"beta": 0.3, "divergence": "js"}, LN_2),
    ("dpo", {"beta": 0.3, "divergence": "alpha"}, LN_2),
    ("robust", {"beta": 0.3, "label_smoothing": 0.2}, LN_2),
    ("hinge", {"beta": 0.3}, 1.0),
    ("exo", {"beta": 0.3, "label_smoothing": 0.2}, -LN_2 - 0.5 * math.log(0.2 * 0.8)),
    ("discopop", {"beta": 0.3, "tau": 0.05}, (LN_2 + 1) / 2),
    (
        "rpo_bwd_kl",
        {"beta": 0.3, "true_gap": 0.7, "eta": 2.0},
        LN_2 + TRUE * sigmoid(TRUE) - math.log1p(math.exp(TRUE)),
    ),
    ("rpo_fwd_kl", {"beta": 0.3, "true_gap": 0.7, "eta": 2.0}, math.log(math.cosh(TRUE / 2))),
    ("rpo_sq", {"beta": 0.3, "true_gap": 0.7, "eta": 2.0}, TRUE**2),
    ("ipo", {"beta": 0.1}, 25.0),
    ("ipo", {"beta": 0.1, "normalise": "sum"}, 25.0),
    ("dpo_norm", {"beta": 5.0}, LN_2),
    ("nca", {"beta": 0.3}, 2 * LN_2),
    ("bco_pair", {"beta": 0.3, "delta": 0.0}, 2 * LN_2),
    ("sppo", {"beta": 0.1}, 50.0),
    ("apo_zero", {"beta": 0.3}, 1.0),
    ("apo_down", {"beta": 0.3}, 1.0),
]


@pytest.mark.parametrize(("name", "hyper", "expected"), AT_START)
def test_the_value_where_the_policy_is_the_reference(name: str, hyper: dict[str, Any], expected: float) -> None:
    for winner, loser, _, _ in pairs():
        assert FUNCTIONS[name](winner, loser, winner, loser, **hyper) == pytest.approx(expected, rel=1e-13)


def test_the_value_where_the_policy_is_the_reference_of_the_others() -> None:
    batch = [list(side) for side in zip(*((w, loser, w, loser) for w, loser, _, _ in pairs()), strict=True)]
    assert aot(*batch, beta=0.3, label_smoothing=0.2) == pytest.approx([LN_2] * 4)
    assert aot_unpaired(*batch, beta=0.3) == pytest.approx([LN_2] * 4)
    # All orders of K answers are alike: ln K!
    assert plackett_luce(batch[0], batch[2], [3, 2, 1, 0], beta=0.3) == pytest.approx(math.log(24))
    assert plackett_luce(batch[0], batch[2], [1, 1, 1, 1], beta=0.3) == 0
    point = kto_reference_point(batch[0], batch[2])
    assert point == 0
    assert kto(batch[0][0], batch[2][0], True, beta=0.3, reference_point=point, desirable_weight=1.5) == 0.75
    assert bco(batch[0][0], batch[2][0], False, beta=0.3, delta=0.0) == pytest.approx(LN_2)
    assert simpo(batch[0][0], batch[0][0], beta=2.0, gamma_ratio=0.0) == pytest.approx(LN_2)
    assert orpo(batch[0][0], batch[0][0], beta=0.1) == pytest.approx(sft(batch[0][0]) + 0.1 * LN_2)


# Symmetries


@pytest.mark.parametrize("loss", [dpo, robust, exo, dpo_norm])
def test_exchanging_the_answers_is_exchanging_the_label(loss: Callable[..., float]) -> None:
    for pair in pairs():
        for smoothing in (0.2, 0.45):
            expected = loss(*pair, beta=0.3, label_smoothing=smoothing)
            assert loss(*swapped(pair), beta=0.3, label_smoothing=1 - smoothing) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["rpo_bwd_kl", "rpo_fwd_kl", "rpo_sq"])
def test_exchanging_the_answers_is_negating_the_true_gap(name: str) -> None:
    for pair in pairs():
        expected = FUNCTIONS[name](*pair, beta=0.3, true_gap=0.7)
        assert FUNCTIONS[name](*swapped(pair), beta=0.3, true_gap=-0.7) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "hyper"),
    [("bco_pair", {"beta": 0.3, "delta": 0.0}), ("sppo", {"beta": 0.1}), ("apo_zero", {"beta": 0.3})],
)
def test_a_loser_is_a_winner_of_the_negative(name: str, hyper: dict[str, Any]) -> None:
    for pair in pairs():
        expected = FUNCTIONS[name](*pair, **hyper)
        assert FUNCTIONS[name](*exchanged(swapped(pair)), **hyper) == pytest.approx(expected, rel=1e-12)


def test_a_batch_in_another_order_has_the_same_losses() -> None:
    order = [2, 0, 3, 1]
    batch = [list(side) for side in zip(*pairs(), strict=True)]
    reordered = [[side[number] for number in order] for side in batch]
    assert aot(*reordered, beta=0.3) == [aot(*batch, beta=0.3)[number] for number in order]
    # Which reference meets which policy does not matter to the sorted losses.
    shuffled = [*batch[:2], *reordered[2:]]
    assert aot(*shuffled, beta=0.3) == pytest.approx(aot(*batch, beta=0.3))


# Limits that must meet


def test_limits_of_dpo() -> None:
    for pair in pairs():
        expected = dpo_pair(*pair, 0.3)
        assert dpo(*pair, beta=0.3) == expected
        assert dpo(*pair, beta=0.3, label_smoothing=0.2) == pytest.approx(dpo_pair(*pair, 0.3, 0.2), rel=1e-14)
        assert dpo(*pair, beta=0.3, label_smoothing=1e-9) == pytest.approx(expected, rel=1e-8)
        assert robust(*pair, beta=0.3, label_smoothing=0.0) == expected
        # A judge who is sure is a label.
        assert rpo_bwd_kl(*pair, beta=0.3, true_gap=0.7, eta=1e4) == pytest.approx(expected, rel=1e-14)
        assert plackett_luce(pair[:2], pair[2:], [1, 0], beta=0.3) == pytest.approx(expected, rel=1e-14)
        other_way = swapped(pair)
        assert plackett_luce(other_way[:2], other_way[2:], [0, 1], beta=0.3) == pytest.approx(expected, rel=1e-14)
        one = [[answer] for answer in pair]
        assert aot(*one, beta=0.3) == pytest.approx([expected], rel=1e-13)
        assert aot_unpaired(*one, beta=0.3) == [expected]
        slope = dpo_pair_slope(reference_impl.reward_gap(*pair, beta=0.3), 0.3, 0.2)
        assert dpo_slope(*pair, beta=0.3, label_smoothing=0.2) == pytest.approx((slope, -slope), rel=1e-13)


def test_dpo_norm_at_equal_lengths_is_dpo_at_beta_over_the_length() -> None:
    pair = pairs()[2]
    for smoothing in (0.0, 0.2):
        expected = dpo(*pair, beta=5.0 / 5, label_smoothing=smoothing)
        assert dpo_norm(*pair, beta=5.0, label_smoothing=smoothing) == pytest.approx(expected, rel=1e-13)
    # d / 5 - 1 / (2 tau) = (d - 5 / (2 tau)) / 5
    assert ipo(*pair, beta=0.1) == pytest.approx(ipo(*pair, beta=0.02, normalise="sum") / 25, rel=1e-13)


def test_robust_is_dpo_on_average_over_flips() -> None:
    for pair in pairs():
        as_is, flipped = (robust(*p, beta=0.3, label_smoothing=0.2) for p in (pair, swapped(pair)))
        assert 0.8 * as_is + 0.2 * flipped == pytest.approx(dpo(*pair, beta=0.3), rel=1e-13)


def test_forward_rpo_is_exo_with_the_judges_doubt() -> None:
    for pair in pairs():
        expected = exo(*pair, beta=0.3, label_smoothing=sigmoid(-1.4))
        assert rpo_fwd_kl(*pair, beta=0.3, true_gap=0.7, eta=2.0) == pytest.approx(expected, rel=1e-13)


def test_sigmoids_sum_to_one() -> None:
    """The 1 added to APO, and KTO at no reference point."""
    for pair in pairs():
        winner, loser = (0.3 * r for r in reference_impl.log_ratios(*pair))
        assert reference_rewards.apo_zero(*pair, beta=0.3) == pytest.approx(1 - sigmoid(winner) + sigmoid(loser))
        assert apo_down(*pair, beta=0.3) == pytest.approx(1 + sigmoid(winner) - sigmoid(winner - loser))
        apart = [apo_zero_unpaired(pair[side], pair[side + 2], side == 0, beta=0.3) for side in (0, 1)]
        assert sum(apart) == pytest.approx(reference_rewards.apo_zero(*pair, beta=0.3))
        for side in (0, 1):
            expected = kto(pair[side], pair[side + 2], side == 0, beta=0.3, reference_point=0.0)
            assert apart[side] == expected


def test_pairs_are_two_unpaired_answers() -> None:
    for pair in pairs():
        apart = [bco(pair[side], pair[side + 2], side == 0, beta=0.3, delta=0.2) for side in (0, 1)]
        assert bco_pair(*pair, beta=0.3, delta=0.2) == pytest.approx(sum(apart), rel=1e-14)
        # NCA: BCO without a shift, its winner's half pulled down as well, the loser's half as strong.
        winner, loser = (
            bco(pair[0], pair[2], True, beta=0.3, delta=0.0),
            bco(pair[1], pair[3], False, beta=0.3, delta=0.0),
        )
        down = bco(pair[0], pair[2], False, beta=0.3, delta=0.0)
        assert nca(*pair, beta=0.3) == pytest.approx(winner + (down + loser) / 2, rel=1e-14)


def test_limits_of_the_losses_without_reference() -> None:
    for pair in pairs():
        policy = pair[:2]
        expected = simpo(*policy, beta=2.5, gamma_ratio=0.1)
        assert alphapo(*policy, beta=2.5, alpha=0.0, gamma_ratio=0.1) == pytest.approx(expected, rel=1e-14)
        assert alphapo(*policy, beta=2.5, alpha=1e-8, gamma_ratio=0.1) == pytest.approx(expected, rel=1e-6)
        assert alphapo(*policy, beta=2.5, alpha=-1e-8, gamma_ratio=0.1) == pytest.approx(expected, rel=1e-6)
        free = reference_modifiers.reference_free(*pair)
        assert cpo(*pair, beta=0.3, sft_weight=0.0) == pytest.approx(dpo(*free, beta=0.3), rel=1e-14)
        assert simpo(*pair, beta=2.0, gamma_ratio=0.0) == pytest.approx(dpo_norm(*free, beta=2.0), rel=1e-14)
        assert slic(*pair, delta=1.0) == pytest.approx(hinge(*free, beta=1.0), rel=1e-14)
        assert orpo(*pair, beta=0.0) == sft(*pair)
        gap = dpo(pair[0], pair[1], [0.0], [0.0], beta=0.3)
        assert with_sft(gap, pair[0], 0.5) == pytest.approx(cpo(*pair, beta=0.3, sft_weight=0.5), rel=1e-14)


def test_margins_and_label_probabilities() -> None:
    for pair in pairs():
        winner, loser = reference_impl.log_ratios(*pair)
        z = 0.3 * (winner - loser) - 0.4
        assert dpo(*pair, beta=0.3, margin=0.4) == pytest.approx(math.log1p(math.exp(-z)), rel=1e-13)
        assert hinge(*pair, beta=0.3, margin=0.4) == pytest.approx(max(0.0, 1 - z))
        assert ipo(*pair, beta=0.3, normalise="sum", margin=0.4) == pytest.approx(((z - 0.5) / 0.3) ** 2, rel=1e-12)
        assert slic(*pair, delta=1.0, margin=0.4) == slic(*pair, delta=1.4)
        found = cpo(*pair, beta=0.3, sft_weight=0.0, margin=0.4)
        assert found == dpo(*reference_modifiers.reference_free(*pair), beta=0.3, margin=0.4)
        found = dpo_norm(*pair, beta=2.0, margin=0.3)
        assert found == pytest.approx(simpo(*as_log_ratios(pair), beta=2.0, gamma_ratio=0.15), rel=1e-13)
        found = simpo(*pair, beta=2.0, gamma_ratio=0.1, margin=0.3)
        assert found == pytest.approx(simpo(*pair, beta=2.0, gamma_ratio=0.25), rel=1e-13)
        smoothing = reference_modifiers.smoothing_from(0.7)
        found = dpo(*pair, beta=0.3, label_smoothing=smoothing)
        assert found == pytest.approx(0.7 * dpo_pair(*pair, 0.3) + 0.3 * dpo_pair(*swapped(pair), 0.3), rel=1e-13)


# Divergences


@pytest.mark.parametrize("log_u", [-3.0, -0.2, 0.0, 0.7, 5.0])
def test_divergences_are_derivatives_of_f(log_u: float) -> None:
    """f of the f-DPO paper's table, differentiated by finite differences: the reward is f'(u) but for a constant."""
    generators: dict[str, Callable[[float], float]] = {
        "reverse_kl": lambda u: u * math.log(u),
        "forward_kl": lambda u: -math.log(u),
        "js": lambda u: u * math.log(u) - (u + 1) * math.log((u + 1) / 2),
        "alpha": lambda u: (u**0.7 - 0.7 * u - 0.3) / (0.3 * (0.3 - 1)),
    }
    for name, f in generators.items():

        def slope(u: float, f: Callable[[float], float] = f) -> float:
            return (f(u * (1 + 1e-6)) - f(u * (1 - 1e-6))) / (2e-6 * u)

        found = divergence_reward(log_u, name, 0.3) - divergence_reward(0.0, name, 0.3)
        assert found == pytest.approx(slope(math.exp(log_u)) - slope(1.0), rel=1e-6, abs=1e-8), name


def test_limits_of_the_alpha_divergence() -> None:
    for log_u in (-6.0, -0.3, 0.0, 2.0, 1e4):
        for alpha in (0.0, 1e-9, -1e-9):
            assert divergence_reward(log_u, "alpha", alpha) == pytest.approx(log_u, rel=2e-5)
        assert divergence_reward(log_u, "alpha", 1.0) == pytest.approx(1 + divergence_reward(log_u, "forward_kl"))
    for pair in pairs():
        reverse, forward = dpo(*pair, beta=0.3), dpo(*pair, beta=0.3, divergence="forward_kl")
        assert dpo(*pair, beta=0.3, divergence="alpha", divergence_alpha=1e-9) == pytest.approx(reverse, rel=1e-7)
        assert dpo(*pair, beta=0.3, divergence="alpha", divergence_alpha=1.0) == pytest.approx(forward, rel=1e-13)


def test_a_held_exponent_has_no_gradient() -> None:
    assert divergence_reward(-81.0, "forward_kl") == divergence_reward(-1e4, "forward_kl") == -math.exp(80)
    assert divergence_slope(-81.0, "forward_kl") == divergence_slope(-1e4, "alpha", 0.5) == 0
    assert divergence_slope(-79.0, "forward_kl") == pytest.approx(math.exp(79))


# Modifiers


def test_ld_by_hand() -> None:
    pair = ([-1.0, -2.0, -4.0], [-3.0, -5.0], [-0.5, -0.5, -0.5], [-1.0, -1.0])
    assert ld(*pair, alpha=0.25) == [[-1.0, -2.0, -1.0], [-3.0, -5.0], [-0.5, -0.5, -0.125], [-1.0, -1.0]]
    assert ld_weights(2, 5, 0.25) == [1.0, 1.0]
    for pair in pairs():
        assert dpo(*ld(*pair, alpha=1.0), beta=0.3) == dpo(*pair, beta=0.3)
        shared = min(len(pair[0]), len(pair[1]))
        assert dpo(*ld(*pair, alpha=0.0), beta=0.3) == dpo(*(side[:shared] for side in pair), beta=0.3)


def test_wpo_by_hand() -> None:
    # Uniform over 4 tokens: p = sum of p^2 = 1/4, whatever was said.
    uniform = [math.log(0.25)] * 3
    assert wpo_weight([uniform, uniform[:2]], [uniform, uniform[:2]]) == 1
    # Two tokens at 0.9 and 0.1: sum of p^2 = 0.82.
    rare, squares = [math.log(0.1)] * 2, [math.log(0.82)] * 2
    assert wpo_weight([rare], [squares]) == pytest.approx(0.1 / 0.82)
    assert wpo_weight([rare, uniform], [squares, uniform]) == pytest.approx(0.1 / 0.82)
    assert wpo_weight([[math.log(0.9)]], [[math.log(0.82)]]) == 1
    assert wpo_weight([[math.log(0.9)], rare], [[math.log(0.82)], squares]) == pytest.approx(0.09 / 0.82**2)


def test_humanline_by_hand() -> None:
    policy, reference = [-1.0, -4.0, -0.5, -3.0], [-2.0, -1.0, -2.5, -3.25]
    assert humanline(policy, reference, -1.0, 1.5) == [-1.0, -2.0, -1.0, -3.0]
    assert humanline_passes(policy, reference, -1.0, 1.5) == [1.0, 0.0, 0.0, 1.0]
    assert humanline(policy, reference, -1e3, 1e3) == policy


def test_a_weighted_sum_is_not_made_a_mean() -> None:
    assert weighted_sum([2.0, 3.0, 5.0], [0.8, 0.2, 1.0]) == pytest.approx(7.2)


# Running numbers


def test_the_running_mean_is_the_mean_of_the_batches_means() -> None:
    means = [bco_pair_batch_mean([1.0, 2.0], [-1.0, 0.0]), bco_batch_mean([4.0, 1.0, 0.0], [True, False, False]), 7.0]
    assert means[:2] == [0.5, 2.25]
    state = (0.0, 0)
    for mean in [means[0], None, means[1], means[2]]:
        state = running_mean(state, mean)
    assert state == (pytest.approx(sum(means) / 3), 3)


def test_batches_of_one_kind_have_no_middle() -> None:
    assert bco_batch_mean([1.0, 2.0], [True, True]) is None
    assert bco_batch_mean([1.0, 2.0], [False, False]) is None


def test_the_reference_point_is_never_negative() -> None:
    assert kto_reference_point([[-1.0, -1.0], [-5.0]], [[-4.0, -2.0], [-4.0]]) == 1.5
    assert kto_reference_point([[-4.0]], [[-1.0]]) == 0


# Ranked answers


def test_plackett_luce_by_hand() -> None:
    rewards = [1.0, -0.5, 2.0, 0.25]

    def found(scores: list[float]) -> float:
        return plackett_luce([[2 * r] for r in rewards], [[0.0]] * 4, scores, beta=0.5)

    def term(first: int, *rest: int) -> float:
        return math.log(sum(math.exp(rewards[j]) for j in (first, *rest))) - rewards[first]

    assert found([4, 3, 2, 1]) == pytest.approx(term(0, 1, 2, 3) + term(1, 2, 3) + term(2, 3))
    assert found([1, 2, 2, 0]) == pytest.approx(term(1, 0, 3) + term(2, 0, 3) + term(0, 3))
    assert found([1, 1, 0, 0]) == pytest.approx(term(0, 2, 3) + term(1, 2, 3))


def test_aot_by_hand() -> None:
    policy_winners, policy_losers = [[-1.0], [-2.0], [-3.0]], [[-2.0], [-1.0], [-3.5]]
    reference_winners, reference_losers = [[-2.0], [-1.0], [-1.0]], [[-1.0], [-4.0], [-1.25]]
    batch = (policy_winners, policy_losers, reference_winners, reference_losers)
    # Policy 1, -1, 0.5 against the reference's -1, 0.25, 3 in order.
    assert reference_ranked.aot_gaps(*batch) == [-2.0, 0.0, 0.25]
    # Winners' log-ratios 1, -1, -2; losers' -1, 3, -2.25.
    assert reference_ranked.matched_by_rank([1.0, -1.0, -2.0], [-1.0, 3.0, -2.25]) == [-2.0, 0.0, 0.25]
    assert aot_unpaired(*batch, beta=1.0) == pytest.approx([math.log1p(math.exp(-gap)) for gap in (-2.0, 0.0, 0.25)])


def test_odds_by_hand() -> None:
    assert log_odds([math.log(0.5)] * 3) == pytest.approx(0, abs=1e-15)
    assert log_odds([math.log(0.8), math.log(0.8)]) == pytest.approx(math.log(4))
    half, most = [math.log(0.5)], [math.log(0.8)]
    assert orpo(most, half, beta=0.1) == pytest.approx(-math.log(0.8) - 0.1 * math.log(sigmoid(math.log(4))))
    assert orpo(most, half, beta=0.0, prompt=half) == pytest.approx(-(math.log(0.8) + math.log(0.5)) / 2)


# Extremes

FAR = [(winner, loser) for winner in (-1e4, 0.0, 1e4) for loser in (-1e4, 0.0, 1e4)]


@pytest.mark.parametrize(("name", "hyper"), PAIRWISE, ids=NAMES)
@pytest.mark.parametrize(("winner", "loser"), FAR)
def test_losses_and_slopes_are_finite_at_extremes(
    name: str, hyper: dict[str, Any], winner: float, loser: float
) -> None:
    """Log-ratios of 1e4 either way, with log-probs that can be."""

    def sides(log_ratio: float) -> tuple[list[float], list[float]]:
        return ([0.0, -1.0], [-log_ratio, -1.0]) if log_ratio > 0 else ([log_ratio, -1.0], [0.0, -1.0])

    (policy_winner, reference_winner), (policy_loser, reference_loser) = sides(winner), sides(loser)
    pair = (policy_winner, policy_loser, reference_winner, reference_loser)
    assert math.isfinite(FUNCTIONS[name](*pair, **hyper))
    assert all(map(math.isfinite, FUNCTIONS[f"{name}_slope"](*pair, **hyper)))


def test_the_rest_is_finite_at_extremes() -> None:
    for ratio in (-1e4, 1e4):
        for desirable in (True, False):
            assert math.isfinite(kto([ratio], [0.0], desirable, beta=0.5, reference_point=1e4))
            assert math.isfinite(bco([ratio], [0.0], desirable, beta=0.5, delta=1e4))
    ratios = [[1e4], [-1e4], [0.0], [-1e4]]
    assert math.isfinite(plackett_luce(ratios, [[0.0]] * 4, [0, 1, 2, 3], beta=1.0))
    slopes = reference_ranked.plackett_luce_slope(ratios, [[0.0]] * 4, [0, 1, 2, 3], beta=1.0)
    assert all(map(math.isfinite, slopes))
    assert all(map(math.isfinite, aot(ratios, ratios[::-1], ratios[1:] + ratios[:1], ratios, beta=1.0)))
    assert orpo([0.0], [0.0], beta=0.1) == pytest.approx(0.1 * LN_2)
    assert math.isfinite(orpo([0.0], [-1.0], beta=0.1))
    assert wpo_weight([[-1e4]], [[-1.0]]) == 0


# The committed values


def test_golden_values_are_these_functions() -> None:
    command = [sys.executable, "scripts/make_golden_losses.py", "--check"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_golden_values_are_finite_and_cover_every_loss() -> None:
    golden = json.loads((REPOSITORY / "tests" / "parity" / "golden.json").read_text(encoding="utf-8"))
    sections = ("pairwise", "unpaired", "batch", "ranked")
    found = {case["loss"] for section in sections for case in golden[section]}
    others = {"kto", "bco", "apo_zero_unpaired", "aot", "aot_unpaired", "plackett_luce"}
    assert found == {name for name, _ in PAIRWISE} | others
    for case in (case for section in sections for case in golden[section]):
        numbers = json.dumps([case["losses"], case["slopes"]])
        assert "NaN" not in numbers
        assert "Infinity" not in numbers
