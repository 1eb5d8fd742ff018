"""A second model that only scores: whole on every rank, or shared out over the ranks by ZeRO 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import deepspeed
import torch
from torch import nn

from dpo_cli.engine.second_weights import SecondWeights
from dpo_cli.engine.sharding import sharding_config
from dpo_cli.model.sizes import whole_shape


class Frozen(SecondWeights):
    """The weights of a module that is not trained, wherever they lie.

    The module itself is called as before: DeepSpeed's hooks on it gather what is needed, layer by layer. When it is
    sharded, all ranks must call it alike.
    """

    def __init__(self, module: nn.Module, *, sharded: bool, extra: Mapping[str, Any]) -> None:
        """
        Args:
            module: float32. To be sharded, its weights may lie on the CPU, or be shared out already.
            sharded: whether each rank holds only its part of the weights.
            extra: the user's DeepSpeed keys; what they say of ZeRO goes for these weights too.
        """
        self.sharded = sharded
        module.eval().requires_grad_(False)
        # Kept, because DeepSpeed takes its hooks away with the engine.
        self._deepspeed = _shard(module, extra) if sharded else None
        super().__init__(dict(module.named_parameters()))

    def shapes(self) -> dict[str, torch.Size]:
        """Of the whole parameters, by name."""
        return {name: whole_shape(p) for name, p in self._parameters.items()}

    def destroy(self) -> None:
        """Let go of DeepSpeed's hooks."""
        if self._deepspeed is not None:
            self._deepspeed.destroy()


def _shard(module: nn.Module, extra: Mapping[str, Any]) -> Any:
    """ZeRO 3 without an optimizer: DeepSpeed then keeps neither gradients nor states."""
    config = sharding_config(extra)
    # One parameter after the other is brought to the device and cut up; the engine by itself would bring all of them
    # first, and beside the policy there may be no room.
    deepspeed.zero.Init(module=module, config_dict_or_path=config, dtype=torch.float32)
    engine, *_ = deepspeed.initialize(model=module, config=config, dist_init_required=False)
    return engine
