"""The types of ``optim.*``: one model per kind of optimizer, so that a key it makes no use of is an unknown one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from dpo_cli.config_types import Positive, PositiveInt, Section, Share


class _Optimizer(Section):
    """What all have: the learning rate's course, and clipping."""

    lr: Positive
    schedule: Literal["linear", "cosine", "cosine_with_min_lr", "inverse_sqrt", "constant"]
    min_lr_ratio: Share | None
    warmup_ratio: Share
    warmup_steps: PositiveInt | None
    max_grad_norm: Positive | None

    def settings(self) -> dict[str, Any]:
        """Name and hyperparameters of the optimizer alone, as ``engine.optimizers.make_optimizer`` takes them."""
        return self.model_dump(exclude=set(_Optimizer.model_fields))


class AdamWConfig(_Optimizer):
    name: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"]
    betas: tuple[Share, Share]
    eps: Positive
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class RMSpropConfig(_Optimizer):
    name: Literal["rmsprop"]
    alpha: Share
    eps: Positive


OptimConfig = AdamWConfig | RMSpropConfig


def optim_conflicts(optim: OptimConfig) -> Iterator[str]:
    """Keys of the schedule that contradict each other, or have no effect together."""
    if optim.schedule == "cosine_with_min_lr" and optim.min_lr_ratio is None:
        yield "optim.schedule=cosine_with_min_lr needs optim.min_lr_ratio, the share of optim.lr that it ends at"
    if optim.schedule != "cosine_with_min_lr" and optim.min_lr_ratio is not None:
        yield (
            f"optim.min_lr_ratio={optim.min_lr_ratio} has no effect with optim.schedule={optim.schedule}: it is for "
            "cosine_with_min_lr"
        )
    if optim.warmup_steps is not None and optim.warmup_ratio:
        yield (
            f"optim.warmup_steps={optim.warmup_steps} and optim.warmup_ratio={optim.warmup_ratio} both say how long "
            "the warm-up is: set optim.warmup_ratio=0, or optim.warmup_steps=null"
        )
