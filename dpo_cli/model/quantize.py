"""Matrices in 4 or 8 bits, by bitsandbytes."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from dpo_cli.errors import DpoError


def quantization_options(kind: str | None, precision: str, device: torch.device) -> dict[str, Any]:
    """Keywords of ``from_pretrained`` that quantise a model's matrices while it is loaded.

    Args:
        kind: ``nf4``, ``nf4_double`` (scales in 8 bits as well), ``int8``; None = no keywords.
        precision: that the matrix products run in: ``fp32`` or ``bf16``.
        device: the model goes to.

    Raises:
        DpoError: if bitsandbytes is not installed.
    """
    if kind is None:
        return {}
    try:
        importlib.import_module("bitsandbytes")
    except ImportError:
        raise DpoError(
            "matrices in 4 or 8 bits need bitsandbytes, which is not installed: pip install 'dpo-cli[bnb]', or choose "
            "model/adapter=lora"
        ) from None
    if kind == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=kind == "nf4_double",
            bnb_4bit_compute_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        )
    return {"quantization_config": config, "device_map": {"": device}}


def keep_one_path(model: nn.Module) -> None:
    """Have quantised matrices compute as in training at all times.

    On a CPU, bitsandbytes' layers compute otherwise when they are told that they are not being trained: the reference
    and the policy would differ by more than rounding, and 4-bit weights would be packed anew in place.
    """
    for module in model.modules():
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            module.training = True
            module.train = partial(_stay, module)  # type: ignore[method-assign]


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def check_stage(kind: str | None, zero_stage: int) -> None:
    """Refuse what DeepSpeed can't hold.

    Raises:
        DpoError: for quantised matrices under ZeRO 3.
    """
    if kind is not None and zero_stage == 3:
        raise DpoError(
            f"engine.zero_stage=3 cuts weights up and puts them together again, and loses the scales of matrices in "
            f"{kind} on the way: use engine.zero_stage=2 (an adapter's gradients and optimizer state are small), or "
            "model/adapter=lora"
        )
