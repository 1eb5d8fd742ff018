"""From predicted tokens to answers; statistics over a batch, whatever its split; prompts that are predicted too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.families import FAMILIES, awkward_groups, build, masked_groups
from helpers.loss_cases import loss

from dpo_cli.data.collate import FlatBatch, collate
from dpo_cli.data.kinds import mismatch
from dpo_cli.data.types import Group, Pair
from dpo_cli.model.attention import GROUP_ATTENTION, Segments
from dpo_cli.model.policy import Policy, run_row
from dpo_cli.objective import Objective, rows_of


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(build(FAMILIES["llama"](), GROUP_ATTENTION, torch.float64), precision="fp32", groups=True).eval()


def plain_logps(policy: Policy, ids: list[int]) -> torch.Tensor:
    """Of all tokens but the first, one sequence alone."""
    group = Group(np.array(ids[:1], np.int32), (np.array(ids[1:], np.int32),), (), "a row")
    with torch.no_grad():
        return policy(collate([group]))


def test_prompts_are_predicted_once_and_counted_in_every_answer(policy: Policy) -> None:
    groups = [*awkward_groups(), *masked_groups()]
    objective = Objective(groups, loss("orpo", nll="full"), None, True)
    with torch.no_grad():
        _, logps = objective.look(policy, groups)
    expected, lengths = [], []
    for group in groups:
        prompt = group.prompt_ids.tolist()
        total = float(plain_logps(policy, prompt).sum()) if len(prompt) > 1 else 0.0
        expected += [total] * len(group.answers)
        lengths += [len(prompt) - 1] * len(group.answers)
    assert logps.prompt.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert logps.prompt_lengths.tolist() == lengths
    assert logps.lengths.tolist() == [
        int(group.scored[n].sum()) if group.scored else len(answer)
        for group in groups
        for n, answer in enumerate(group.answers)
    ]


def test_answers_are_the_same_whether_or_not_prompts_are_predicted(policy: Policy) -> None:
    with torch.no_grad():
        _, without = Objective(awkward_groups(), loss("orpo"), None, True).look(policy, awkward_groups())
        _, with_prompts = Objective(awkward_groups(), loss("orpo", nll="full"), None, True).look(
            policy, awkward_groups()
        )
    assert torch.equal(without.policy, with_prompts.policy)
    assert without.prompt is None


def test_concentration_is_log_of_the_sum_of_squared_probabilities(policy: Policy) -> None:
    with torch.no_grad():
        _, logps = Objective(awkward_groups(), loss("dpo", wpo=True, reference_free=True), None, True).look(
            policy, awkward_groups()
        )
        expected = []
        for group in awkward_groups():
            for answer in group.answers:
                ids = torch.tensor([[*group.prompt_ids.tolist(), *answer.tolist()]])
                rest = Group(ids[0, :1].numpy().astype(np.int32), (ids[0, 1:].numpy().astype(np.int32),), (), "x")
                batch = collate([rest])
                logits = run_row(policy.model, batch, batch.rows, Segments(batch.layouts, torch.device("cpu")))
                squares = torch.log_softmax(logits, -1).exp().square().sum(-1).log()
                expected += squares[len(group.prompt_ids) - 1 :].tolist()
    assert (logps.policy - logps.concentration).tolist() == pytest.approx(expected, rel=1e-8)


def test_rows_are_places_among_the_batchs_comparisons() -> None:
    counts = {7: 2, 3: 1, 5: 3}
    assert rows_of([7, 3, 5], counts.__getitem__) == {7: [0, 1], 3: [2], 5: [3, 4, 5]}


@pytest.mark.parametrize("name", ["aot_unpaired", "bco_pair", "bco", "kto"])
def test_contexts_do_not_depend_on_micro_batches(name: str, policy: Policy) -> None:
    which = loss(name)
    some = [
        Group(g.prompt_ids, g.answers[:2], (Pair(0, 1),), g.source, labels=(True, False))
        for g in awkward_groups()
        if len(g.answers) > 1
    ]

    def lookup(batch: FlatBatch) -> torch.Tensor:
        """Some reference: each token's depends on its own id and on nothing else."""
        ids = np.concatenate([answer for group in batch.groups for answer in group.answers])
        return -30.0 + 0.05 * torch.from_numpy(ids).double()

    objective = Objective(some, which, lookup, True, mismatch(some, 0, 64))
    order = [4, 0, 2, 1, 3, 5]
    splits = [[order], [[index] for index in order], [order[:2], [], order[2:]]]
    (whole, state), *others = [objective.contexts(policy, split, order, {}) for split in splits]
    assert whole[name] != 0.0
    for contexts, after in others:
        assert after.keys() == state.keys()
        if name != "aot_unpaired":
            assert contexts == pytest.approx(whole, rel=1e-12)
            continue
        for part in ("upper", "lower", "upper_place", "lower_place"):
            assert torch.allclose(getattr(contexts[name], part), getattr(whole[name], part), rtol=1e-12)
