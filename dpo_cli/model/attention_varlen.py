"""Attention over groups in one call of a variable-length kernel: for GPUs, where many small calls are slow.

The row is cut into stretches of queries, in its own order: a trunk with its first branch, and every further branch.
The keys of a further branch are those of its trunk and its own, so keys and values are gathered, and the trunk's stand
there once per branch. Queries are always the last of their keys' positions, so the mask is causal, aligned at the end.

A kernel is used for what it was tried on: before the first use its numbers and gradients are compared, on this device,
with plain ones in float64. A wrong one, or one that doesn't run, is never used, and the reason is handed on.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpo_cli.data.collate import Layout
from dpo_cli.transfer import on_device


@dataclass(frozen=True)
class Stretches:
    """Where queries and their keys lie, as kernels want it; one per forward pass, for all its layers."""

    lengths: tuple[tuple[int, int], ...]
    """Queries and keys of each stretch; of the keys the last ones are the queries' own."""
    query_ends: Tensor
    """``[S + 1]`` int32, from 0 on."""
    key_ends: Tensor
    """``[S + 1]`` int32, from 0 on."""
    keys: Tensor
    """``[G]``: the row's position of each gathered key."""
    first: Tensor
    """``[T]``: for each position of the row its first place among the gathered keys."""
    again: tuple[tuple[Tensor, Tensor], ...]
    """For the second time that keys are used, the third and so on: their positions in the row, each once, and their
    places among the gathered keys."""

    @cached_property
    def longest(self) -> tuple[int, int]:
        """Queries and keys of the stretches that have most of each."""
        return max(queries for queries, _ in self.lengths), max(keys for _, keys in self.lengths)

    @classmethod
    def of(cls, layouts: Sequence[Layout], device: torch.device) -> Stretches:
        """Of the groups of a row, which lie end to end."""
        lengths: list[tuple[int, int]] = []
        keys: list[np.ndarray] = []
        for layout in layouts:
            for own, trunk in layout.stretches():
                queries = own.stop - own.start
                lengths.append((queries, queries + trunk.stop - trunk.start))
                keys += [np.arange(part.start, part.stop) for part in (trunk, own)]
        gathered = np.concatenate(keys)
        tokens, first = np.unique(gathered, return_index=True)
        total = layouts[-1].end
        # A kernel given tokens beyond its last end gives them no gradient but garbage.
        assert np.array_equal(tokens, np.arange(total)) and sum(queries for queries, _ in lengths) == total  # noqa: PT018
        # How often a place's position stood before it: 0 = its first place.
        order = np.argsort(gathered, kind="stable")
        times = np.empty_like(order)
        times[order] = np.arange(len(order)) - np.searchsorted(gathered[order], gathered[order])
        again = [np.flatnonzero(times == time) for time in range(1, int(times.max()) + 1)]
        ends = np.concatenate((np.zeros((1, 2), np.int32), np.cumsum(lengths, axis=0, dtype=np.int32)))
        return cls(
            lengths=tuple(lengths),
            query_ends=on_device(ends[:, 0], device),
            key_ends=on_device(ends[:, 1], device),
            keys=on_device(gathered, device),
            first=on_device(first, device),
            again=tuple((on_device(gathered[places], device), on_device(places, device)) for places in again),
        )


class Scoring(NamedTuple):
    """How scores become weights."""

    scaling: float | None = None
    """Of the scores; None = 1 / sqrt(width of a head)."""
    window: int | None = None
    """None, or how far back a query sees, itself included."""
    softcap: float | None = None
    """None, or the scores' soft limit."""


class Shape(NamedTuple):
    """What a kernel is asked for in a layer."""

    device: torch.device
    dtype: torch.dtype
    """In which it computes: autocast's, where that is on."""
    heads: int
    key_heads: int
    width: int
    """Of a head."""
    scoring: Scoring
    sinks: bool

    @classmethod
    def of(cls, query: Tensor, key: Tensor, scoring: Scoring, *, sinks: bool) -> Shape:
        """Of ``query`` ``[1, heads, T, d]`` and ``key``, as in ``group_attention``."""
        kind = query.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else query.dtype
        sizes = (query.shape[1], key.shape[1], query.shape[3])
        return cls(query.device, dtype, *sizes, scoring, sinks)


Call = Callable[[Tensor, Tensor, Tensor, Stretches, Scoring], Tensor]
"""Query ``[T, heads, d]``, gathered keys and values ``[G, key heads, d]`` and how; gives ``[T, heads, d]``."""


