"""Every loss and modifier that trl 1.16 has as well, trained by both on the same rows.

Where both mean the same, the loss, log-probs, rewards and gradient norm of every update agree. Where trl means
something else, a test says what, shows that there is a difference, and that it is the whole one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from parity.trl_runs import (
    BATCH,
    LOGPS,
    REWARDS,
    ROWS,
    SAME_NAMES,
    SEED,
    SINGLE,
    TOLERANCE,
    WHOLE,
    Both,
    Case,
    Update,
    check_same,
    check_tokens,
    check_updates,
    make_model,
    our_groups,
    our_order,
    run_both,
    said,
    shared_folder,
    write_rows,
)

from dpo_cli.data.kinds import mismatch
from dpo_cli.data.types import Group
from dpo_cli.quickstart.task import WORDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NO_REWARDS = ("loss", *LOGPS, "grad_norm")
NO_LOGPS = ("loss", *REWARDS, "grad_norm")
"""trl's CPOTrainer and ORPOTrainer call a mean per token a log-prob where the loss is of means; with ``ld_alpha`` its
DPOTrainer reports weighted log-probs, while ours are of all tokens alike."""
JUDGED_NAMES = ("loss", *LOGPS, *REWARDS[:2], "grad_norm")
FAR = 50 * TOLERANCE
"""Where the two differ, they do so by more than this."""
LN2 = math.log(2)
Rows = list[dict[str, Any]]


def make_rows(text: Callable[[int, int], str], prompt: tuple[int, int], answers: tuple[tuple[int, int], ...]) -> Rows:
    """Rows whose prompt and two answers have so many words; every other pair the other way round."""
    rows = []
    for number in range(ROWS):
        first, second = (said(text(*length)) for length in answers)
        chosen, rejected = (first, second) if number % 2 else (second, first)
        rows.append({"prompt": [{"role": "user", "content": text(*prompt)}], "chosen": chosen, "rejected": rejected})
    return rows


def text_of(seed: int) -> Callable[[int, int], str]:
    """Makes text of a number of words between two, each word one token."""
    random_ = random.Random(seed)
    return lambda low, high: " ".join(random_.choices(WORDS, k=random_.randint(low, high)))


UNEVEN = make_rows(text_of(1), (2, 8), ((1, 4), (3, 10)))
LEVEL = make_rows(text_of(2), (6, 6), ((5, 5), (5, 5)))
"""All prompts have as many tokens, and all answers: a mean over tokens is a mean of answers' means."""
JUDGED: Rows = [
    {"prompt": row["prompt"], "completion": row["chosen"], "label": number % 3 != 1}
    for number, row in enumerate(UNEVEN)
]


def case(rows: Rows, ours: str, names: tuple[str, ...] = SAME_NAMES, **trl: Any) -> Case:
    """``ours``: words for ``dpo train``. A global batch is one micro-batch for trl, several for us."""
    return Case(rows, "auto", {**WHOLE, **trl}, ours.split(), names=names, lr=3e-3, budget=70)


def alone(ours: str, **trl: Any) -> Case:
    """A few updates of one pair each, so that metrics are the pair's."""
    return replace(case(UNEVEN[:4], ours, **trl, per_device_train_batch_size=1), batch=1)


def free(trainer: str, rows: Rows, ours: str, **trl: Any) -> Case:
    """A loss without a reference, of one of trl's other trainers."""
    return replace(case(rows, ours, **trl), trainer=trainer)


def judged(ours: str, **trl: Any) -> Case:
    return replace(case(JUDGED, ours, JUDGED_NAMES, **trl), trainer="KTO", kind="answers")


def kto(**trl: Any) -> Case:
    weights = {"desirable_weight": 1.2, "undesirable_weight": 0.7}
    return judged("loss=kto loss.desirable_weight=1.2 loss.undesirable_weight=0.7", **weights, **trl)


