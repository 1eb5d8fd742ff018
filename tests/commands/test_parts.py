"""A reference that moves towards the policy."""

from __future__ import annotations

import pytest
import torch
from helpers.families import FAMILIES, build

from dpo_cli.commands.parts import Reference
from dpo_cli.engine.frozen import Frozen
from dpo_cli.errors import DpoError
from dpo_cli.model.attention import GROUP_ATTENTION
from dpo_cli.model.policy import Policy
from dpo_cli.reference.compute import ReferenceCounts


def policy(family: str) -> Policy:
    return Policy(build(FAMILIES[family](), GROUP_ATTENTION, torch.float32), precision="fp32", groups=True)


def reference(live: Policy) -> Reference:
    return Reference(None, lambda: live, ReferenceCounts(0, 0), {}, None, Frozen(live, sharded=False, extra={}))


def test_it_goes_a_part_of_the_way() -> None:
    live, ahead = policy("llama"), policy("llama")
    with torch.no_grad():
        for parameter in ahead.parameters():
            parameter.add_(1.0)
    before = {name: parameter.clone() for name, parameter in live.named_parameters()}
    moving = reference(live)
    moving.check_can_follow(ahead)
    moving.follow(ahead.named_parameters(), 0.25)
    for name, parameter in live.named_parameters():
        assert torch.allclose(parameter, before[name] + 0.25, atol=1e-6)
    moving.follow(ahead.named_parameters(), 1.0)
    assert all(torch.equal(p, dict(ahead.named_parameters())[name]) for name, p in live.named_parameters())


def test_another_architecture_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(DpoError, match=r"expected the same architecture$"):
        reference(policy("llama")).check_can_follow(policy("qwen3"))
