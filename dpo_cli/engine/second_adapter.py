"""A frozen adapter beside the one that is trained, in the same model: a reference without a second model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import deepspeed
import torch
from torch import Tensor

from dpo_cli.model.adapters import REFERENCE, Adapter


class SecondAdapter:
    """The weights of the reference's adapter, by the names that the policy's have under an engine."""

    def __init__(self, adapter: Adapter) -> None:
        """``adapter``: of a model in which ``keep_reference`` has put the second one."""
        self._parameters = {f"model.{name}": p for name, p in adapter.weights_of(REFERENCE).items()}

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter by name, whole, on the CPU. All ranks must iterate."""
        for name, parameter in self._parameters.items():
            with deepspeed.zero.GatheredParameters([parameter], enabled=_is_sharded(parameter)):
                whole = parameter.detach().to("cpu", copy=True)
            yield name, whole

    def move(self, weights: Iterable[tuple[str, Tensor]], share: float) -> None:
        """Go ``share`` of the way to other weights, by parameter name. All ranks must call it with the same."""
        for name, weight in weights:
            parameter = self._parameters[name]
            sharded = _is_sharded(parameter)
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=sharded), torch.no_grad():
                parameter.lerp_(weight.to(parameter), share)


def _is_sharded(parameter: Tensor) -> bool:
    return hasattr(parameter, "ds_id")