def along_our_mismatches(groups: list[Group], order: list[int]) -> list[int]:
    """All rows once an epoch, each before the row whose prompt is put to its answer in our estimate of the KL.

    trl puts each prompt of a micro-batch to the answer of the row before (the first one's to the last's).
    """
    answers = [group.answers[0].tobytes() for group in groups]
    assert len(set(answers)) == len(answers)
    borrower = {answers.index(other.answers[0].tobytes()): n for n, other in enumerate(mismatch(groups, SEED, 2048))}
    chain = [0]
    while len(chain) < len(groups):
        chain.append(borrower[chain[-1]])
    assert borrower[chain[-1]] == chain[0]
    return chain * (len(order) // len(groups))


MIXED = """\
# @package _global_
defaults:
  - /loss@loss.terms.dpo: dpo
  - /loss@loss.terms.hinge: hinge
  - /loss@loss.terms.apo_zero: apo_zero
  - /loss@loss.terms.sft: sft
  - override /loss: sum

loss:
  terms:
    hinge:
      beta: 0.1
  weights:
    dpo: 0.8
    hinge: 0.3
    apo_zero: 0.5
    sft: 1.0
"""
"""A recipe with a sum of our own."""

WITH_REFERENCE = {
    "sigmoid": case(UNEVEN, "loss=dpo", loss_type="sigmoid"),
    "hinge": case(UNEVEN, "loss=hinge loss.beta=0.3", loss_type="hinge", beta=0.3),
    "ipo": case(UNEVEN, "loss=ipo loss.beta=0.3", loss_type="ipo", beta=0.3, names=NO_REWARDS),
    "exo_pair": case(UNEVEN, "loss=exo loss.label_smoothing=0.01", loss_type="exo_pair", label_smoothing=0.01),
    "nca_pair": case(UNEVEN, "loss=nca loss.beta=0.1", loss_type="nca_pair"),
    "robust": case(UNEVEN, "loss=robust loss.label_smoothing=0.2", loss_type="robust", label_smoothing=0.2),
    # Slower than the others: a square makes much of trl's rounding of its sums.
    "sppo_hard": replace(case(LEVEL, "loss=sppo loss.beta=1.0", loss_type="sppo_hard", beta=1.0), lr=5e-4),
    "apo_zero": case(UNEVEN, "loss=apo_zero", loss_type="apo_zero"),
    "apo_down": case(UNEVEN, "loss=apo_down", loss_type="apo_down"),
    "discopop": case(UNEVEN, "loss=discopop loss.beta=0.1 loss.tau=0.3", loss_type="discopop", discopop_tau=0.3),
    "sigmoid_norm": case(UNEVEN, "loss=dpo_norm loss.beta=2.0", loss_type="sigmoid_norm", beta=2.0, names=NO_REWARDS),
    "aot": case(
        LEVEL, "loss=aot loss.beta=0.3 loss.label_smoothing=0.1", loss_type="aot", beta=0.3, label_smoothing=0.1
    ),
    "aot_unpaired": case(
        LEVEL,
        "loss=aot_unpaired loss.beta=0.3 loss.label_smoothing=0.1",
        loss_type="aot_unpaired",
        beta=0.3,
        label_smoothing=0.1,
    ),
    # One pair per micro-batch, where trl's mean over a micro-batch's tokens is the answer's mean.
    "sft": case(UNEVEN, "loss=sft", **SINGLE, loss_type="sft", names=NO_REWARDS),
    "kto": replace(kto(per_device_train_batch_size=ROWS), batch=ROWS, epochs=4, arrange=along_our_mismatches),
    "apo_zero_unpaired": judged("loss=apo_zero_unpaired", loss_type="apo_zero_unpaired"),
}

MODIFIED = {
    "forward_kl": case(LEVEL, "loss.divergence=forward_kl", f_divergence_type="forward_kl"),
    "js": case(LEVEL, "loss.divergence=js loss.beta=0.5", f_divergence_type="js_divergence", beta=0.5),
    # trl's coefficient is 1 - ours.
    "alpha": case(
        LEVEL,
        "loss.divergence=alpha loss.divergence_alpha=0.3",
        f_divergence_type="alpha_divergence",
        f_alpha_divergence_coef=0.7,
    ),
    "hinge with js": case(
        UNEVEN, "loss=hinge loss.beta=0.1 loss.divergence=js", loss_type="hinge", f_divergence_type="js_divergence"
    ),
    "ld_alpha": case(UNEVEN, "loss.ld_alpha=0.4", ld_alpha=0.4, names=NO_LOGPS),
    "ipo with ld_alpha": case(
        UNEVEN, "loss=ipo loss.ld_alpha=0.4", loss_type="ipo", ld_alpha=0.4, names=("loss", "grad_norm")
    ),
    "use_weighting": case(UNEVEN, "loss.wpo=true", use_weighting=True),
    "rpo": case(UNEVEN, "loss.sft_weight=0.5", **SINGLE, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5]),
    "rpo with ld_alpha": case(
        UNEVEN,
        "loss.sft_weight=0.5 loss.ld_alpha=0.4",
        **SINGLE,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, 0.5],
        ld_alpha=0.4,
        names=NO_LOGPS,
    ),
    "sum": case(
        UNEVEN,
        "--config-dir my_configs +experiment=mixed",
        **SINGLE,
        loss_type=["sigmoid", "hinge", "apo_zero", "sft"],
        loss_weights=[0.8, 0.3, 0.5, 1.0],
    ),
    "precomputed": case(UNEVEN, "reference.mode=live", precompute_ref_log_probs=True),
    "sync_ref_model": case(
        UNEVEN,
        "reference.mode=live reference.update_every=2 reference.update_mix=0.6",
        sync_ref_model=True,
        ref_model_mixup_alpha=0.6,
        ref_model_sync_steps=2,
    ),
}

