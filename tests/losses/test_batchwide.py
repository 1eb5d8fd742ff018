"""Losses of a whole batch, of answers judged one by one and of rankings, against the papers in numpy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.loss_cases import CPU, JUDGED, RANKED, logps_of, loss, losses_of, preferences_of, random_answers
from parity import reference_ranked, reference_rewards, reference_unpaired
from parity.reference_impl import log_ratio

from dpo_cli.losses import LOSSES, AnswerLogps

PAIRS = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
LABELS = [True, False, True, True, False, False, True, False, True, True]


def batch_of(policy: Any, reference: Any) -> list[list[Any]]:
    """Winners and losers of the policy, then of the reference."""
    return [[answers[pair[side]] for pair in PAIRS] for answers in (policy, reference) for side in (0, 1)]


def spread(policy: Any, slopes: dict[int, float]) -> list[float]:
    return [slopes.get(number, 0.0) for number, tokens in enumerate(policy) for _ in tokens]


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
@pytest.mark.parametrize(("beta", "smoothing"), [(0.01, 0.0), (0.4, 0.0), (0.4, 0.2)])
def test_sorted_losses_and_their_gradients_are_the_papers(name: str, beta: float, smoothing: float) -> None:
    policy, reference = random_answers(1, 10)
    logps = logps_of(policy, reference)
    logps.policy.requires_grad_()
    found = losses_of(loss(name, beta=beta, label_smoothing=smoothing), logps, preferences_of(*PAIRS))
    batch, given = batch_of(policy, reference), {"beta": beta, "label_smoothing": smoothing}
    assert found.tolist() == pytest.approx(getattr(reference_ranked, name)(*batch, **given), rel=1e-11)
    found.sum().backward()
    winners, losers = getattr(reference_ranked, f"{name}_slope")(*batch, **given)
    slopes = {pair[0]: slope for pair, slope in zip(PAIRS, winners, strict=True)}
    slopes |= {pair[1]: slope for pair, slope in zip(PAIRS, losers, strict=True)}
    assert logps.policy.grad.tolist() == pytest.approx(spread(policy, slopes), rel=1e-9)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired", "bco_pair"])
def test_a_split_batch_has_the_losses_and_gradients_of_the_whole(name: str) -> None:
    policy, reference = random_answers(1, 10)
    which = loss(name, beta=0.4)
    whole = logps_of(policy, reference)
    whole.policy.requires_grad_()
    losses_of(which, whole, preferences_of(*PAIRS)).sum().backward()
    gathered = {"batch": which.gather(whole, preferences_of(*PAIRS), "batch").double()}
    contexts, _ = which.contexts(gathered, {})
    found: dict[int, float] = {}
    parts = logps_of(policy, reference)
    parts.policy.requires_grad_()
    for rows in ([3], [0, 4], [2, 1]):
        some = preferences_of(*[PAIRS[row] for row in rows], rows=rows)
        result = which(AnswerLogps(parts.policy, parts.reference, parts.answer, parts.count), some, contexts)
        result.losses.sum().backward()
        found |= dict(zip(rows, result.losses.tolist(), strict=True))
    at_once = losses_of(which, whole, preferences_of(*PAIRS)).tolist()
    assert [found[row] for row in range(len(PAIRS))] == pytest.approx(at_once, rel=1e-14)
    assert parts.policy.grad.tolist() == pytest.approx(whole.policy.grad.tolist(), rel=1e-12)


def test_bco_pair_is_shifted_by_the_running_mean_of_rewards() -> None:
    which, state = loss("bco_pair", beta=0.3), {}
    known = (0.0, 0)
    for seed in range(3):
        policy, reference = random_answers(seed, 10)
        logps, preferences = logps_of(policy, reference), preferences_of(*PAIRS)
        winners, losers = ([0.3 * log_ratio(policy[p[s]], reference[p[s]]) for p in PAIRS] for s in (0, 1))
        known = reference_unpaired.running_mean(known, reference_unpaired.bco_pair_batch_mean(winners, losers))
        contexts, state = which.contexts({"batch": which.gather(logps, preferences, "batch").double()}, state)
        assert contexts["bco_pair"] == pytest.approx(known[0], rel=1e-12)
        assert state == {"bco_pair": {"mean": pytest.approx(known[0], rel=1e-12), "count": seed + 1}}
        expected = [
            reference_rewards.bco_pair(policy[w], policy[o], reference[w], reference[o], beta=0.3, delta=known[0])
            for w, o in PAIRS
        ]
        assert which(logps, preferences, contexts).losses.tolist() == pytest.approx(expected, rel=1e-11)


def judged(name: str, **changes: Any) -> tuple[list[float], list[float], Any, Any]:
    """Our losses and gradient of ten judged answers, and the answers."""
    policy, reference = random_answers(2, 10)
    logps = logps_of(policy, reference)
    logps.policy.requires_grad_()
    others = logps_of(*random_answers(3, 4))
    found = losses_of(
        loss(name, **changes), logps, preferences_of(labels=LABELS), mismatched=others if name == "kto" else None
    )
    found.sum().backward()
    return found.tolist(), logps.policy.grad.tolist(), policy, reference


def check(found: Any, name: str, **given: Any) -> None:
    losses, gradient, policy, reference = found
    function, slope = getattr(reference_unpaired, name), getattr(reference_unpaired, f"{name}_slope")
    rows = list(zip(policy, reference, LABELS, strict=True))
    assert losses == pytest.approx([function(*row, **given) for row in rows], rel=1e-11)
    slopes = {number: slope(*row, **given) for number, row in enumerate(rows)}
    assert gradient == pytest.approx(spread(policy, slopes), rel=1e-9)


@pytest.mark.parametrize(("beta", "desirable", "undesirable"), [(0.1, 1.0, 1.0), (0.5, 1.0, 1.33)])
def test_kto_is_the_papers(beta: float, desirable: float, undesirable: float) -> None:
    point = reference_unpaired.kto_reference_point(*random_answers(3, 4))
    weights = {"desirable_weight": desirable, "undesirable_weight": undesirable}
    check(judged("kto", beta=beta, **weights), "kto", beta=beta, reference_point=point, **weights)


def test_ktos_kl_is_never_below_zero() -> None:
    reference, policy = random_answers(3, 4)  # the other way round
    assert (reference_unpaired.kto_reference_point(policy, reference) == 0.0) != (
        reference_unpaired.kto_reference_point(reference, policy) == 0.0
    )
    which = loss("kto")
    for one, other in ((policy, reference), (reference, policy)):
        numbers = which.gather(logps_of(one, other), preferences_of(labels=[True] * 4), "mismatched").double()
        contexts, _ = which.contexts({"mismatched": numbers}, {})
        assert contexts["kto"] == pytest.approx(reference_unpaired.kto_reference_point(one, other), rel=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_bco_is_the_papers(beta: float) -> None:
    policy, reference = random_answers(2, 10)
    rewards = [beta * log_ratio(p, r) for p, r in zip(policy, reference, strict=True)]
    delta = reference_unpaired.bco_batch_mean(rewards, LABELS)
    check(judged("bco", beta=beta), "bco", beta=beta, delta=delta)


def test_apo_zero_unpaired_is_the_papers() -> None:
    check(judged("apo_zero_unpaired", beta=0.3), "apo_zero_unpaired", beta=0.3)


RANKINGS = [[0, 1, 2, 3], [2, 0, 3, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 1, 2]]


@pytest.mark.parametrize("ranks", RANKINGS)
@pytest.mark.parametrize("beta", [0.1, 0.6])
def test_plackett_luce_is_the_papers(ranks: list[int], beta: float) -> None:
    policy, reference = random_answers(4, 4)
    logps = logps_of(policy, reference)
    logps.policy.requires_grad_()
    found = losses_of(loss("plackett_luce", beta=beta), logps, preferences_of(ranks=ranks))
    scores = [-rank for rank in ranks]
    assert found.tolist() == pytest.approx(
        [reference_ranked.plackett_luce(policy, reference, scores, beta=beta)], rel=1e-11
    )
    found.sum().backward()
    slopes = reference_ranked.plackett_luce_slope(policy, reference, scores, beta=beta)
    assert logps.policy.grad.tolist() == pytest.approx(spread(policy, dict(enumerate(slopes))), rel=1e-9, abs=1e-15)


def test_a_ranking_of_two_is_dpo() -> None:
    policy, reference = random_answers(5, 2)
    logps = logps_of(policy, reference)
    ranked = losses_of(loss("plackett_luce", beta=0.3), logps, preferences_of(ranks=[1, 0]))
    assert ranked.tolist() == pytest.approx(losses_of(loss("dpo", beta=0.3), logps, preferences_of((1, 0))).tolist())


def test_values_where_policy_is_reference() -> None:
    policy, _ = random_answers(2, 10)
    logps = logps_of(policy, policy)
    assert losses_of(loss("kto"), logps, preferences_of(labels=LABELS), mismatched=logps).tolist() == [0.5] * 10
    assert losses_of(loss("bco"), logps, preferences_of(labels=LABELS)).tolist() == pytest.approx([math.log(2)] * 10)
    assert losses_of(loss("apo_zero_unpaired"), logps, preferences_of(labels=LABELS)).tolist() == [0.5] * 10
    four = logps_of(policy[:4], policy[:4])
    ranked = losses_of(loss("plackett_luce"), four, preferences_of(ranks=[0, 1, 2, 3]))
    assert ranked.tolist() == pytest.approx([math.log(24)])


@pytest.mark.parametrize("name", [*JUDGED, *RANKED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_rewards_are_finite(name: str, dtype: torch.dtype) -> None:
    logps = logps_of([[-1e4], [-1.0], [-1e4], [-1.0]], [[-1.0], [-1e4], [-1.0], [-1e4]], dtype)
    logps.policy.requires_grad_()
    preferences = preferences_of(labels=[True, True, False, False], ranks=[0, 1, 2, 3], dtype=dtype)
    found = losses_of(loss(name, beta=1.0), logps, preferences, mismatched=logps if name == "kto" else None)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(logps.policy.grad).all()


def test_every_other_loss_is_here() -> None:
    kinds = {"answers": JUDGED, "rankings": RANKED}
    for kind, names in kinds.items():
        assert sorted(name for name, spec in LOSSES.items() if spec.kind == kind) == sorted(names)
    assert CPU.type == "cpu"
