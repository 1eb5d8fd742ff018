"""Every loss of comparisons against the papers, in numpy: values, gradients, limits and extremes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loss_cases import PAIRWISE, logps_of, loss, losses_of, preferences_of, random_answers
from parity import reference_free, reference_impl, reference_rewards

from dpo_cli.losses import LOSSES, AnswerLogps

PAIRS = [(0, 1), (2, 0), (2, 3), (4, 1), (3, 4), (4, 2)]
HYPER: list[tuple[str, dict[str, Any]]] = [
    ("dpo", {}),
    ("dpo", {"beta": 2.0, "label_smoothing": 0.2}),
    ("dpo", {"divergence": "forward_kl", "beta": 0.3}),
    ("dpo", {"divergence": "js", "beta": 0.7}),
    ("dpo", {"divergence": "alpha", "divergence_alpha": 0.4}),
    ("robust", {}),
    ("robust", {"beta": 0.5, "label_smoothing": 0.3, "divergence": "js"}),
    ("ipo", {}),
    ("ipo", {"beta": 0.7, "normalise": "sum"}),
    ("hinge", {}),
    ("hinge", {"beta": 1.0}),
    ("slic", {}),
    ("slic", {"delta": 5.0, "sft_weight": 0.0}),
    ("exo", {}),
    ("exo", {"beta": 1.0, "label_smoothing": 0.2, "divergence": "alpha", "divergence_alpha": 0.7}),
    ("nca", {}),
    ("nca", {"beta": 0.8}),
    ("sppo", {}),
    ("sppo", {"beta": 0.5}),
    ("apo_zero", {}),
    ("apo_zero", {"beta": 1.1}),
    ("apo_down", {}),
    ("apo_down", {"beta": 0.9}),
    ("discopop", {}),
    ("discopop", {"beta": 0.6, "tau": 0.5}),
    ("dpo_norm", {}),
    ("dpo_norm", {"beta": 0.4, "label_smoothing": 0.1}),
    ("simpo", {}),
    ("simpo", {"beta": 10.0, "gamma_ratio": 0.3, "label_smoothing": 0.1}),
    ("alphapo", {}),
    ("alphapo", {"alpha": 0.0, "beta": 1.0}),
    ("alphapo", {"alpha": -0.5}),
    ("cpo", {}),
    ("cpo", {"beta": 0.4, "sft_weight": 0.0, "label_smoothing": 0.3}),
    ("orpo", {}),
    ("orpo", {"beta": 1.5}),
    ("sft", {}),
]
REWARD_AWARE = ["rpo_bwd_kl", "rpo_fwd_kl", "rpo_sq"]
GAPS = [0.3, -0.5, 2.0, 0.0, 1.0, -3.0]
NOT_THE_PAPERS = {"wpo", "ld_alpha", "humanline", "reference_free"}
"""Modifiers, which the functions in numpy don't take."""


def in_numpy(name: str, suffix: str = "") -> Callable[..., Any]:
    modules = (reference_impl, reference_rewards, reference_free)
    return next(getattr(module, name + suffix) for module in modules if hasattr(module, name + suffix))