WITHOUT_REFERENCE = {
    "cpo": free("CPO", UNEVEN, "loss=cpo loss.label_smoothing=0.1", **SINGLE, label_smoothing=0.1),
    "cpo level": free("CPO", LEVEL, "loss=cpo"),
    "slic": free("CPO", LEVEL, "loss=slic", loss_type="hinge", beta=1.0, cpo_alpha=0.1),
    "hinge without reference": free(
        "CPO", UNEVEN, "loss=hinge loss.reference_free=true", loss_type="hinge", beta=0.05, cpo_alpha=0.0
    ),
    "ipo without reference": free(
        "CPO",
        UNEVEN,
        "loss=ipo loss.beta=0.3 loss.reference_free=true",
        loss_type="ipo",
        beta=0.3,
        cpo_alpha=0.0,
        names=NO_LOGPS,
    ),
    "simpo": free(
        "CPO",
        UNEVEN,
        "loss=simpo loss.label_smoothing=0.1",
        loss_type="simpo",
        beta=2.0,
        simpo_gamma=1.0,
        cpo_alpha=0.0,
        label_smoothing=0.1,
        names=NO_LOGPS,
    ),
    # trl adds the likelihood to SimPO unless told not to.
    "cpo-simpo": free(
        "CPO",
        UNEVEN,
        "loss=simpo loss.sft_weight=1.0",
        **SINGLE,
        loss_type="simpo",
        beta=2.0,
        simpo_gamma=1.0,
        names=NO_LOGPS,
    ),
    "alphapo": free(
        "CPO",
        UNEVEN,
        "loss=alphapo loss.beta=1.0",
        loss_type="alphapo",
        alpha=0.25,
        beta=1.0,
        simpo_gamma=0.1,
        names=NO_LOGPS,
    ),
    "orpo": free("ORPO", UNEVEN, "loss=orpo loss.beta=0.5 loss.nll=full", **SINGLE, beta=0.5, names=NO_LOGPS),
    "orpo level": free("ORPO", LEVEL, "loss=orpo loss.beta=0.5 loss.nll=full", beta=0.5, names=NO_LOGPS),
}

