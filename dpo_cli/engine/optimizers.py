"""Optimizers, and what each remembers of a parameter."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dpo_cli.errors import DpoError
from dpo_cli.model.sizes import whole_shape

_BITSANDBYTES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "paged_adamw_32bit": "PagedAdamW32bit",
}
_NOT_MOMENTS = ("step", "qmap1", "qmap2")
"""The count of updates, and bitsandbytes' tables of the values that 8 bits can take, which are the same always."""


def check_optimizer(name: str, zero_stage: int, device: torch.device) -> None:
    """Refuse an optimizer that can't run here, or whose state can't be kept in checkpoints.

    Raises:
        DpoError: naming what to install or choose instead.
    """
    if name not in _BITSANDBYTES:
        return
    if name.endswith("_8bit") and zero_stage:
        raise DpoError(
            f"optim={name} shares one scale among 256 numbers, and ZeRO {zero_stage} cuts through them, so that a "
            "checkpoint could not be gone on from: set engine.zero_stage=0, or choose optim=paged_adamw_32bit or "
            "optim=adamw"
        )
    if name.startswith("paged_") and device.type != "cuda":
        instead = "adamw_8bit" if name.endswith("_8bit") else "adamw"
        raise DpoError(f"optim={name} pages between GPU and CPU memory, and there is no GPU: choose optim={instead}")
    trial = nn.Parameter(torch.zeros(4096, device=device))  # from this size on, states have 8 bits
    trial.grad = torch.zeros_like(trial)
    try:
        make_optimizer(name, [trial], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0).step()
    except DpoError:
        raise
    except Exception as error:  # bitsandbytes has many, of its own and of the libraries it loads
        what = str(error).strip().splitlines() or [type(error).__name__]
        raise DpoError(
            f"optim={name}: bitsandbytes does not run on this {device.type} ({what[0]}); install a version that does, "
            "or choose optim=adamw"
        ) from error


def make_optimizer(name: str, parameters: Sequence[nn.Parameter], **hyperparameters: Any) -> torch.optim.Optimizer:
    """The optimizer of that name, with learning rate 0 until it is set.

    Args:
        name: ``adamw``, ``rmsprop``, or one of bitsandbytes'.
        parameters: to be trained.
        hyperparameters: the optimizer's own. Weight decay is for matrices and embeddings, never for biases and norms.

    Raises:
        DpoError: if it needs bitsandbytes and that is not installed.
    """
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=0.0, **hyperparameters)
    weight_decay = hyperparameters.pop("weight_decay")
    groups = [
        {"params": [p for p in parameters if len(whole_shape(p)) >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if len(whole_shape(p)) < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, fused=True, **hyperparameters)
    kind: type[torch.optim.Optimizer] = getattr(_bitsandbytes(name), _BITSANDBYTES[name])
    return kind(groups, lr=0.0, **hyperparameters)  # type: ignore[call-arg]


def moment_names(state: Mapping[str, Any]) -> list[str]:
    """What an optimizer remembers of a parameter besides the count of updates.

    Args:
        state: its state of one parameter. 8-bit states are two tensors with a scale for each 256 numbers.
    """
    return [name for name, value in state.items() if isinstance(value, Tensor) and name not in _NOT_MOMENTS]


def set_updates(state: dict[str, Any], updates: int) -> None:
    """Set the count of updates, on which Adam's bias correction depends."""
    if isinstance(state["step"], Tensor):
        state["step"].fill_(updates)
    else:
        state["step"] = updates


def _bitsandbytes(name: str) -> Any:
    try:
        return importlib.import_module("bitsandbytes.optim")
    except ImportError:
        raise DpoError(
            f"optim={name} needs bitsandbytes, which is not installed: pip install 'dpo-cli[bnb]', or choose "
            "optim=adamw"
        ) from None
