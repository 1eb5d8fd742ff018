"""Sequence parallelism: the processes of a sequence group share each row of tokens.

Jacobs et al. 2023, "DeepSpeed Ulysses". All of a model but its attention looks at one token at a time, so each process
holds a slice of the row. At each attention an all-to-all turns "my tokens, all heads" into "all tokens, my heads", and
another one turns the result back. Before the head, the positions that logits are made for are dealt out evenly, as
answers may all lie in one slice. Log-probs are put together, so every process has the same loss; its gradients are
those of its own tokens, and their sum over the processes is the gradient of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM

from dpo_cli.data.collate import FlatBatch
from dpo_cli.distributed import sequence_group, sequence_rank, sequence_size
from dpo_cli.transfer import on_device


def why_not(config: Any, processes: int) -> str:
    """Why a model's rows can't be shared by so many processes; empty = its configuration does not say.

    Args:
        config: the model's, of transformers.
        processes: of a sequence group.
    """
    kind, text = config.model_type, config.get_text_config()
    made = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if getattr(made, "_is_stateful", False):
        return f"{kind} has layers that hand a state from token to token"
    heads = getattr(text, "num_attention_heads", None)
    if not isinstance(heads, int):
        return f"{kind} does not say how many attention heads it has"
    if heads % processes:
        return f"it does not divide the {heads} attention heads of {kind}"
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = {each.get("rope_type", "") for each in (rope, *rope.values()) if isinstance(each, dict)}
    if moving := sorted(each for each in kinds if "dynamic" in each or each == "longrope"):
        # Found from the largest position that the model is given, which is another one in each slice.
        return f"{kind} turns positions by how long the row is (rope_type {', '.join(moving)})"
    return ""


def most_rows(rows: int, processes: int) -> int:
    """Of so many positions that logits are made for, how many a process makes at most."""
    return -(-rows // processes)


def slice_length(tokens: int, processes: int) -> int:
    """Tokens that each of the processes holds of a row; the last ones are padded."""
    return -(-tokens // processes)


def padded_length(tokens: int) -> int:
    """Tokens of all slices of a row."""
    return sequence_size() * slice_length(tokens, sequence_size())


def own_slice(tokens: int) -> slice:
    """The part of a row that this process holds; it may reach beyond the row's end."""
    length = slice_length(tokens, sequence_size())
    return slice(sequence_rank() * length, (sequence_rank() + 1) * length)


def own_share(batch: FlatBatch) -> tuple[FlatBatch, np.ndarray]:
    """What this process holds of a batch.

    Returns:
        The batch with ``input_ids`` and ``position_ids`` of its slice, padded, and its ``rows``, counted from the
        slice's start; ``token_rows`` and ``targets`` of what is predicted where this process makes the logits; all
        else is still of the whole row. And ``[own]``, which of the row's N predicted tokens these are.
    """
    part = own_slice(len(batch.input_ids))
    ids, positions = np.zeros((2, part.stop - part.start), dtype=np.int64)
    there = batch.input_ids[part]
    ids[: len(there)], positions[: len(there)] = there, batch.position_ids[part]
    held, made = _ends(batch)
    (first, end), (first_made, end_made) = (ends[sequence_rank() : sequence_rank() + 2] for ends in (held, made))
    predicted = np.flatnonzero((batch.token_rows >= first_made) & (batch.token_rows < end_made))
    own = replace(
        batch,
        input_ids=ids,
        position_ids=positions,
        rows=batch.rows[first:end] - part.start,
        token_rows=batch.token_rows[predicted] - first_made,
        targets=batch.targets[predicted],
    )
    return own, predicted