def keywords(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters as the functions in numpy take them."""
    (_, term) = next(iter(loss(name, **changes).terms.values()))
    given = dict(term.hyper)
    given.pop("nll", None)
    if name in ("slic", "cpo"):
        given["sft_weight"] = term.modifiers.sft_weight
    if term.modifiers.divergence != "reverse_kl":
        given["divergence"] = term.modifiers.divergence
        if term.modifiers.divergence_alpha is not None:
            given["divergence_alpha"] = term.modifiers.divergence_alpha
    if name == "alphapo":
        assert given.pop("label_smoothing") == 0.0
    return given


def one_by_one(name: str, changes: dict[str, Any], policy: Any, reference: Any, *, suffix: str = "") -> list[Any]:
    function, given = in_numpy(name, suffix), keywords(name, changes)
    return [function(policy[w], policy[o], reference[w], reference[o], **given) for w, o in PAIRS]


@pytest.mark.parametrize(("name", "changes"), HYPER)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 3e-5)])
def test_losses_are_the_papers(name: str, changes: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    policy, reference = random_answers()
    found = losses_of(loss(name, **changes), logps_of(policy, reference, dtype), preferences_of(*PAIRS, dtype=dtype))
    assert found.dtype == dtype
    assert found.tolist() == pytest.approx(one_by_one(name, changes, policy, reference), rel=tolerance, abs=1e-6)


@pytest.mark.parametrize(("name", "changes"), HYPER)
def test_gradients_are_the_closed_forms(name: str, changes: dict[str, Any]) -> None:
    policy, reference = random_answers()
    logps = logps_of(policy, reference)
    logps.policy.requires_grad_()
    losses_of(loss(name, **changes), logps, preferences_of(*PAIRS)).sum().backward()
    slopes = [0.0] * len(policy)
    found = one_by_one(name, changes, policy, reference, suffix="_slope")
    for (winner, loser), (of_winner, of_loser) in zip(PAIRS, found, strict=True):
        slopes[winner] += of_winner
        slopes[loser] += of_loser
    # Every token of an answer pulls alike.
    expected = [slopes[number] for number, tokens in enumerate(policy) for _ in tokens]
    assert logps.policy.grad.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", REWARD_AWARE)
@pytest.mark.parametrize(("beta", "eta"), [(0.1, 1.0), (0.7, 2.5)])
def test_reward_aware_losses_are_the_papers(name: str, beta: float, eta: float) -> None:
    policy, reference = random_answers()
    logps = logps_of(policy, reference)
    logps.policy.requires_grad_()
    pairs = [(*pair, 1.0, gap) for pair, gap in zip(PAIRS, GAPS, strict=True)]
    found = losses_of(loss(name, beta=beta, eta=eta), logps, preferences_of(*pairs))
    expected, slopes = [], [0.0] * len(policy)
    for (w, o), gap in zip(PAIRS, GAPS, strict=True):
        pair, given = (policy[w], policy[o], reference[w], reference[o]), {"beta": beta, "eta": eta, "true_gap": gap}
        expected.append(in_numpy(name)(*pair, **given))
        of_winner, of_loser = in_numpy(name, "_slope")(*pair, **given)
        slopes[w] += of_winner
        slopes[o] += of_loser
    assert found.tolist() == pytest.approx(expected, rel=1e-11)
    found.sum().backward()
    tokens = [slopes[number] for number, some in enumerate(policy) for _ in some]
    assert logps.policy.grad.tolist() == pytest.approx(tokens, rel=1e-9, abs=1e-12)


GOLDEN = json.loads((Path(__file__).parents[1] / "parity" / "golden.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["pairwise"], ids=lambda case: case["loss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_values_also_where_margins_are_extreme(case: dict[str, Any], dtype: torch.dtype) -> None:
    """Fixed comparisons, some 10,000 nats apart: finite losses and gradients, as written down."""
    changes = dict(case["hyperparameters"])
    margin = changes.pop("true_gap", None) or changes.pop("margin", 0.0)
    contexts = {"bco_pair": changes.pop("delta")} if case["loss"] == "bco_pair" else {}
    more: dict[str, Any] = {}
    if prompt := changes.pop("prompt", None):
        changes["nll"] = "full"
        more = {
            "prompt": torch.tensor([sum(prompt)] * 2, dtype=dtype),
            "prompt_lengths": torch.tensor([len(prompt)] * 2),
        }
    which = loss(case["loss"], **changes)
    for answers, expected, slopes in zip(GOLDEN["comparisons"].values(), case["losses"], case["slopes"], strict=True):
        logps = logps_of(answers[:2], answers[2:], dtype, **more)
        logps.policy.requires_grad_()
        preferences = preferences_of((0, 1, 1.0, margin), dtype=dtype)
        found = which(logps, preferences, contexts).losses
        assert found.item() == pytest.approx(expected, rel=2e-4 if dtype == torch.float32 else 1e-10, abs=1e-6)
        found.sum().backward()
        tokens = [slope for slope, some in zip(slopes, answers[:2], strict=True) for _ in some]
        assert torch.isfinite(logps.policy.grad).all()
        assert logps.policy.grad.tolist() == pytest.approx(tokens, rel=2e-3, abs=1e-6)


def test_every_loss_of_comparisons_is_here() -> None:
    pairwise = [name for name, spec in LOSSES.items() if spec.kind == "pairs"]
    assert sorted(pairwise) == sorted(PAIRWISE)
    elsewhere = {"bco_pair", "aot", "aot_unpaired"}  # test_batchwide.py
    assert {name for name, _ in HYPER} | set(REWARD_AWARE) | elsewhere == set(PAIRWISE)


@pytest.mark.parametrize("name", [name for name in PAIRWISE if name != "sft"])
def test_gradcheck(name: str) -> None:
    policy, reference = random_answers()
    start, which = logps_of(policy, reference), loss(name)
    pairs = [(*pair, 1.0, 0.4) for pair in PAIRS] if name in REWARD_AWARE else PAIRS

    def losses(tokens: torch.Tensor) -> torch.Tensor:
        logps = AnswerLogps(tokens, start.reference, start.answer, start.count)
        return losses_of(which, logps, preferences_of(*pairs)).sum()

    assert torch.autograd.gradcheck(losses, start.policy.clone().requires_grad_(), atol=1e-4, rtol=1e-3)


# At policy = reference, with the defaults of the configuration.
OWN_VALUE = {
    "dpo": math.log(2),
    "robust": math.log(2),
    "ipo": (1 / (2 * 0.1)) ** 2,
    "hinge": 1.0,
    "exo": 0.5 * (math.log(0.5 / 0.999) + math.log(0.5 / 0.001)),
    "nca": 2 * math.log(2),
    "bco_pair": 2 * math.log(2),
    "sppo": 2 * (1 / (2 * 0.001)) ** 2,
    "aot": math.log(2),
    "aot_unpaired": math.log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": (1 + math.log(2)) / 2,
    "dpo_norm": math.log(2),
}


@pytest.mark.parametrize("name", OWN_VALUE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_where_policy_is_reference(name: str, dtype: torch.dtype) -> None:
    policy, _ = random_answers()
    found = losses_of(loss(name), logps_of(policy, policy, dtype), preferences_of(*PAIRS, dtype=dtype))
    assert found.tolist() == pytest.approx(
        [OWN_VALUE[name]] * len(PAIRS), rel=1e-6 if dtype == torch.float32 else 1e-13
    )


SYMMETRIC = ["dpo", "dpo_norm", "simpo", "cpo", "alphapo"]


@pytest.mark.parametrize("name", SYMMETRIC)
def test_smoothing_is_the_expectation_over_swapped_labels(name: str) -> None:
    """(1 - e) L(w, o) + e L(o, w); and a label's probability is the same with 1 - e in its place."""
    policy, reference = random_answers()
    logps, changes = (
        logps_of(policy, reference),
        {"gamma_ratio": 0.0} if "po" in name[-2:] and name in ("simpo", "alphapo") else {},
    )
    if name == "cpo":
        changes = {"sft_weight": 0.0}
    plain, smoothed = loss(name, **changes), loss(name, **changes, label_smoothing=0.2)
    right = losses_of(plain, logps, preferences_of(*PAIRS))
    wrong = losses_of(plain, logps, preferences_of(*[(o, w) for w, o in PAIRS]))
    expected = (0.8 * right + 0.2 * wrong).tolist()
    assert losses_of(smoothed, logps, preferences_of(*PAIRS)).tolist() == pytest.approx(expected, rel=1e-12)
    soft = preferences_of(*[(w, o, 1.0, 0.0, 0.8) for w, o in PAIRS])
    # The label's probability takes the place of whatever smoothing there is.
    assert losses_of(smoothed, logps, soft).tolist() == pytest.approx(expected, rel=1e-12)


def test_limits_that_meet() -> None:
    policy, reference = random_answers()
    logps, preferences = logps_of(policy, reference), preferences_of(*PAIRS)

    def found(name: str, **changes: Any) -> torch.Tensor:
        return losses_of(loss(name, **changes), logps, preferences)

    dpo = found("dpo", beta=0.3)
    assert found("dpo", beta=0.3, ld_alpha=1.0).tolist() == dpo.tolist()
    assert found("robust", beta=0.3, label_smoothing=0.0).tolist() == pytest.approx(dpo.tolist(), rel=1e-14)
    assert found("dpo", beta=0.3, divergence="alpha", divergence_alpha=1e-7).tolist() == pytest.approx(
        dpo.tolist(), rel=1e-5
    )
    forward = found("dpo", beta=0.3, divergence="forward_kl").tolist()
    almost = found("dpo", beta=0.3, divergence="alpha", divergence_alpha=1 - 1e-9).tolist()
    assert almost == pytest.approx(forward, rel=1e-5)
    simpo = found("simpo", beta=2.5, gamma_ratio=0.1).tolist()
    assert found("alphapo", beta=2.5, gamma_ratio=0.1, alpha=1e-7).tolist() == pytest.approx(simpo, rel=1e-5)
    free = found("dpo", beta=0.3, reference_free=True).tolist()
    assert found("cpo", beta=0.3, sft_weight=0.0).tolist() == pytest.approx(free, rel=1e-12)
    certain = preferences_of(*[(*pair, 1.0, 1e3) for pair in PAIRS])
    assert losses_of(loss("rpo_bwd_kl", beta=0.3), logps, certain).tolist() == pytest.approx(dpo.tolist(), rel=1e-9)


@pytest.mark.parametrize("name", ["simpo", "alphapo", "cpo", "orpo", "slic", "sft"])
def test_losses_without_a_reference_never_look_at_one(name: str) -> None:
    policy, reference = random_answers()
    with_one = losses_of(loss(name), logps_of(policy, reference), preferences_of(*PAIRS))
    assert losses_of(loss(name), logps_of(policy, None), preferences_of(*PAIRS)).tolist() == with_one.tolist()
    assert not loss(name).needs_reference


@pytest.mark.parametrize("name", [name for name in PAIRWISE if LOSSES[name].reference])
def test_a_loss_without_its_reference_says_so(name: str) -> None:
    policy, _ = random_answers()
    assert loss(name).needs_reference
    with pytest.raises(ValueError, match=r"^this loss needs reference log-probs, and was given none$"):
        losses_of(loss(name), logps_of(policy, None), preferences_of(*PAIRS))


def test_orpo_can_take_the_prompts_likelihood_too() -> None:
    policy, _ = random_answers()
    prompts = [[-1.0, -2.0], [-0.5], [-3.0, -1.0, -1.0], [-0.25], [-2.0, -2.0]]
    logps = logps_of(
        policy,
        None,
        prompt=torch.tensor([sum(tokens) for tokens in prompts], dtype=torch.float64),
        prompt_lengths=torch.tensor([len(tokens) for tokens in prompts]),
    )
    expected = [reference_free.orpo(policy[w], policy[o], beta=0.1, prompt=prompts[w]) for w, o in PAIRS]
    found = losses_of(loss("orpo", nll="full"), logps, preferences_of(*PAIRS))
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert found.tolist() != pytest.approx(losses_of(loss("orpo"), logps, preferences_of(*PAIRS)).tolist(), rel=1e-3)
