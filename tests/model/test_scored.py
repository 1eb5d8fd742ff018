"""Answers in which some tokens only stand for the others to follow, against a plain forward with masked labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.families import FAMILIES, awkward_groups, build
from helpers.loss_cases import loss
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from dpo_cli.data.collate import collate, masks, shared_prefix
from dpo_cli.data.kinds import mismatch
from dpo_cli.data.load import fingerprint
from dpo_cli.data.types import Group, Pair
from dpo_cli.model.attention import GROUP_ATTENTION
from dpo_cli.model.flops import FlopsModel
from dpo_cli.model.policy import Policy
from dpo_cli.model.score import score
from dpo_cli.objective import Objective
from dpo_cli.reference.store import ReferenceStore


def masked_groups() -> list[Group]:
    """Shared tokens are scored in all answers or in none; the last token of an answer always is."""
    random = np.random.default_rng(3)
    groups = []
    for group in awkward_groups():
        shared = shared_prefix(group.answers)
        start = random.random(shared) < 0.5
        scored = [np.concatenate([start, random.random(len(a) - shared) < 0.5]) for a in group.answers]
        for mask in scored:
            mask[-1] = True
        groups.append(replace(group, scored=tuple(scored)))
    return [*groups, awkward_groups()[0]]  # and one in which all are


def sums(model: PreTrainedModel, groups: list[Group]) -> torch.Tensor:
    """Of each answer's scored tokens, as a trainer with labels of -100 has them: ``[answers]``."""
    found = []
    for group in groups:
        for answer, mask in zip(group.answers, masks(group), strict=True):
            ids = torch.tensor(np.concatenate((group.prompt_ids, answer)), dtype=torch.int64)
            labels = ids.clone()
            labels[: len(group.prompt_ids)] = -100
            labels[len(group.prompt_ids) :][torch.from_numpy(~mask)] = -100
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
            found.append(-cross_entropy(logits[:-1].double(), labels[1:], ignore_index=-100, reduction="sum"))
    return torch.stack(found)


def gradients(model: PreTrainedModel, values: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (torch.linspace(-1.0, 2.0, len(values), dtype=values.dtype) * values).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("share", [True, False])
def test_sums_and_gradients_are_those_of_masked_labels(share: bool) -> None:
    groups = masked_groups()
    plain = build(FAMILIES["llama"](), "eager", torch.float64)
    expected = sums(plain, groups)
    model = build(FAMILIES["llama"](), GROUP_ATTENTION if share else "eager", torch.float64)
    policy = Policy(model, precision="fp32", groups=share)
    _, logps = Objective(groups, loss("dpo", reference_free=True), None, share).look(policy, groups)
    found = torch.zeros(len(expected), dtype=torch.float64).index_add(0, logps.answer, logps.policy.double())
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6)  # float32 sums
    assert logps.lengths.tolist() == [int(mask.sum()) for group in groups for mask in masks(group)]
    ours, theirs = gradients(model, found), gradients(plain, expected)
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, atol=1e-6 * max(1.0, float(gradient.abs().max()))), name


@pytest.mark.parametrize("share", [True, False])
def test_only_what_is_scored_is_predicted(share: bool) -> None:
    groups = masked_groups()
    batch = collate(groups, share=share)
    wanted = [a[mask] for group in groups for a, mask in zip(group.answers, masks(group), strict=True)]
    assert batch.targets[batch.answer_tokens].tolist() == np.concatenate(wanted).tolist()
    assert set(range(len(batch.targets))) == set(batch.answer_tokens.tolist())
    assert set(batch.token_rows.tolist()) == set(range(len(batch.rows)))
    whole = collate([replace(group, scored=()) for group in groups], share=share)
    assert batch.input_ids.tolist() == whole.input_ids.tolist()
    assert set(batch.rows.tolist()) <= set(whole.rows.tolist())


def test_prompts_are_predicted_beside() -> None:
    groups = masked_groups()
    batch, whole = (collate(some, predict_prompts=True) for some in (groups, [replace(g, scored=()) for g in groups]))
    assert batch.targets[batch.prompt_tokens].tolist() == whole.targets[whole.prompt_tokens].tolist()
    assert batch.rows[batch.token_rows[batch.prompt_tokens]].tolist() == (
        whole.rows[whole.token_rows[whole.prompt_tokens]].tolist()
    )


def test_masks_that_hold_everything_change_nothing() -> None:
    groups = awkward_groups()
    full = [replace(group, scored=tuple(np.ones(len(a), bool) for a in group.answers)) for group in groups]
    one, other = collate(groups), collate(full)
    for name in ("input_ids", "rows", "token_rows", "targets", "answer_tokens", "answer"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist(), name


def test_a_reference_is_kept_of_all_tokens_and_looked_up_of_the_scored(tmp_path: Path) -> None:
    groups = masked_groups()
    policy = Policy(build(FAMILIES["llama"](), GROUP_ATTENTION, torch.float32), precision="fp32", groups=True)
    store = ReferenceStore(tmp_path, {"a": 1})
    store.add(groups, score(policy, groups, share=True))
    batch = collate(groups)
    with torch.no_grad():
        live = policy(batch)[torch.from_numpy(batch.answer_tokens)]
    assert store.lookup(groups).tolist() == pytest.approx(live.tolist(), abs=1e-5)
    assert store.missing([replace(group, scored=()) for group in groups]) == []


def test_masks_are_part_of_what_the_data_is() -> None:
    groups = masked_groups()
    others = [replace(groups[0], scored=()), *groups[1:]]
    assert fingerprint(groups) != fingerprint(others)


def test_predictions_are_counted_once() -> None:
    flops = FlopsModel(0.0, 1.0, 0.0)
    for group in masked_groups():
        assert flops.forward(group) == len(collate([group]).targets)


def test_answers_to_other_prompts_keep_their_masks() -> None:
    mask = np.array([True, False, True, False, True])
    ids = np.arange(5, dtype=np.int32)
    groups = [
        Group(np.array([prompt], np.int32), (ids + prompt,), (Pair(0, 0),), "row", scored=(mask,)) for prompt in (7, 9)
    ]
    assert [other.scored[0].tolist() for other in mismatch(groups, 0, 100)] == [mask.tolist()] * 2
    assert [other.scored[0].tolist() for other in mismatch(groups, 0, 4)] == [mask[:3].tolist()] * 2
