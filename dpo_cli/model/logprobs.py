"""Log-probs of chosen tokens out of logits, without keeping anything of the logits' size for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpo_cli.transfer import on_device


def token_logps(logits: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits[rows])[targets], in float32 or wider, with its gradient.

    The logits are used up: the backward pass writes their gradient over them, which saves the second ``[R, V]``
    that a cross-entropy needs. Nothing else may hold on to them.

    Args:
        logits: ``[R, V]``.
        rows: ``[N]`` int64, on the CPU; a row may be asked for several tokens.
        targets: ``[N]`` int64, on the CPU.

    Returns:
        ``[N]`` nats, where the logits are.
    """
    # Which tokens lie in which piece is found here, on the CPU: to ask a GPU would be to wait for it.
    order = torch.argsort(rows, stable=True)
    starts = torch.arange(0, len(logits) + _ROWS, _ROWS)
    ends = torch.searchsorted(rows[order], starts).tolist()
    there = [on_device(index, logits.device) for index in (rows, targets, order)]
    result: Tensor = _TokenLogps.apply(logits, *there, ends)
    return result


def token_concentration(logits: Tensor, rows: Tensor) -> Tensor:
    """log of the sum over the vocabulary of squared probabilities, of each predicted token: ``[N]``, no gradient.

    To be called before ``token_logps``, whose backward pass uses up the logits.

    Args:
        logits: ``[R, V]``.
        rows: ``[N]`` int64, on the CPU.
    """
    with torch.no_grad():
        wide = torch.promote_types(logits.dtype, torch.float32)
        found = torch.empty(len(logits), dtype=wide, device=logits.device)
        for piece in range(0, len(logits), _ROWS):
            part = logits[piece : piece + _ROWS].to(wide)
            found[piece : piece + _ROWS] = torch.logsumexp(2 * part, dim=-1) - 2 * torch.logsumexp(part, dim=-1)
        return found[on_device(rows, logits.device)]


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, targets: Tensor, order: Tensor, ends: list[int]) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        # Row by row, so that a float32 copy of all bfloat16 logits never exists.
        lse = torch.empty(len(logits), dtype=wide, device=logits.device)
        for piece in range(0, len(logits), _ROWS):
            lse[piece : piece + _ROWS] = torch.logsumexp(logits[piece : piece + _ROWS].to(wide), dim=-1)
        ctx.save_for_backward(rows, targets, order, lse)
        ctx.ends = ends
        ctx.logits = logits  # not saved the usual way: backward overwrites it on purpose
        return logits[rows, targets].to(wide) - lse[rows]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad,) = grads
        rows, targets, order, lse = ctx.saved_tensors
        logits, ctx.logits = ctx.logits, None
        if logits is None:
            raise RuntimeError("token_logps was differentiated twice: its logits are gone after the first time")
        per_row = torch.zeros_like(lse).index_add_(0, rows, grad.to(lse.dtype))
        with torch.no_grad():
            for piece, first, last in zip(range(0, len(logits), _ROWS), ctx.ends[:-1], ctx.ends[1:], strict=True):
                part = logits[piece : piece + _ROWS]
                gradient = torch.sub(part, lse[piece : piece + _ROWS, None]).exp_()  # in lse's number format
                gradient.mul_(-per_row[piece : piece + _ROWS, None])
                # g - g p here, not after rounding to bfloat16: for likely tokens next to nothing would be left.
                here = order[first:last]
                gradient.index_put_((rows[here] - piece, targets[here]), grad[here].to(lse.dtype), accumulate=True)
                part.copy_(gradient)
        return logits, None, None, None, None


_ROWS = 256
