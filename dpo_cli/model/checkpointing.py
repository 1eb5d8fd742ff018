"""Activation checkpointing: what a layer keeps for its backward pass, and what it computes again instead.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". The update is the same to the bit: the backward pass
sees the same numbers, made twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from dpo_cli.errors import DpoError

# What selective checkpointing keeps the results of: products of weights, and attention in one kernel. All else in a
# layer (norms, rotations, activations, their products) is cheap to compute and as large. Names of operators and their
# overloads; those that this build of torch lacks are passed over.
_KEPT = (
    "aten::mm",
    "aten::addmm",
    "aten::_grouped_mm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
    "flash_attn::_flash_attn_varlen_forward",
)


def can_checkpoint(model: nn.Module) -> bool:
    """Whether a model has layers that can compute anything again."""
    return any(isinstance(module, GradientCheckpointingLayer) for module in model.modules())


def checkpoint_layers(model: PreTrainedModel, kind: str) -> None:
    """Tell the model's layers what to keep in training; scoring without gradient keeps nothing anyway.

    Args:
        model: any.
        kind: ``none``: a layer keeps all that its backward pass needs. ``selective``: the results of its matrix
            products and of its attention. ``full``: what went into it, and all is computed again: one more forward
            pass, about a third more work.

    Raises:
        DpoError: if its layers can't do it.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if kind != "none" and not layers:
        raise DpoError(
            f"train.activation_checkpointing={kind}: {model.config.model_type} has no layers that can compute anything "
            "again; use none"
        )
    options: dict[str, Any] = {"context_fn": _contexts} if kind == "selective" else {}
    for layer in layers:
        # Set layer by layer: transformers' own method makes the embeddings' output a leaf of the graph as well.
        layer._gradient_checkpointing_func = partial(
            checkpoint,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing in a layer is random but an adapter's dropout, which follows the rows
            **options,
        )
        layer.gradient_checkpointing = kind != "none"


def _contexts() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in kept_operators() else CheckpointPolicy.PREFER_RECOMPUTE


@cache
def kept_operators() -> frozenset[Any]:
    """What selective checkpointing keeps the results of."""
    return frozenset(_found())


def _found() -> Iterator[Any]:
    for name in _KEPT:
        space, _, operator = name.partition("::")
        packet = getattr(getattr(torch.ops, space), operator, None)
        if packet is not None:
            yield from (getattr(packet, overload) for overload in packet.overloads())
