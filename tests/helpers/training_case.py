"""One small training run, done the plain way: the whole global batch at once, torch's own optimizer, one process.

What an engine does with the same run, in any number of ranks and micro-batches, is compared with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen2Config

from dpo_cli.data.types import Group, Pair
from dpo_cli.losses import make_loss
from dpo_cli.model.attention import GROUP_ATTENTION
from dpo_cli.model.policy import Policy
from dpo_cli.objective import Objective
from helpers.families import VOCABULARY, build

# Large eps: where a gradient is nothing but rounding, Adam would otherwise blow it up to a full step.
ADAMW: dict[str, Any] = {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": ADAMW,
    "rmsprop": {"alpha": 0.9, "eps": 1e-4},
    "adamw_8bit": ADAMW,
    "paged_adamw_32bit": ADAMW,
}
CLIP = 0.3
"""Far below every norm of the run, so that clipping always bites."""
RATES = [1e-3, 2e-3, 5e-4, 1e-3]
"""Learning rate of each update."""
DEEPSPEED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
"""Or stage 3 would leave parameters as small as these whole on every rank."""
FROZEN = "model.model.norm.weight"

# Group indices of one update: [world size][rank][micro-batch]. Unequal in size and weight; the last is a filler.
SPLITS: dict[int, list[list[list[int]]]] = {
    1: [[[0, 1, 2], [3], [4, 5]]],
    2: [[[0], [1, 2]], [[3, 4, 5], []]],
    3: [[[0], [1]], [[2, 3], []], [[4, 5], []]],
}


def shape(width: int = 16) -> Qwen2Config:
    """Of a model with tied embeddings, biases and norms."""
    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )


def policy(width: int = 16) -> Policy:
    """With a frozen parameter as well: everything that a ZeRO stage may trip over."""
    result = Policy(build(shape(width), GROUP_ATTENTION, torch.float32), precision="fp32", groups=True)
    dict(result.named_parameters())[FROZEN].requires_grad_(False)
    return result


def groups_of(update: int) -> list[Group]:
    """Six groups with one to three comparisons each."""
    random = np.random.default_rng(update)

    def tokens(low: int, high: int) -> Any:
        return random.integers(2, VOCABULARY, random.integers(low, high), dtype=np.int32)

    pairs = [((0, 1),), ((1, 0),), ((0, 1), (0, 2), (1, 2)), ((1, 0),), ((0, 1), (2, 1)), ((0, 1),)]
    return [
        Group(
            tokens(1, 9),
            tuple(tokens(2, 12) for _ in range(1 + max(max(pair) for pair in some))),
            tuple(Pair(*pair) for pair in some),
            str(index),
        )
        for index, some in enumerate(pairs)
    ]


def loss_of(module: Any, groups: list[Group], comparisons: int) -> Tensor:
    """The groups' part of the loss: the sum over their comparisons, each weighing one over ``comparisons``."""
    loss = make_loss({"name": "dpo", "beta": 0.3})
    objective = Objective(groups, loss, lambda batch: torch.full([len(batch.answer)], -4.0), share=True)
    batch, logps = objective.look(module, groups)
    preferences = objective.preferences(batch, logps, range(comparisons_of(groups)))
    return loss(logps, preferences).losses.sum() / comparisons


def comparisons_of(groups: list[Group]) -> int:
    return sum(len(group.pairs) for group in groups)


def width_of(optimizer: str) -> int:
    """Of the model. 8 bits are for tensors of 4,096 numbers and more: embeddings and MLPs of the wide one, not all."""
    return 96 if optimizer == "adamw_8bit" else 16


def plain_optimizer(name: str, trained: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """torch's own, as a training loop by hand would make it; where 8 bits are tried, their float32 original."""
    if name == "rmsprop":
        return torch.optim.RMSprop(trained.values(), **OPTIMIZERS[name])
    matrices = [p for p in trained.values() if p.ndim >= 2]
    others = [p for p in trained.values() if p.ndim < 2]
    return torch.optim.AdamW([{"params": matrices}, {"params": others, "weight_decay": 0.0}], **ADAMW)


class Plain:
    """The run after each update: ``weights[n]``, ``moments[n]`` after n updates, ``norms[n]`` of update n."""

    def __init__(self, clip: float | None, name: str = "adamw") -> None:
        module = policy(width_of(name))
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        optimizer = plain_optimizer(name, trained)
        self.weights = [_copy(dict(module.named_parameters()))]
        self.moments: list[dict[str, Tensor]] = [{}]
        self.norms: list[float] = []
        for update, lr in enumerate(RATES):
            groups = groups_of(update)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss_of(module, groups, comparisons_of(groups)).backward()
            limit = float("inf") if clip is None else clip
            self.norms.append(float(nn.utils.clip_grad_norm_(trained.values(), limit)))
            optimizer.step()
            optimizer.zero_grad()
            self.weights.append(_copy(dict(module.named_parameters())))
            self.moments.append(
                _copy(
                    {
                        f"{name}/{moment}": optimizer.state[p][moment]
                        for name, p in trained.items()
                        for moment in optimizer.state[p].keys() - {"step"}
                    }
                )
            )


def _copy(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