@dataclass(frozen=True)
class Kernel:
    """A variable-length attention function."""

    name: str
    call: Call
    softcaps: bool
    """Whether it can limit scores softly."""


class Found(NamedTuple):
    """The kernel for a shape, or why there is none; without a reason none is called for."""

    kernel: Kernel | None
    why_not: str = ""


@cache
def find_kernel(shape: Shape) -> Found:
    """The kernel for a shape: tried on it, here and now, the first time it is asked for."""
    if shape.device.type != "cuda":
        return Found(None)
    if shape.dtype not in (torch.bfloat16, torch.float16):
        return Found(None, f"there is no variable-length kernel for {str(shape.dtype).removeprefix('torch.')}")
    if shape.sinks:
        return Found(None, "no variable-length kernel has attention sinks")
    kernels, absent = _kernels()
    reasons = list(absent)
    for kernel in kernels:
        if shape.scoring.softcap is not None and not kernel.softcaps:
            reasons.append(f"{kernel.name} has no softcap")
        elif objection := try_out(kernel, shape):
            reasons.append(objection)
        else:
            return Found(kernel)
    return Found(None, "; ".join(reasons))


def attend(
    kernel: Kernel,
    stretches: Stretches,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: Scoring,
    dtype: torch.dtype,
) -> Tensor:
    """Attention of all stretches at once.

    Args:
        kernel: does it.
        stretches: of the row.
        query: ``[1, heads, T, d]``; ``key`` and ``value`` may have fewer heads.
        scoring: of the layer.
        dtype: in which to compute.

    Returns:
        ``[1, T, heads, d]``
    """
    query, key, value = (states[0].transpose(0, 1).to(dtype) for states in (query, key, value))
    if scoring.window is not None and scoring.window >= stretches.longest[1]:
        scoring = scoring._replace(window=None)
    if stretches.again:
        key, value = _Gather.apply(key, stretches), _Gather.apply(value, stretches)
    return kernel.call(query, key, value, stretches, scoring)[None]


class _Gather(torch.autograd.Function):
    """Keys or values ``[T, heads, d]`` as the stretches want them, ``[G, heads, d]``.

    The gradient is added up in a fixed order. That of an index would be by whoever comes first.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, stretches: Stretches) -> Tensor:
        ctx.stretches = stretches
        return states.index_select(0, stretches.keys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        total = grad.index_select(0, ctx.stretches.first)
        for positions, places in ctx.stretches.again:
            total.index_add_(0, positions, grad.index_select(0, places))
        return total, None


@cache
def _kernels() -> tuple[tuple[Kernel, ...], tuple[str, ...]]:
    """The kernels that are installed, and what was said of those that are not."""
    found, reasons = [], []
    for module, name, make in (
        ("torch.nn.attention.varlen", "varlen_attn", of_torch),
        ("flash_attn", "flash_attn_varlen_func", of_flash_attn),
    ):
        try:
            kernel = make(getattr(importlib.import_module(module), name))
        except Exception:  # not installed, or a build for another torch, which fails in many ways
            reasons.append(f"{module} is not there")
            continue
        if isinstance(kernel, Kernel):
            found.append(kernel)
        else:
            reasons.append(kernel)
    return tuple(found), tuple(reasons)


def of_torch(function: Callable[..., Tensor]) -> Kernel | str:
    """torch's own ``varlen_attn``; or what it lacks. Aligned at the end of the keys, as flash attention is."""
    parameters = inspect.signature(function).parameters
    if not {"scale", "window_size"} <= parameters.keys():  # torch 2.10
        return f"torch {torch.__version__}'s varlen_attn has no windows: torch 2.11 has"
    grouped = "enable_gqa" in parameters  # from torch 2.12 on

    def call(query: Tensor, key: Tensor, value: Tensor, stretches: Stretches, scoring: Scoring) -> Tensor:
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1 and not grouped:
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        return function(
            query,
            key,
            value,
            stretches.query_ends,
            stretches.key_ends,
            *stretches.longest,
            scale=scoring.scaling,
            window_size=(-1 if scoring.window is None else scoring.window - 1, 0),
            **({"enable_gqa": repeats > 1} if grouped else {}),
        )

    return Kernel("torch's varlen_attn", call, softcaps=False)