AGREE = {**WITH_REFERENCE, **MODIFIED, **WITHOUT_REFERENCE}

HALVES = {"per_device_train_batch_size": BATCH // 2, "gradient_accumulation_steps": 2}
DIFFER = {
    "smoothing": case(UNEVEN, "loss.label_smoothing=0.2", label_smoothing=0.2),
    "ipo alone": alone("loss=ipo loss.beta=0.3", loss_type="ipo", beta=0.3),
    "sigmoid_norm alone": alone("loss=dpo_norm loss.beta=2.0", loss_type="sigmoid_norm", beta=2.0),
    "bco_pair": alone("loss=bco_pair loss.beta=1.0", loss_type="bco_pair", beta=1.0),
    "mpo": alone(
        "loss=mpo loss.terms.dpo.beta=1.0 loss.terms.bco_pair.beta=1.0",
        loss_type=["sigmoid", "bco_pair", "sft"],
        loss_weights=[0.8, 0.2, 1.0],
        beta=1.0,
    ),
    "aot by halves": case(LEVEL, "loss=aot loss.beta=0.3", **HALVES, loss_type="aot", beta=0.3),
    "aot_unpaired by halves": case(
        LEVEL, "loss=aot_unpaired loss.beta=0.3", **HALVES, loss_type="aot_unpaired", beta=0.3
    ),
    "sft by tokens": case(UNEVEN, "loss=sft", loss_type="sft"),
    "sft weighted": case(UNEVEN, "loss=sft", loss_type="sft"),
    "cpo by tokens": free("CPO", UNEVEN, "loss=cpo"),
    "orpo of answers": free("ORPO", UNEVEN, "loss=orpo loss.beta=0.5", beta=0.5),
    # A learning rate at which nothing moves: every update is at policy = reference.
    "heavy pairs": replace(
        case(UNEVEN, "loss.wpo=true", per_device_train_batch_size=1, use_weighting=True), batch=1, lr=1e-9
    ),
    "kto by batches": kto(),
}


def weighted_by_length(case: Case, folder: Path) -> Case:
    """With a column that has each chosen answer's length over the mean one of its batch."""
    write_rows(folder / "unweighted.jsonl", case.rows)
    groups = our_groups(case, folder / "unweighted.jsonl")
    order = our_order(groups, case)
    lengths = [len(group.answers[group.pairs[0].winner]) for group in groups]
    rows = list(case.rows)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        mean = sum(lengths[index] for index in batch) / len(batch)
        for index in batch:
            rows[index] = {**rows[index], "weight": lengths[index] / mean}
    return replace(case, rows=rows, weight="weight")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Both]:
    folder = shared_folder(tmp_path_factory, "trl-losses")
    recipes = folder / "my_configs" / "experiment"
    if not recipes.exists():
        recipes.mkdir(parents=True)
        (recipes / "mixed.yaml").write_text(MIXED, encoding="utf-8")
    model = make_model(tmp_path_factory.mktemp("model"))
    cases = {name: replace(case, model=model) for name, case in {**AGREE, **DIFFER}.items()}
    # Of a model that is unsure, some answers are likelier than its own samples are on average.
    cases["heavy pairs"].model = make_model(tmp_path_factory.mktemp("unsure"), 0.2)
    cases["sft weighted"] = weighted_by_length(cases["sft weighted"], tmp_path_factory.mktemp("unweighted"))
    return run_both(cases, folder)


@pytest.mark.parametrize("name", [*AGREE, *DIFFER])
def test_trl_trains_on_our_tokens(name: str, both: dict[str, Both]) -> None:
    check_tokens(both[name])


@pytest.mark.parametrize("name", AGREE)
def test_every_update_is_trls(name: str, both: dict[str, Both]) -> None:
    check_updates(both[name], AGREE[name].names)


