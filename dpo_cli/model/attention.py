"""Attention over groups: each answer sees its prompt and itself, never another answer or another group.

Registered with transformers under one name, so that every model family that goes through
``AttentionInterface`` needs no patch. Nothing is registered with ``AttentionMaskInterface``: transformers then
builds no mask, and what may see what comes from the ``Segments`` handed to the model's forward as ``segments``.

On a GPU in half precision all of it is one call of a variable-length kernel (``attention_varlen``); elsewhere one call
of SDPA for each stretch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from dpo_cli.data.collate import Layout
from dpo_cli.model import attention_blocks, attention_varlen
from dpo_cli.model.attention_blocks import MAX_KEYS, Block, blocks_of, longest
from dpo_cli.model.attention_varlen import Scoring, Shape, Stretches, find_kernel
from dpo_cli.model.sequence_parallel import own_heads, to_heads, to_tokens

GROUP_ATTENTION = "dpo_groups"

# Keywords that models hand to every attention function and that change nothing here: positions are already in
# the rotary embedding, and there is no cache.
_WITHOUT_EFFECT = frozenset(
    {"position_ids", "cache_position", "use_cache", "output_attentions", "output_router_logits", "return_dict"}
)


def own_attention(model: PreTrainedModel) -> str:
    """The model family's own attention, to compare with and to fall back on: families with softcaps or sinks have no
    SDPA."""
    return "sdpa" if model._supports_sdpa else "eager"


class Segments:
    """Which stretches of a row belong together, and the masks for them; one per forward pass."""

    def __init__(self, layouts: Sequence[Layout], device: torch.device, *, spread: bool = False) -> None:
        """
        Args:
            layouts: of the whole row.
            device: where it is.
            spread: whether the processes of a sequence group share it: layers are then given a slice of the row.
        """
        self.layouts = layouts
        self.spread = spread
        self.device = device
        self.calls = 0
        """Attention layers that have used it: the start-up check compares it with the model's depth."""
        self.kernels: set[str] = set()
        """What the layers went through."""
        self.fallbacks: set[str] = set()
        """Why layers on a GPU did not go through a variable-length kernel."""
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    @cached_property
    def longest(self) -> int:
        """Keys that the last query of the longest sequence sees."""
        return longest(self.layouts)

    @cached_property
    def blocks(self) -> list[Block]:
        """All positions, as ``attention_blocks`` takes them."""
        return blocks_of(self.layouts)

    @cached_property
    def stretches(self) -> Stretches:
        """The same for variable-length kernels."""
        return Stretches.of(self.layouts, self.device)

    def square(self, count: int) -> Tensor:
        """``[count, count]`` bool: what neighbouring positions see of each other, without a window."""
        return self.mask(count, count, None)

    def mask(self, queries: int, keys: int, window: int | None) -> Tensor:
        """``[queries, keys]`` bool, True where visible: the queries are the last of the keys' positions.

        With a window, a key is visible when 0 <= query position - key position < window.
        """
        key = (queries, keys, window)
        if key not in self._masks:
            distance = torch.arange(keys - queries, keys, device=self.device)[:, None] - torch.arange(
                keys, device=self.device
            )
            visible = distance >= 0
            self._masks[key] = visible if window is None else visible & (distance < window)
        return self._masks[key]


def group_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function models call in each layer.

    Args:
        query: ``[1, heads, T, d]``, of a row that is spread its slice; ``key`` and ``value`` may have fewer heads, a
            divisor of the queries'.
        attention_mask: must be None.
        scaling: of the scores; None = 1 / sqrt(d).
        segments: what sees what.
        sliding_window: None, or how far back a query sees, itself included.
        softcap: None, or the scores' soft limit (Gemma 2).
        s_aux: None, or ``[heads]`` logits that take part in the softmax without a value (gpt-oss).

    Returns:
        ``[1, T, heads, d]`` and None.

    Raises:
        ValueError: for anything that would change the result and is not handled here.
    """
    unknown = [name for name, given in others.items() if given is not None and name not in _WITHOUT_EFFECT]
    if segments is None or attention_mask is not None or unknown or dropout or is_causal is False:
        raise ValueError(
            f"{type(module).__name__} asks for attention that groups can't do: segments given: {segments is not None}, "
            f"mask: {attention_mask is not None}, dropout: {dropout}, is_causal: {is_causal}, other keywords: {unknown}"
        )
    segments.calls += 1
    scoring = Scoring(scaling, sliding_window, softcap)
    if not segments.spread:
        return _attend_row(segments, query, key, value, scoring, s_aux), None
    dtype = Shape.of(query, key, scoring, sinks=s_aux is not None).dtype
    query, key, value = to_heads(query, key, value, segments.layouts[-1].end, dtype)
    sinks = None if s_aux is None else own_heads(s_aux)
    return to_tokens(_attend_row(segments, query, key, value, scoring, sinks)), None


def _attend_row(
    segments: Segments, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, sinks: Tensor | None
) -> Tensor:
    """Of all tokens of a row: ``[1, T, heads, d]``."""
    scaling, sliding_window, softcap = scoring
    shape = Shape.of(query, key, scoring, sinks=sinks is not None)
    kernel, why_not = find_kernel(shape)
    if why_not:
        segments.fallbacks.add(why_not)
    if kernel is not None:
        segments.kernels.add(kernel.name)
        states = (query, key, value)
        return attention_varlen.attend(kernel, segments.stretches, *states, scoring, shape.dtype)
    if _in_blocks(segments, shape):
        segments.kernels.add("blocks")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return attention_blocks.attend(query, key, value, segments.blocks, scale, segments.square)
    segments.kernels.add("SDPA")
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:  # not SDPA's enable_gqa: its CPU backward is wrong in older torch, and no faster
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    outputs: list[Tensor] = []
    for layout in segments.layouts:
        for own, trunk in layout.stretches():
            seen_key, seen_value = key[:, :, own], value[:, :, own]
            if trunk.start < trunk.stop:
                seen_key = torch.cat((key[:, :, trunk], seen_key), dim=2)
                seen_value = torch.cat((value[:, :, trunk], seen_value), dim=2)
            outputs.append(
                _attend(segments, query[:, :, own], seen_key, seen_value, scaling, sliding_window, softcap, sinks)
            )
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _in_blocks(segments: Segments, shape: Shape) -> bool:
    """Whether a layer is for ``attention_blocks``."""
    windowed = shape.scoring.window is not None and shape.scoring.window < segments.longest
    special = windowed or shape.scoring.softcap is not None or shape.sinks
    return shape.device.type == "cpu" and segments.longest <= MAX_KEYS and not special


def _attend(
    segments: Segments,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """One stretch of queries over its keys, the queries being the keys' last positions: ``[1, heads, q, d]``."""
    queries, keys = query.shape[2], key.shape[2]
    if window is not None and window >= keys:
        window = None
    if softcap is None and sinks is None:
        if window is None and queries == keys:
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        mask = segments.mask(queries, keys, window)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~segments.mask(queries, keys, window), -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks.to(scores.dtype).view(1, -1, 1, 1).expand(1, -1, queries, 1)), dim=-1)
    # In float32 at least, as the families that use these do it themselves.
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return weights[..., :keys].to(value.dtype) @ value


AttentionInterface.register(GROUP_ATTENTION, group_attention)
