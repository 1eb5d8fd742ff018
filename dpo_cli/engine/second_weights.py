"""Weights beside the policy's that no optimizer moves: those of a reference in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager

import deepspeed
import torch
from torch import Tensor, nn


class SecondWeights:
    """Parameters by name, whole on every rank or shared out by ZeRO 3."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter by name, whole, on the CPU. All ranks must iterate."""
        for name, parameter in self._parameters.items():
            with gathered(parameter):
                whole = parameter.detach().to("cpu", copy=True)
            yield name, whole

    def move(self, weights: Iterable[tuple[str, Tensor]], share: float) -> None:
        """Go ``share`` of the way to other weights. All ranks must call it.

        Args:
            weights: by parameter name; whole, the same on every rank.
            share: 1 = these weights.
        """
        for name, weight in weights:
            parameter = self._parameters[name]
            # The first rank's result is cut up anew; without a rank to modify it, DeepSpeed would drop it.
            with gathered(parameter, modifier_rank=0), torch.no_grad():
                parameter.lerp_(weight.to(parameter), share)


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Of a parameter that ranks may share out."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def gathered(parameter: nn.Parameter, modifier_rank: int | None = None) -> AbstractContextManager[None]:
    """A context in which a parameter is whole, if ranks share it out. All ranks must enter it.

    Args:
        parameter: any.
        modifier_rank: whose changes are to stay; None = there are none.
    """
    sharded = hasattr(parameter, "ds_id")
    context: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(
        [parameter], modifier_rank=modifier_rank, enabled=sharded
    )
    return context