@pytest.mark.parametrize("name", AGREE)
def test_the_comparison_means_something(name: str, both: dict[str, Both]) -> None:
    """There are updates, and they move the loss by far more than the tolerance."""
    losses = [update["loss"] for update in both[name].ours]
    assert len(losses) == 4
    assert max(losses) - min(losses) > 100 * TOLERANCE


def test_every_case_is_another_run(both: dict[str, Both]) -> None:
    """No key is without effect, and none does what another does."""
    numbers = {
        name: [update[metric] for update in both[name].ours for metric in ("loss", "logps/chosen", "grad_norm")]
        for name in AGREE
        if name != "precomputed"  # which is to be the plain run
    }
    for one, other in combinations(numbers, 2):
        distance = max(abs(a - b) for a, b in zip(numbers[one], numbers[other], strict=True))
        assert distance > 10 * TOLERANCE, (one, other)


def test_a_live_reference_is_a_cached_one(both: dict[str, Both]) -> None:
    for live, cached in zip(both["precomputed"].ours, both["sigmoid"].ours, strict=True):
        assert {name: live[name] for name in NO_REWARDS} == pytest.approx({name: cached[name] for name in NO_REWARDS})


def test_trls_sigmoid_ignores_label_smoothing(both: dict[str, Both]) -> None:
    """With or without, trl's run is the same. Our gradient at policy = reference is 1 - 2e of it."""
    ours, theirs = both["smoothing"].ours, both["smoothing"].trl
    for smoothed, plain in zip(theirs, both["sigmoid"].trl, strict=True):
        assert [smoothed[name] for name in NO_REWARDS] == [plain[name] for name in NO_REWARDS]
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], abs=TOLERANCE)
    assert ours[0]["grad_norm"] == pytest.approx(0.6 * theirs[0]["grad_norm"], abs=TOLERANCE)
    assert abs(ours[-1]["loss"] - theirs[-1]["loss"]) > FAR


@pytest.mark.parametrize("name", ["ipo alone", "sigmoid_norm alone"])
def test_rewards_are_those_that_the_loss_compares(name: str, both: dict[str, Both]) -> None:
    """Per token where the loss divides by the length; trl reports sums for these losses too."""
    check_updates(both[name], NO_REWARDS)
    for index, ours, theirs in zip(both[name].order, both[name].ours, both[name].trl, strict=True):
        winner, loser, *_ = both[name].groups[index].pairs[0]
        for metric, answer in (("rewards/chosen", winner), ("rewards/rejected", loser)):
            length = len(both[name].groups[index].answers[answer])
            assert ours[metric] * length == pytest.approx(theirs[metric], abs=TOLERANCE)
    assert abs(both[name].ours[-1]["rewards/chosen"] - both[name].trl[-1]["rewards/chosen"]) > FAR


@pytest.mark.parametrize(("name", "weight"), [("bco_pair", 1.0), ("mpo", 0.2)])
def test_trls_bco_pair_has_no_reward_shift(name: str, weight: float, both: dict[str, Both]) -> None:
    """The paper's shift is 0 at the first update, whose gradient agrees. At the second, at the same weights, the shift
    is the whole difference; from there on the runs part."""
    ours, theirs = both[name].ours, both[name].trl
    check_same(ours[:1], theirs[:1], ("loss", "grad_norm"))
    check_same(ours[:2], theirs[:2], (*LOGPS, *REWARDS))
    second = theirs[1]
    shift = (second["rewards/chosen"] + second["rewards/rejected"]) / 2 / 2  # mean of the pair, and of 0 before it
    difference = weight * (bco(second, shift) - bco(second, 0.0))
    assert ours[1]["loss"] - second["loss"] == pytest.approx(difference, abs=TOLERANCE)
    assert abs(difference) > FAR
    assert abs(ours[2]["loss"] - theirs[2]["loss"]) > FAR


def bco(update: Update, shift: float) -> float:
    """``-log sigmoid(r_w - s) - log sigmoid(s - r_l)`` of an update of one pair."""
    rises = (update["rewards/chosen"] - shift, shift - update["rewards/rejected"])
    return sum(math.log1p(math.exp(-rise)) for rise in rises)


