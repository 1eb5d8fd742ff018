"""Weights that ranks share out while they are read, as ZeRO 3 will have them, before there is an engine.

So no rank ever holds a whole model, and none but the weight that is being read and the vocabulary's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import deepspeed
import torch
from torch import nn

from dpo_cli.engine.linear import round_once
from dpo_cli.engine.settings import deepspeed_config

round_once()


def sharding_config(extra: Mapping[str, Any]) -> dict[str, Any]:
    """What DeepSpeed is told of weights under ZeRO 3 that no optimizer moves.

    Args:
        extra: the user's own keys, of which those that say how weights are shared out count.
    """
    zero = {key: extra[key] for key in ("zero_optimization",) if key in extra}
    return deepspeed_config(zero_stage=3, max_grad_norm=None, extra=zero)


class Sharder:
    """Cuts up parameters, one after another."""

    def __init__(self, extra: Mapping[str, Any]) -> None:
        """``extra``: the user's DeepSpeed keys."""
        # DeepSpeed cuts up modules, but parameters only with the help of one that is cut up already.
        first = nn.Linear(1, 1, bias=False)
        deepspeed.zero.Init(module=first, config_dict_or_path=sharding_config(extra), dtype=torch.float32)
        self._cut: Callable[[list[nn.Parameter]], None] = first.weight.convert_to_zero_parameters  # type: ignore[attr-defined]

    def __call__(self, parameter: nn.Parameter) -> None:
        """Leave this rank its part of a whole parameter, where DeepSpeed wants it; one in parts stays as it is.

        All ranks must call it, for the same parameters in the same order. The first rank's numbers are those that are
        shared out.
        """
        if not hasattr(parameter, "ds_id"):
            # It may lie in a file's memory map, of which all that the first rank's numbers are written over would stay.
            parameter.data = parameter.data.clone()
        self._cut([parameter])


def gather_where_used(module: nn.Module) -> Callable[[], None]:
    """Let a module whose weights are shared out run without gradient, until what this gives back is called.

    Each submodule gathers its own weights for the length of its forward pass. All ranks must run it equally often.
    Not DeepSpeed's engine, which leaves traces in a module that a second engine, which trains it, would follow.
    """
    contexts: dict[nn.Module, Any] = {}

    def gather(submodule: nn.Module, args: Any) -> None:
        context = deepspeed.zero.GatheredParameters(list(submodule.parameters(recurse=False)))
        context.__enter__()
        contexts[submodule] = context

    def let_go(submodule: nn.Module, args: Any, output: Any) -> None:
        contexts.pop(submodule).__exit__(None, None, None)

    handles = []
    for submodule in module.modules():
        if next(submodule.parameters(recurse=False), None) is not None:
            handles += [
                submodule.register_forward_pre_hook(gather),
                submodule.register_forward_hook(let_go, always_call=True),
            ]

    def end() -> None:
        for handle in handles:
            handle.remove()

    return end
