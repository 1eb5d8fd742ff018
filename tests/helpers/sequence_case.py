"""Models, rows and runs that processes share, and the same by one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import PretrainedConfig

from dpo_cli.data.collate import FlatBatch, flat_length
from dpo_cli.data.plan import Plan, Step
from dpo_cli.data.types import Group
from dpo_cli.model.adapters import NewAdapter, add_adapter
from dpo_cli.model.attention import GROUP_ATTENTION
from dpo_cli.model.files import ModelFiles
from dpo_cli.model.policy import Policy
from helpers.families import FAMILIES, MIXTURES, VOCABULARY, awkward_groups, build, masked_groups
from helpers.plain_model import plain_logps
from helpers.training_case import ADAMW, DEEPSPEED, groups_of, shape

__all__ = ["ADAMW", "DEEPSPEED"]


CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {**FAMILIES, **MIXTURES, "one-key-head": shape}
FAMILIES_TRIED = [
    *((name, True, "float64", False) for name in (*FAMILIES, "one-key-head")),
    *((name, False, "float64", False) for name in ("llama", "gemma2", "one-key-head")),
    *((name, True, "float64", True) for name in ("llama", "gemma2", "mistral-window")),
    *((name, True, "float32", False) for name in MIXTURES),
]
"""Family, whether prompts are run once, in which numbers, and whether through a variable-length kernel."""


def key(name: str, share: bool, dtype: str, kernel: bool) -> str:
    return f"{name}-{share}-{dtype}-{kernel}"


def _tiny(prompt: int, *answers: int) -> list[Group]:
    random = np.random.default_rng(3)
    ids = [random.integers(2, VOCABULARY, count, dtype=np.int32) for count in (prompt, *answers)]
    return [Group(ids[0], tuple(ids[1:]), (), "tiny")]


ROWS: dict[str, Callable[[], list[Group]]] = {
    "awkward": awkward_groups,
    "masked": lambda: [replace(group, scored=()) for group in masked_groups()],
    "one-token": lambda: _tiny(1, 1, 1),
    "nothing-in-the-first-slice": lambda: _tiny(9, 1, 2),
}
"""Rows of 1 token, of an odd and of an even number; slices in which nothing is predicted."""


def policy_of(name: str, share: bool, dtype: str, *, spread: bool) -> Policy:
    model = build(CONFIGS[name](), GROUP_ATTENTION, getattr(torch, dtype))
    return Policy(model, precision="fp32", groups=share, spread=spread)


def long_group() -> Group:
    """A long prompt and two answers."""
    random = np.random.default_rng(5)
    prompt, *answers = (random.integers(2, VOCABULARY, count, dtype=np.int32) for count in (200, 20, 16))
    return Group(prompt, tuple(answers), (), "long")


# -- runs


BETA = 0.3
CLIP = 0.3
RATES = [1e-3, 2e-3, 5e-4, 1e-3]


class Run(NamedTuple):
    """A way to make the run."""

    family: str
    stage: int
    share: bool = True
    adapter: bool = False
    checkpointing: str = "none"
    loss: str = "dpo"


@cache
def groups() -> list[Group]:
    """Twelve, with 18 comparisons."""
    found = [group for update in range(2) for group in groups_of(update)]
    return [replace(group, source=str(number)) for number, group in enumerate(found)]


def reference(batch: FlatBatch) -> Tensor:
    """Of a batch: some number for each token, which follows from the row."""
    return torch.cat(
        [torch.full([sum(map(len, group.answers))], -4.0 - int(group.source) / 8) for group in batch.groups]
    )


def step(update: int, ranks: int, *, share: bool) -> Step:
    """Six comparisons or a few more, in several micro-batches; the last one of some ranks is a filler."""
    lengths = [flat_length(group, share=share) for group in groups()]
    counts = [len(group.pairs) for group in groups()]
    plan = Plan(
        lengths,
        lengths,
        counts,
        seed=0,
        batch_size=6,
        epochs=2,
        max_steps=len(RATES),
        world_size=ranks,
        token_budget=40,
        padded=not share,
    )
    return plan[update]


def trained(run: Run, *, spread: bool) -> Policy:
    """The policy of a run."""
    attention = GROUP_ATTENTION if spread or run.share else "sdpa"
    model = build(CONFIGS[run.family](), attention, torch.float32)
    noise = None
    if run.adapter:
        new = NewAdapter("lora", r=4, alpha=8, dropout=0.1, target_modules="all-linear")
        noise = add_adapter(model, new, ModelFiles(""), seed=0).noise
    return Policy(model, precision="fp32", groups=run.share, noise=noise, spread=spread).train()


class Plain:
    """The run by one process in float64 with torch's own optimizer: each sequence by itself through the model's own
    attention, DPO's loss written out."""

    def __init__(self, family: str) -> None:
        model = build(CONFIGS[family](), "eager", torch.float64).train()
        named = dict(model.named_parameters())
        matrices = [p for p in named.values() if p.ndim >= 2]
        others = [p for p in named.values() if p.ndim < 2]
        optimizer = torch.optim.AdamW([{"params": matrices}, {"params": others, "weight_decay": 0.0}], **ADAMW)
        self.curve: list[list[float]] = []
        """Loss, gradient norm and the chosen answers' mean log-prob of each update."""
        for update, lr in enumerate(RATES):
            for each in optimizer.param_groups:
                each["lr"] = lr
            terms, chosen = [], []
            for index in step(update, 1, share=True).groups:
                group = groups()[index]
                lengths = [len(answer) for answer in group.answers]
                policy = torch.stack([part.sum() for part in plain_logps(model, [group]).split(lengths)])
                known = (-4.0 - index / 8) * torch.tensor(lengths)
                ratios = policy - known
                terms += [-logsigmoid(BETA * (ratios[pair.winner] - ratios[pair.loser])) for pair in group.pairs]
                chosen += [float(policy[pair.winner].detach()) for pair in group.pairs]
            loss = torch.stack(terms).mean()
            loss.backward()
            norm = float(nn.utils.clip_grad_norm_(named.values(), CLIP))
            optimizer.step()
            optimizer.zero_grad()
            self.curve.append([float(loss.detach()), norm, sum(chosen) / len(chosen)])
        self.weights: dict[str, Any] = {f"model.{name}": p.detach() for name, p in named.items()}
