"""Attention over groups on a CPU, as plain matrix products over blocks of queries.

PyTorch's own CPU attention runs one sequence at a time, shares its backward pass over heads alone and is slower in
bfloat16 than in float32. Here the query heads that share a key head are one matrix, keys nobody sees are left out, and
nothing is repeated or padded: on SmolLM2-135M 0.6 of its time in float32 and 0.45 in bfloat16.

Probabilities are kept for the backward pass, which is cheap while sequences are short; for long ones PyTorch's is
better (``MAX_KEYS``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dpo_cli.data.collate import Layout

MAX_KEYS = 1024
"""The longest sequence that this is meant for. What it keeps grows with the square of the length."""
_QUERIES = 64
"""At most so many positions in a block: larger ones see more that is masked, smaller ones make small products."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some neighbouring queries and the keys they see: a trunk, perhaps, and their own sequence up to themselves."""

    queries: slice
    trunk: slice
    """Empty where the queries' own sequence begins with the trunk."""
    own: slice
    """Ends where ``queries`` ends; among these last keys each query sees those up to its own position."""


def blocks_of(layouts: Sequence[Layout]) -> list[Block]:
    """Every position of the layouts, in order."""
    found: list[Block] = []
    for layout in layouts:
        for own, trunk in layout.stretches():  # in blocks of about one size
            length = own.stop - own.start
            count = -(-length // _QUERIES)
            cuts = [own.start + length * number // count for number in range(count + 1)]
            found += [Block(slice(a, b), trunk, slice(own.start, b)) for a, b in pairwise(cuts)]
    return found


def longest(layouts: Sequence[Layout]) -> int:
    """Keys that the last query of the longest sequence sees."""
    return max(layout.trunk + max(layout.branches) for layout in layouts)


Mask = Callable[[int], Tensor]
"""``[n, n]`` bool for n neighbouring positions, True where a query sees a key."""


def attend(query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scale: float, mask: Mask) -> Tensor:
    """Softmax attention, each block of queries over its keys.

    Under autocast in autocast's number format, like PyTorch's own; the softmax is in float32 or wider.

    Args:
        query: ``[1, heads, T, d]``; ``key`` and ``value`` may have fewer heads, a divisor of the queries'.
        blocks: of every position.
        scale: of the scores.
        mask: among a block's own positions.

    Returns:
        ``[1, T, heads, d of the values]``
    """
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        query, key, value = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (query, key, value))
    with torch.autocast(kind, enabled=False):
        result: Tensor = _Blocks.apply(query, key, value, blocks, scale, mask)
    return result


class _Blocks(torch.autograd.Function):
    """All heads of one key head are rows of one matrix: ``[key heads, repeats x queries, d]``."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scale: float, mask: Mask
    ) -> Tensor:
        heads, tokens = query.shape[1], query.shape[2]
        out = query.new_empty(1, tokens, heads, value.shape[3])
        by_key_head = _grouped(out.transpose(1, 2), key.shape[1])
        queries = _grouped(query, key.shape[1])
        kept: list[Tensor] = []
        for block in blocks:
            rows = _rows(queries, block)
            scores = torch.bmm(rows, _keys(key, block).transpose(1, 2))
            scores = scores.to(_wide(query)).mul_(scale)
            # No query sees the keys after it, which are among the last of its block's.
            count = block.queries.stop - block.queries.start
            scores.unflatten(1, (-1, count))[..., -count:].masked_fill_(~mask(count), -torch.inf)
            probabilities = torch.softmax(scores, dim=-1).to(query.dtype)
            _put(by_key_head, block, torch.bmm(probabilities, _keys(value, block)))
            kept.append(probabilities)
        ctx.save_for_backward(query, key, value, out, *kept)
        ctx.blocks, ctx.scale = blocks, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value, out, *kept = ctx.saved_tensors
        wide, key_heads = _wide(query), key.shape[1]
        # What a softmax's backward pass subtracts: sum of gradient times probability = of gradient times output.
        spent = (grads[0].to(wide) * out.to(wide)).sum(dim=-1, keepdim=True)
        grad, spent = (_grouped(tensor.transpose(1, 2), key_heads) for tensor in (grads[0], spent))
        queries, d_query = _grouped(query, key_heads), torch.empty_like(query)
        d_queries = _grouped(d_query, key_heads)
        # A trunk's keys are seen by many blocks: summed up in float32 or wider.
        d_key, d_value = (torch.zeros(tensor.shape, dtype=wide, device=tensor.device) for tensor in (key, value))
        for block, probabilities in zip(ctx.blocks, kept, strict=True):
            rows = _rows(grad, block)
            d_scores = torch.bmm(rows, _keys(value, block).transpose(1, 2)).to(wide)
            d_scores.sub_(_rows(spent, block)).mul_(probabilities).mul_(ctx.scale)
            d_scores = d_scores.to(query.dtype)
            _put(d_queries, block, torch.bmm(d_scores, _keys(key, block)))
            _add(d_key, block, torch.bmm(d_scores.transpose(1, 2), _rows(queries, block)))
            _add(d_value, block, torch.bmm(probabilities.transpose(1, 2), rows))
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype), None, None, None


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _grouped(tensor: Tensor, key_heads: int) -> Tensor:
    """A view, ``[1, heads, T, d]`` -> ``[key heads, repeats, T, d]``."""
    view: Tensor = tensor[0].unflatten(0, (key_heads, -1))
    return view


def _rows(grouped: Tensor, block: Block) -> Tensor:
    """A block's ``[key heads, repeats x queries, d]``."""
    return grouped[:, :, block.queries].flatten(1, 2)


def _put(grouped: Tensor, block: Block, rows: Tensor) -> None:
    """The reverse of ``_rows``."""
    place = grouped[:, :, block.queries]
    place.copy_(rows.view(place.shape))


def _keys(tensor: Tensor, block: Block) -> Tensor:
    """What a block sees of keys or values, ``[key heads, keys, d]``."""
    own = tensor[0, :, block.own]
    return own if block.trunk.start == block.trunk.stop else torch.cat((tensor[0, :, block.trunk], own), dim=1)


def _add(total: Tensor, block: Block, part: Tensor) -> None:
    """Add to what ``_keys`` took."""
    trunk = block.trunk.stop - block.trunk.start
    total[0, :, block.trunk] += part[:, :trunk]
    total[0, :, block.own] += part[:, trunk:]
