"""A second model that only scores: whole on every rank, or shared out over the ranks by ZeRO 3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from dpo_cli.engine.settings import deepspeed_config


class Frozen:
    """The weights of a module that is not trained, wherever they lie.

    The module itself is called as before: DeepSpeed's hooks on it gather what is needed, layer by layer. When it is
    sharded, all ranks must call it alike.
    """

    def __init__(self, module: nn.Module, *, sharded: bool, extra: Mapping[str, Any]) -> None:
        """
        Args:
            module: float32. To be sharded, its weights may lie on the CPU.
            sharded: whether each rank holds only its part of the weights.
            extra: the user's DeepSpeed keys; what they say of ZeRO goes for these weights too.
        """
        self.sharded = sharded
        self._module = module.eval().requires_grad_(False)
        # Kept, because DeepSpeed takes its hooks away with the engine.
        self._deepspeed = _shard(module, extra) if sharded else None

    def shapes(self) -> dict[str, torch.Size]:
        """Of the whole parameters, by name."""
        return {name: getattr(p, "ds_shape", p.shape) for name, p in self._module.named_parameters()}

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter by name, whole, on the CPU. All ranks must iterate."""
        for name, parameter in self._module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.sharded):
                whole = parameter.detach().to("cpu", copy=True)
            yield name, whole

    def move(self, weights: Iterable[tuple[str, Tensor]], share: float) -> None:
        """Go ``share`` of the way to other weights. All ranks must call it.

        Args:
            weights: by parameter name; whole, the same on every rank.
            share: 1 = these weights.
        """
        parameters = dict(self._module.named_parameters())
        for name, weight in weights:
            parameter = parameters[name]
            # The first rank's result is cut up anew; without a rank to modify it, DeepSpeed would drop it.
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.sharded), torch.no_grad():
                parameter.lerp_(weight.to(parameter), share)

    def destroy(self) -> None:
        """Let go of DeepSpeed's hooks."""
        if self._deepspeed is not None:
            self._deepspeed.destroy()


def _shard(module: nn.Module, extra: Mapping[str, Any]) -> Any:
    """ZeRO 3 without an optimizer: DeepSpeed then keeps neither gradients nor states."""
    zero = {key: extra[key] for key in ("zero_optimization",) if key in extra}
    config = deepspeed_config(zero_stage=3, max_grad_norm=None, extra=zero)
    # One parameter after the other is brought to the device and cut up; the engine by itself would bring all of them
    # first, and beside the policy there may be no room.
    deepspeed.zero.Init(module=module, config_dict_or_path=config, dtype=torch.float32)
    engine, *_ = deepspeed.initialize(model=module, config=config, dist_init_required=False)
    return engine
