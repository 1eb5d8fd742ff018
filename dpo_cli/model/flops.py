"""Necessary floating-point operations, for balancing ranks and for an honest model FLOPs utilisation.

Counted is what exact training can't do without: every shared token once, log-probs only where an answer token is
predicted, no padding, no recomputation. Utilisation measured with it can't be raised by wasted work.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from dpo_cli.data.collate import collate, shared_prefix
from dpo_cli.data.types import Group
from dpo_cli.model.devices import known_gpu
from dpo_cli.model.sizes import whole_shape


@dataclass(frozen=True)
class FlopsModel:
    """Forward FLOPs of a group as a polynomial of its lengths."""

    per_token: float
    """Twice the matrix parameters outside embeddings and head."""
    per_prediction: float
    """Twice the head's parameters."""
    per_pair: float
    """Of attention, for each query and key visible to it: 4 x layers x heads x head size."""
    unread_per_token: float = 0.0
    """What the last layer spends on a position that predicts nothing: all but its key and value projections."""
    unread_per_pair: float = 0.0
    """The last layer's part of ``per_pair``."""

    @classmethod
    def of(cls, model: PreTrainedModel, *, update: bool = False) -> FlopsModel:
        """Read off a model's parameters; experts that a token doesn't visit are not counted.

        Args:
            model: with or without an adapter.
            update: forward and backward pass instead of the forward pass alone. The backward pass costs as much once
                more for the gradient of what goes into a matrix, and again for that of the matrix where it is trained.
        """
        config = model.config.get_text_config()
        head = model.get_output_embeddings().weight
        looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        matrices = trained = 0.0
        for name, parameter in model.named_parameters():
            if len(whole_shape(parameter)) >= 2 and parameter is not head and id(parameter) not in looked_up:
                size = float(_size(parameter))
                if ".experts." in name:
                    count = getattr(config, "num_local_experts", None) or config.num_experts
                    size *= config.num_experts_per_tok / count
                matrices += size
                trained += size * parameter.requires_grad
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        layers = config.num_hidden_layers
        key_value_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        pair = 4.0 * config.num_attention_heads * width
        passes = 2.0 + trained / matrices if update else 1.0
        head_passes = 2.0 + head.requires_grad if update else 1.0
        pair_passes = 3.0 if update else 1.0  # queries, keys and values all have gradients
        return cls(
            per_token=passes * 2.0 * matrices,
            per_prediction=head_passes * 2.0 * _size(head),
            per_pair=pair_passes * layers * pair,
            unread_per_token=passes * 2.0 * (matrices / layers - 2 * config.hidden_size * key_value_heads * width),
            unread_per_pair=pair_passes * pair,
        )

    def forward(self, group: Group) -> float:
        """One forward pass over the group."""
        shared = shared_prefix(group.answers)
        trunk = len(group.prompt_ids) + shared
        branches = [len(answer) - shared - 1 for answer in group.answers]
        predictions, unread, unread_pairs = _read(group, shared)
        pairs = trunk * (trunk + 1) / 2 + sum(branch * (trunk + (branch + 1) / 2) for branch in branches)
        return (
            self.per_token * (trunk + sum(branches))
            + self.per_prediction * predictions
            + self.per_pair * pairs
            - self.unread_per_token * unread
            - self.unread_per_pair * unread_pairs
        )


def _read(group: Group, shared: int) -> tuple[int, int, float]:
    """Tokens predicted; positions of whose outputs in the last layer nothing reads any; and the keys those see.

    Args:
        group: any.
        shared: first tokens that its answers share.
    """
    if group.scored:
        batch = collate([group])
        unread = np.delete(batch.position_ids, batch.rows)
        return len(batch.targets), len(unread), float(np.sum(unread + 1))
    before = len(group.prompt_ids) - 1
    return sum(map(len, group.answers)) - shared * (len(group.answers) - 1), before, before * (before + 1) / 2


def count_weights(model: PreTrainedModel) -> int:
    """A model's weights, however they are held."""
    return sum(_size(parameter) for parameter in model.parameters())


def _size(parameter: nn.Parameter) -> int:
    """Entries of a weight."""
    return whole_shape(parameter).numel()


def peak_flops(device: torch.device, precision: str) -> float | None:
    """What the device can do per second: a GPU's data sheet, a CPU's own matrix products; None if unknown."""
    if device.type == "cuda":
        known = known_gpu(torch.cuda.get_device_name(device))
        return None if known is None else known.peak(precision)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size, seconds = _SIZES[0], _product_seconds(_SIZES[0], dtype)
    for larger in _SIZES[1:]:
        if seconds * (larger / size) ** 3 > _LONG:  # a CPU without bfloat16 takes a hundred times as long as in float32
            break
        size, seconds = larger, _product_seconds(larger, dtype)
    return 2 * size**3 / seconds


_SIZES = (96, 384, 1536)
"""Of a square matrix: the larger, the nearer its products come to what the CPU can do."""
_LONG = 1.0
"""Seconds that a product must not take only to be timed."""


def _product_seconds(size: int, dtype: torch.dtype) -> float:
    left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(5):  # the best of a few: the first one warms up, others may be disturbed
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return best