@pytest.mark.parametrize("name", ["aot by halves", "aot_unpaired by halves"])
def test_trls_aot_sorts_a_micro_batch(name: str, both: dict[str, Both]) -> None:
    """Ours sorts the global batch, so that only a micro-batch which is all of it agrees. At policy = reference every
    order gives the same gradient."""
    ours, theirs = both[name].ours, both[name].trl
    check_same(ours[:1], theirs[:1], ("loss", "grad_norm"))
    check_same(ours[:2], theirs[:2], (*LOGPS, *REWARDS))
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True)) > FAR


def test_trls_sft_is_a_mean_over_tokens(both: dict[str, Both]) -> None:
    """Over all of a micro-batch: long answers count more. So it is ours with each answer weighted by its length."""
    check_updates(both["sft weighted"], NO_REWARDS)
    first = both["sft by tokens"].ours[0]["loss"], both["sft by tokens"].trl[0]["loss"]
    assert abs(first[0] - first[1]) > FAR


def test_trls_cpo_has_that_mean_too(both: dict[str, Both]) -> None:
    """At the first update, at the same weights, it is the whole difference."""
    cpo, sft = both["cpo by tokens"], both["sft by tokens"]
    difference = cpo.ours[0]["loss"] - cpo.trl[0]["loss"]
    assert difference == pytest.approx(sft.ours[0]["loss"] - sft.trl[0]["loss"], abs=TOLERANCE)
    assert abs(difference) > FAR
    check_same(cpo.ours[:1], cpo.trl[:1], (*LOGPS, *REWARDS))


def test_trls_orpo_predicts_the_prompt_as_well(both: dict[str, Both]) -> None:
    """``nll=full`` does so too. With ``nll=answer``, as in the paper, the odds are the same and the rest is ``sft``."""
    orpo, sft = both["orpo of answers"], both["sft by tokens"]
    ours, theirs = orpo.ours[0], orpo.trl[0]
    check_same([ours], [theirs], REWARDS)
    assert ours["loss"] == pytest.approx(sft.ours[0]["loss"] - 0.5 * theirs["log_odds_ratio"], abs=TOLERANCE)
    assert abs(ours["loss"] - theirs["loss"]) > FAR


def test_trls_wpo_weight_may_be_over_one(both: dict[str, Both]) -> None:
    """Ours is held at 1. At policy = reference a pair's loss is its weight x ln 2."""
    ours, theirs = both["heavy pairs"].ours, both["heavy pairs"].trl
    weights = [update["loss"] / LN2 for update in theirs]
    assert min(weights) < 0.99
    assert max(weights) > 1.01
    for weight, our, their in zip(weights, ours, theirs, strict=True):
        assert our["loss"] == pytest.approx(min(weight, 1.0) * LN2, abs=TOLERANCE)
        assert our["grad_norm"] == pytest.approx(their["grad_norm"] * min(1.0, 1 / weight), abs=TOLERANCE)


def test_kto_is_trls_where_the_mismatched_answers_are(both: dict[str, Both]) -> None:
    """trl pairs prompts and answers inside a micro-batch. With all rows in one, in the right order, its pairs are ours;
    the estimate of the KL is far from 0, where both hold it, and all updates agree."""
    assert both["kto"].trl[0]["kl"] == pytest.approx(0.0, abs=TOLERANCE)
    assert min(update["kl"] for update in both["kto"].trl[1:]) > 0.1


def test_kto_differs_by_the_estimate_of_the_kl(both: dict[str, Both]) -> None:
    """In batches of a few rows other answers are drawn. The KL is 0 at the first update, whose gradient agrees."""
    ours, theirs = both["kto by batches"].ours, both["kto by batches"].trl
    check_same(ours[:1], theirs[:1], ("loss", "grad_norm"))
    check_same(ours[:2], theirs[:2], (*LOGPS, *REWARDS[:2]))
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True)) > FAR
