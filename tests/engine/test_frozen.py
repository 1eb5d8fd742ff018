"""A model that only scores, shared out over real processes, against the same model whole in this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import training_case as case
from helpers.ranks import run_ranks
from safetensors.torch import load_file

from dpo_cli.data.collate import collate
from dpo_cli.engine.frozen import Frozen
from dpo_cli.model.policy import Policy

NOTHING_WHOLE, DEFAULT = 0, 100_000
"""Sizes up to which DeepSpeed leaves a parameter whole on every rank, once it knows in which order all are used."""


def score(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy(collate(case.groups_of(1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "world", "threshold"),
    [
        (3, 1, NOTHING_WHOLE),
        (3, 2, NOTHING_WHOLE),
        (3, 3, NOTHING_WHOLE),  # sizes that are no multiple of the ranks
        (3, 2, DEFAULT),
        (2, 2, NOTHING_WHOLE),
        (0, 2, DEFAULT),
    ],
)
def test_a_sharded_model_scores_and_moves_as_a_whole_one(
    tmp_path: Path, stage: int, world: int, threshold: int
) -> None:
    """The other model is at ``stage``; it is always sharded."""
    run_ranks(Path(__file__).with_name("frozen_worker.py"), [stage, threshold, str(tmp_path)], world, tmp_path)
    module = case.policy()
    whole = Frozen(module, sharded=False, extra={})
    sizes = [p.numel() for p in module.parameters()]
    for rank in range(world):
        result = json.loads((tmp_path / f"result-{rank}.json").read_text())
        assert result["shapes"] == {name: list(shape) for name, shape in whole.shapes().items()}
        assert result["gradients"] == 0
        part = sum(-(-size // world) for size in sizes)
        assert [parts for parts, _ in result["held"]] == [part] * 3
        assert [gathered for _, gathered in result["held"]] == [0, 0, 0 if threshold == NOTHING_WHOLE else sum(sizes)]
        assert_same_way(tmp_path, rank)


def assert_same_way(out: Path, rank: int) -> None:
    """The same model in this process, taken along towards the weights that the other model had."""
    module = case.policy()
    whole = Frozen(module, sharded=False, extra={})
    expected = [score(module)]
    for round_, share in enumerate((0.25, 1.0)):
        expected.append(score(module))
        policy = load_file(out / f"policy-{round_}-{rank}.safetensors")
        before = dict(whole.weights())
        whole.move(policy.items(), share)
        moved = load_file(out / f"moved-{round_}-{rank}.safetensors")
        assert moved.keys() == policy.keys()
        for name, tensor in whole.weights():
            assert torch.equal(moved[name], tensor)
            assert torch.allclose(tensor, (1 - share) * before[name] + share * policy[name], atol=1e-6)
        expected.append(score(module))
    scores = load_file(out / f"scores-{rank}.safetensors")
    assert len(scores) == len(expected)
    for number, tensor in enumerate(expected):
        assert torch.allclose(scores[str(number)], tensor, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(expected[0], expected[2], atol=1e-3)