@contextmanager
def evened_out(head: nn.Module, batch: FlatBatch) -> Iterator[None]:
    """Inside, a model's head is given the states that this process makes logits of, not those of its slice.

    Args:
        head: that is called once, with ``[1, rows of the slice, width]``.
        batch: of the whole row.
    """
    held, made = _ends(batch)
    own = sequence_rank()
    sent = [_common(held, own, made, other) for other in range(sequence_size())]
    received = [_common(held, other, made, own) for other in range(sequence_size())]

    def deal_out(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return exchange(args[0][0], sent, received)[None], *args[1:]

    handle = head.register_forward_pre_hook(deal_out)
    try:
        yield
    finally:
        handle.remove()


def _ends(batch: FlatBatch) -> tuple[list[int], list[int]]:
    """Of the R positions that logits are made for, those of process n, from number n to number n + 1 of a list: in its
    slice, and those whose logits it makes."""
    processes, count = sequence_size(), len(batch.rows)
    length = slice_length(len(batch.input_ids), processes)
    held = np.searchsorted(batch.rows, length * np.arange(processes + 1)).tolist()
    return held, [count * process // processes for process in range(processes + 1)]


def _common(one: Sequence[int], number: int, other: Sequence[int], number_of_other: int) -> int:
    """How much a stretch of one list of ends has in common with a stretch of another."""
    end = min(one[number + 1], other[number_of_other + 1])
    return max(0, end - max(one[number], other[number_of_other]))


def together(own: Tensor, places: np.ndarray, count: int) -> Tensor:
    """The numbers of all slices, on every process of the group.

    The backward pass takes this process's own out of the gradient, which is the same on all of them.

    Args:
        own: ``[own]``, of this slice.
        places: ``[own]``, where they stand among all.
        count: of all.

    Returns:
        ``[count]``
    """
    result: Tensor = _Together.apply(own, on_device(places, own.device), count)
    return result


def to_heads(
    query: Tensor, key: Tensor, value: Tensor, tokens: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """From all heads of this process's tokens to this process's heads of all tokens, in one exchange.

    Args:
        query: ``[1, heads, slice, d]``, heads a multiple of the processes; ``key`` and ``value`` may have fewer, which
            are repeated as far as there are more processes to be given one.
        tokens: T, of the row.
        dtype: in which to send them.

    Returns:
        The same, ``[1, heads / processes, T, d]``.
    """
    processes = sequence_size()
    repeats = math.lcm(key.shape[1], processes) // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    parts = [state[0].to(dtype).unflatten(0, (processes, -1)).transpose(1, 2) for state in (query, key, value)]
    row = exchange(torch.cat([part.flatten(2) for part in parts], dim=2)).flatten(0, 1)[:tokens]
    sizes = [part.shape[2:] for part in parts]
    query, key, value = (
        state.unflatten(1, size).transpose(0, 1)[None]
        for state, size in zip(row.split([size.numel() for size in sizes], dim=1), sizes, strict=True)
    )
    return query, key, value


def to_tokens(states: Tensor) -> Tensor:
    """The way back: ``[1, T, heads / processes, d]`` to ``[1, slice, heads, d]``; padding gets zeros."""
    tokens = states.shape[1]
    row = pad(states[0], (0, 0, 0, 0, 0, padded_length(tokens) - tokens))
    return exchange(row.unflatten(0, (sequence_size(), -1))).transpose(0, 1).flatten(1, 2)[None]


def own_heads(sinks: Tensor) -> Tensor:
    """This process's of ``[heads]`` numbers."""
    own: Tensor = sinks.unflatten(0, (sequence_size(), -1))[sequence_rank()]
    return own


def exchange(parts: Tensor, sent: list[int] | None = None, received: list[int] | None = None) -> Tensor:
    """Give part n of ``[processes, ...]`` to process n of the group; part n of what comes back is from process n.

    Args:
        parts: where they are of unequal length, end to end.
        sent: lengths of the parts for each process; None = 1 each.
        received: of the parts from each.
    """
    result: Tensor = _Exchange.apply(parts, sent, received)
    return result


class _Exchange(torch.autograd.Function):
    """Its own adjoint: a gradient goes back the way that its number came."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, sent: list[int] | None, received: list[int] | None) -> Tensor:
        ctx.lengths = sent, received
        return _all_to_all(parts, sent, received)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        sent, received = ctx.lengths
        return _all_to_all(grads[0], received, sent), None, None


def _all_to_all(parts: Tensor, sent: list[int] | None, received: list[int] | None) -> Tensor:
    result = parts.new_empty((len(parts) if received is None else sum(received), *parts.shape[1:]))
    dist.all_to_all_single(result, parts.contiguous(), received, sent, group=sequence_group())
    return result


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, places: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(places)
        every = own.new_zeros(count)
        every[places] = own
        dist.all_reduce(every, group=sequence_group())  # the others have zeros there
        return every

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grads[0][places], None, None
