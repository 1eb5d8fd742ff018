"""What changes a loss's inputs or is added to it, against the papers in numpy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.loss_cases import logps_of, loss, losses_of, preferences_of, random_answers, settings
from parity import reference_impl, reference_modifiers, reference_rewards

from dpo_cli.losses import make_loss

PAIRS = [(0, 1), (2, 0), (2, 3), (4, 1), (3, 4), (4, 2)]


def pair(policy: Any, reference: Any, winner: int, loser: int) -> list[Any]:
    return [policy[winner], policy[loser], reference[winner], reference[loser]]


def test_sft_term() -> None:
    policy, reference = random_answers()
    found = losses_of(loss("dpo", sft_weight=0.7), logps_of(policy, reference), preferences_of(*PAIRS))
    expected = [
        reference_modifiers.with_sft(reference_impl.dpo(*pair(policy, reference, w, o), beta=0.1), policy[w], 0.7)
        for w, o in PAIRS
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("changes", [{"ld_alpha": 0.3}, {"humanline": [-0.5, 0.8]}])
def test_sft_term_is_of_the_log_probs_as_they_are(changes: dict[str, Any]) -> None:
    """LD-DPO weighs and humanline clamps what is compared, not the winner's likelihood."""
    policy, reference = random_answers()
    logps, preferences = logps_of(policy, reference), preferences_of(*PAIRS)
    bare = losses_of(loss("dpo", **changes), logps, preferences).tolist()
    found = losses_of(loss("dpo", sft_weight=0.7, **changes), logps, preferences)
    expected = [reference_modifiers.with_sft(value, policy[w], 0.7) for value, (w, _) in zip(bare, PAIRS, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("name", ["dpo", "nca"])
def test_ld_dpo_weighs_the_tail_of_policy_and_reference(name: str, alpha: float) -> None:
    policy, reference = random_answers()
    logps = logps_of(policy, reference)
    logps.policy.requires_grad_()
    which = loss(name, ld_alpha=alpha, beta=0.3)
    function = reference_impl.dpo if name == "dpo" else reference_rewards.nca
    expected = [
        function(*reference_modifiers.ld(*pair(policy, reference, w, o), alpha=alpha), beta=0.3) for w, o in PAIRS
    ]
    found = losses_of(which, logps, preferences_of(*PAIRS))
    assert found.tolist() == pytest.approx(expected, rel=1e-11)
    # A token in the tail pulls alpha times as hard as one before it: answer 2 (7 tokens) against 0 (3 tokens).
    losses_of(which, logps, preferences_of((2, 0))).sum().backward()
    of_two = logps.policy.grad[4:11].tolist()
    assert of_two[3:] == pytest.approx([alpha * of_two[0]] * 4, rel=1e-12, abs=1e-15)


def test_wpo_weighs_by_both_answers_likelihood_and_at_most_one() -> None:
    policy, reference = random_answers()
    squares = [[0.7 * x - 0.2 for x in tokens] for tokens in policy]
    tokens, logs = ([x for some in lists for x in some] for lists in (policy, squares))
    logps = logps_of(policy, reference, concentration=torch.tensor(tokens).double() - torch.tensor(logs).double())
    logps.policy.requires_grad_()
    weights = [reference_modifiers.wpo_weight([policy[w], policy[o]], [squares[w], squares[o]]) for w, o in PAIRS]
    assert min(weights) < 0.9
    plain = losses_of(loss("dpo"), logps, preferences_of(*PAIRS))
    found = losses_of(loss("dpo", wpo=True), logps, preferences_of(*PAIRS))
    expected = [weight * value for weight, value in zip(weights, plain.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert loss("dpo", wpo=True).needs_concentration
    # No gradient flows through the weight.
    found[0].backward()
    slope = reference_impl.dpo_slope(*pair(policy, reference, *PAIRS[0]), beta=0.1)[0]
    assert logps.policy.grad[:3].tolist() == pytest.approx([weights[0] * slope] * 3, rel=1e-6)


def test_wpo_is_never_over_one() -> None:
    policy, reference = random_answers()
    sure = logps_of(policy, reference, concentration=torch.full([27], 20.0, dtype=torch.float64))
    plain = losses_of(loss("dpo"), sure, preferences_of(*PAIRS))
    assert losses_of(loss("dpo", wpo=True), sure, preferences_of(*PAIRS)).tolist() == plain.tolist()


def test_humanline_clamps_token_ratios() -> None:
    policy, reference = random_answers()
    logps = logps_of(policy, reference)
    logps.policy.requires_grad_()
    held = [reference_modifiers.humanline(p, r, -0.5, 0.8) for p, r in zip(policy, reference, strict=True)]
    expected = [reference_impl.dpo(*pair(held, reference, w, o), beta=0.3) for w, o in PAIRS]
    found = losses_of(loss("dpo", beta=0.3, humanline=[-0.5, 0.8]), logps, preferences_of(*PAIRS))
    assert found.tolist() == pytest.approx(expected, rel=1e-11)
    found.sum().backward()
    passes = [
        x for p, r in zip(policy, reference, strict=True) for x in reference_modifiers.humanline_passes(p, r, -0.5, 0.8)
    ]
    assert 0 < sum(passes) < len(passes)
    assert [float(slope != 0) for slope in logps.policy.grad.tolist()] == passes


def test_reference_free() -> None:
    policy, reference = random_answers()
    which = loss("dpo", reference_free=True)
    expected = [
        reference_impl.dpo(*reference_modifiers.reference_free(*pair(policy, reference, w, o)), beta=0.1)
        for w, o in PAIRS
    ]
    assert losses_of(which, logps_of(policy, None), preferences_of(*PAIRS)).tolist() == pytest.approx(expected)
    assert not which.needs_reference


def test_a_weighted_sum_is_the_sum_of_its_terms() -> None:
    policy, reference = random_answers()
    logps, preferences = logps_of(policy, reference), preferences_of(*PAIRS)
    terms = {"dpo": settings("dpo", beta=0.3), "sft": settings("sft"), "bco_pair": settings("bco_pair")}
    weights = {"dpo": 0.8, "sft": 0.5, "bco_pair": -0.2}
    which = make_loss({"name": "sum", "terms": terms, "weights": weights})
    parts = [losses_of(make_loss(terms[name]), logps, preferences).tolist() for name in terms]
    expected = [reference_modifiers.weighted_sum(column, list(weights.values())) for column in zip(*parts, strict=True)]
    contexts, _ = which.contexts({"batch": which.gather(logps, preferences, "batch").double()}, {})
    result = which(logps, preferences, contexts)
    assert result.losses.tolist() == pytest.approx(expected, rel=1e-12)
    for name, part in zip(terms, parts, strict=True):
        assert result.metrics[f"loss/{name}"].tolist() == pytest.approx(part, rel=1e-12)


# -- what rows say


@pytest.mark.parametrize("name", ["dpo", "ipo", "hinge", "simpo", "slic", "orpo", "sft"])
def test_weights_scale_comparisons(name: str) -> None:
    policy, reference = random_answers()
    logps = logps_of(policy, reference)
    plain = losses_of(loss(name), logps, preferences_of(*PAIRS)).tolist()
    weights = [0.0, 0.5, 1.0, 2.0, 3.0, 0.25]
    weighted = preferences_of(*[(*p, w) for p, w in zip(PAIRS, weights, strict=True)])
    expected = [weight * value for weight, value in zip(weights, plain, strict=True)]
    assert losses_of(loss(name), logps, weighted).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["dpo", "robust", "hinge", "exo", "discopop", "dpo_norm", "ipo"])
def test_margins_are_taken_from_the_gap_in_reward_units(name: str) -> None:
    policy, reference = random_answers()
    function = getattr(reference_impl, name, None) or getattr(reference_rewards, name)
    which = loss(name)
    hyper = dict(next(iter(which.terms.values()))[1].hyper)
    margins = [0.5, -0.3, 0.0, 1.0, 2.0, 0.1]
    expected = [
        function(*pair(policy, reference, w, o), **hyper, margin=m) for (w, o), m in zip(PAIRS, margins, strict=True)
    ]
    given = preferences_of(*[(*p, 1.0, m) for p, m in zip(PAIRS, margins, strict=True)])
    found = losses_of(which, logps_of(policy, reference), given).tolist()
    assert found == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("name", ["dpo", "ipo", "hinge", "nca", "sppo", "apo_zero", "apo_down", "discopop", "bco_pair"])
def test_a_labels_probability_is_the_expectation_over_labels(name: str) -> None:
    policy, reference = random_answers()
    logps = logps_of(policy, reference)
    which = loss(name)
    contexts, _ = which.contexts({"batch": which.gather(logps, preferences_of(*PAIRS), "batch").double()}, {})
    right = which(logps, preferences_of(*PAIRS), contexts).losses
    wrong = which(logps, preferences_of(*[(o, w) for w, o in PAIRS]), contexts).losses
    soft = preferences_of(*[(*p, 1.0, 0.0, 0.7) for p in PAIRS])
    expected = (0.7 * right + 0.3 * wrong).tolist()
    assert which(logps, soft, contexts).losses.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["dpo", "dpo_norm", "simpo", "alphapo", "cpo"])
def test_a_labels_probability_is_one_less_the_smoothing(name: str) -> None:
    """Also where the two labels are not mirror images, as with SimPO's margin; whatever the smoothing was."""
    policy, reference = random_answers()
    logps = logps_of(policy, reference)
    soft = preferences_of(*[(*p, 1.0, 0.0, 0.7) for p in PAIRS])
    smoothed = losses_of(loss(name, label_smoothing=0.3), logps, preferences_of(*PAIRS))
    found = losses_of(loss(name, label_smoothing=0.1), logps, soft)
    assert found.tolist() == pytest.approx(smoothed.tolist(), rel=1e-12)


def test_orpos_likelihood_has_no_other_label() -> None:
    policy, _ = random_answers()
    logps, which = logps_of(policy, None), loss("orpo", beta=0.3)
    sft = losses_of(loss("sft"), logps, preferences_of(*PAIRS))
    odds = [losses_of(which, logps, preferences_of(*pairs)) for pairs in (PAIRS, [(o, w) for w, o in PAIRS])]
    rejected = losses_of(loss("sft"), logps, preferences_of(*[(o, w) for w, o in PAIRS]))
    expected = sft + 0.7 * (odds[0] - sft) + 0.3 * (odds[1] - rejected)
    soft = preferences_of(*[(*p, 1.0, 0.0, 0.7) for p in PAIRS])
    assert losses_of(which, logps, soft).tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_terms_of_a_sum_leave_columns_that_are_not_theirs() -> None:
    """A label's probability is the preference's; the likelihood beside it is the chosen answer's whatever it says."""
    policy, reference = random_answers()
    logps, soft = logps_of(policy, reference), preferences_of(*[(*p, 1.0, 0.4, 0.7) for p in PAIRS])
    terms = {"dpo": settings("dpo"), "sft": settings("sft")}
    both = make_loss({"name": "sum", "terms": terms, "weights": {"dpo": 1.0, "sft": 0.5}})
    expected = losses_of(loss("dpo"), logps, soft) + 0.5 * losses_of(loss("sft"), logps, preferences_of(*PAIRS))
    assert losses_of(both, logps, soft).tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_reported_log_probs_are_the_policys_own() -> None:
    """Of all tokens alike, whatever a modifier makes of them; WPO's weight too."""
    policy, reference = random_answers()
    squares = torch.tensor([0.1 * x for tokens in policy for x in tokens]).double()
    logps, preferences = logps_of(policy, reference, concentration=squares), preferences_of(*PAIRS)
    plain = loss("dpo", wpo=True)(logps, preferences)
    for changes in ({"humanline": [-0.1, 0.1]}, {"ld_alpha": 0.2}):
        changed = loss("dpo", wpo=True, **changes)(logps, preferences)
        for name in ("logps/chosen", "logps/rejected"):
            assert changed.metrics[name].tolist() == plain.metrics[name].tolist()
        unweighted = loss("dpo", **changes)(logps, preferences).losses
        weights = plain.losses / loss("dpo")(logps, preferences).losses
        assert changed.losses.tolist() == pytest.approx((weights * unweighted).tolist(), rel=1e-9)


def test_exo_takes_a_labels_probability_for_its_target() -> None:
    policy, reference = random_answers()
    soft = preferences_of(*[(*p, 1.0, 0.0, 0.7) for p in PAIRS])
    expected = [reference_impl.exo(*pair(policy, reference, w, o), beta=0.1, label_smoothing=0.3) for w, o in PAIRS]
    found = losses_of(loss("exo"), logps_of(policy, reference), soft)
    assert found.tolist() == pytest.approx(expected, rel=1e-11)
