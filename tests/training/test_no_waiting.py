"""A micro-batch is only queued: nothing in it asks the device for a number, which would stop host and GPU in turn.

Tensors on the meta device have no numbers to give, so that every such question is an error there.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from helpers.families import FAMILIES, awkward_groups, build, masked_groups
from helpers.loss_cases import loss
from torch.nn.attention.varlen import varlen_attn

from dpo_cli import objective as objective_module
from dpo_cli.data.types import Group
from dpo_cli.losses import Sums
from dpo_cli.model import attention
from dpo_cli.model.attention import GROUP_ATTENTION
from dpo_cli.model.attention_varlen import Found, of_torch
from dpo_cli.model.policy import Policy
from dpo_cli.objective import Objective

META = torch.device("meta")


def micro_batch(policy: Policy, groups: list[Group], name: str, **hyper) -> Sums:
    """What ``train_step`` does with a micro-batch."""
    which = loss(name, **hyper)
    reference = (lambda batch: torch.full([len(batch.answer)], -4.0)) if which.needs_reference else None
    objective = Objective(groups, which, reference, share=policy.groups)
    batch, logps = objective.look(policy, groups)
    result = which(logps, objective.preferences(batch, logps, range(sum(len(group.pairs) for group in groups))))
    result.losses.sum().backward()
    sums = Sums(which.metric_names)
    sums.add(result.metrics)
    return sums


@pytest.fixture
def on_meta(monkeypatch) -> None:
    monkeypatch.setattr(objective_module, "device", lambda: META)
    # Autocast does not know the meta device.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)


@pytest.mark.parametrize("kernel", [None, of_torch(varlen_attn)])
@pytest.mark.parametrize(("name", "hyper"), [("dpo", {"wpo": True}), ("orpo", {"nll": "full"}), ("exo", {})])
def test_a_micro_batch_asks_the_device_for_nothing(monkeypatch, on_meta, name: str, hyper, kernel: Any) -> None:
    """In groups; without them, transformers looks at the positions once in a pass."""
    monkeypatch.setattr(attention, "find_kernel", lambda _: Found(kernel))
    model = build(FAMILIES["mistral-window"](), GROUP_ATTENTION, torch.float32).to(META)
    policy = Policy(model, precision="fp32", groups=True)
    sums = micro_batch(policy, [*awkward_groups(), *masked_groups()], name, **hyper)
    assert all(parameter.grad is not None for parameter in policy.parameters())
    with pytest.raises(NotImplementedError, match="meta"):
        sums.total("loss")  # the first question, which the loop asks once in an update


def test_sums_do_not_depend_on_when_they_are_read() -> None:
    random = torch.Generator().manual_seed(0)
    metrics = [{"loss": torch.rand(3, generator=random), "other": torch.rand(2, generator=random)} for _ in range(5)]
    late, early = Sums(("loss", "other")), Sums(("loss", "other"))
    expected = 0.1
    late.values = early.values = [0.1, 0.0, 0.0, 0.0]
    for some in metrics:
        late.add(some)
        early.add(some)
        expected += float(some["loss"].double().sum())
        assert early.total("loss") == expected
    assert late.values == early.values
    assert late.values[1::2] == [15.0, 10.0]