def of_flash_attn(function: Callable[..., Tensor]) -> Kernel | str:
    """The flash_attn package's function; or what it lacks. Aligned at the end of the keys since its version 2.1."""
    parameters = inspect.signature(function).parameters
    if "window_size" not in parameters:
        return "flash_attn has no windows: version 2.3 has"

    def call(query: Tensor, key: Tensor, value: Tensor, stretches: Stretches, scoring: Scoring) -> Tensor:
        return function(
            query,
            key,
            value,
            stretches.query_ends,
            stretches.key_ends,
            *stretches.longest,
            softmax_scale=scoring.scaling,
            causal=True,
            window_size=(-1, -1) if scoring.window is None else (scoring.window - 1, 0),
            **({} if scoring.softcap is None else {"softcap": scoring.softcap}),
        )

    return Kernel("flash_attn", call, softcaps="softcap" in parameters)


# Of the trial: branches of every kind, lengths on both sides of the kernels' blocks of 64 and 128.
_TRIAL = (Layout(0, 150, (70, 33, 0, 1)), Layout(254, 1, (5,)), Layout(260, 3, (130, 260)), Layout(653, 64, (64, 64)))
_TRIAL_WINDOW = 7
TRIAL_TOLERANCE = 0.1
"""Of ``trial_error``: bfloat16 makes 0.03 at most, a mask that is wrong by one key 0.3 and more."""


def try_out(kernel: Kernel, shape: Shape) -> str:
    """What is wrong with a kernel for a shape; empty = nothing."""
    whole = shape._replace(scoring=shape.scoring._replace(window=None))  # what short rows make of a window
    try:
        error = max(trial_error(kernel, each) for each in {shape, whole})
    except Exception as problem:  # whatever kernels and their loaders raise
        lines = str(problem).strip().splitlines() or [type(problem).__name__]
        return f"{kernel.name} does not run here ({lines[0]})"
    if error <= TRIAL_TOLERANCE:  # and not the other way round: NaN is no number to trust
        return ""
    return f"{kernel.name} is wrong here (its numbers are {error:.2g} off, as a share of their size)"


def trial_error(kernel: Kernel, shape: Shape) -> float:
    """Largest error of a kernel on random numbers of a shape, in the result and its gradients.

    Token by token, as a share of the token's own size (or of a tenth of the usual size, where that is larger).
    """
    stretches = Stretches.of(_TRIAL, shape.device)
    scoring = shape.scoring._replace(window=None if shape.scoring.window is None else _TRIAL_WINDOW)
    random = torch.Generator().manual_seed(0)
    sizes = [(shape.heads, shape.width), *[(shape.key_heads, shape.width)] * 2, (shape.heads, shape.width)]
    numbers = [torch.randn(_TRIAL[-1].end, *size, generator=random) for size in sizes]
    *states, weights = (on_device(number, shape.device).to(shape.dtype) for number in numbers)
    results = []
    with torch.enable_grad(), torch.autocast(shape.device.type, enabled=False):
        for call, dtype in ((kernel.call, shape.dtype), (plain, torch.float64)):
            leaves = [state.to(dtype, copy=True).requires_grad_() for state in states]
            query, key, value = (leaf.transpose(0, 1)[None] for leaf in leaves)
            out = attend(Kernel("", call, softcaps=True), stretches, query, key, value, scoring, dtype)
            out[0].backward(weights.to(dtype))
            grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
            results.append([out[0].detach(), *grads])
    worst = 0.0
    for found, expected in zip(*results, strict=True):
        sizes_of = expected.flatten(1).norm(dim=1)
        apart = (found.double() - expected).flatten(1).norm(dim=1)
        shares = apart / torch.maximum(sizes_of, 0.1 * sizes_of.mean())
        worst = max(worst, float(shares.nan_to_num(nan=torch.inf).max()))
    return worst


def plain(query: Tensor, key: Tensor, value: Tensor, stretches: Stretches, scoring: Scoring) -> Tensor:
    """What a kernel must do, written out: stretch by stretch, in the numbers' own format."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(repeats, dim=1).transpose(0, 1) for states in (key, value))
    query = query.transpose(0, 1)
    scaling, window, softcap = scoring
    outputs = []
    start = key_start = 0
    for queries, keys in stretches.lengths:
        own, seen = slice(start, start + queries), slice(key_start, key_start + keys)
        scores = query[:, own] @ key[:, seen].mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
        visible = (distance >= 0) & (distance < (keys if window is None else window))
        scores = scores.masked_fill(~visible.to(scores.device), -torch.inf)
        outputs.append(torch.softmax(scores, dim=-1) @ value[:, seen])
        start, key_start = start + queries, key_start + keys
    return torch.cat(outputs, dim=1).transpose(0, 1)
