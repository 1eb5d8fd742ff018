"""A model's log-probs and their gradients the textbook way, one sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dpo_cli.data.types import Group


def plain_logps(model: PreTrainedModel, groups: Sequence[Group]) -> Tensor:
    """Every answer's token log-probs: ``[M]``."""
    logps = []
    for group in groups:
        for answer in group.answers:
            ids = torch.tensor(np.concatenate((group.prompt_ids, answer)), dtype=torch.int64)
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
            table = torch.log_softmax(logits.double(), dim=-1)
            chosen = table[torch.arange(len(ids) - 1), ids[1:]]
            logps.append(chosen[len(group.prompt_ids) - 1 :])
    return torch.cat(logps)


def gradients(model: PreTrainedModel, logps: Tensor) -> dict[str, Tensor]:
    """Of a sum with unequal weights, so that no two tokens can be mixed up."""
    weights = torch.linspace(-1.0, 2.0, len(logps), dtype=logps.dtype)
    model.zero_grad()
    (weights * logps).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
