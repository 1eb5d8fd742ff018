"""The variable-length path without a GPU: its layout, the calls it makes, and that a wrong kernel is never used."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers.families import FAMILIES, awkward_groups, build
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from dpo_cli.data.collate import Layout, collate
from dpo_cli.model import attention, attention_varlen
from dpo_cli.model.attention import GROUP_ATTENTION, Segments, group_attention
from dpo_cli.model.attention_varlen import (
    TRIAL_TOLERANCE,
    Found,
    Kernel,
    Scoring,
    Shape,
    Stretches,
    attend,
    find_kernel,
    of_flash_attn,
    of_torch,
    plain,
    trial_error,
    try_out,
)
from dpo_cli.model.probe import compare

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda"), torch.device("meta")
LAYOUTS = [Layout(0, 3, (2,)), Layout(5, 4, (0, 3, 0, 2)), Layout(14, 1, (0, 0)), Layout(15, 2, (1, 1, 1, 1))]
"""One answer, empty branches, nothing but a trunk, many branches."""
TOTAL = LAYOUTS[-1].end
KERNEL = Kernel("written out", plain, softcaps=True)
FULL, WINDOW = Scoring(), Scoring(0.3, 9, None)


def shape(dtype: torch.dtype = torch.bfloat16, scoring: Scoring = FULL, **changes: Any) -> Shape:
    return Shape(CPU, dtype, 6, 2, 16, scoring, sinks=False)._replace(**changes)


def test_stretches_are_what_a_kernel_wants() -> None:
    found = Stretches.of(LAYOUTS, CPU)
    assert found.lengths == ((5, 5), (4, 4), (3, 7), (2, 6), (1, 1), (3, 3), (1, 3), (1, 3), (1, 3))
    assert found.query_ends.tolist() == [0, 5, 9, 12, 14, 15, 18, 19, 20, 21]
    assert found.key_ends.tolist() == [0, 5, 9, 16, 22, 23, 26, 29, 32, 35]
    assert found.query_ends.dtype == found.key_ends.dtype == torch.int32
    second = found.keys[9:16].tolist()
    assert second == [5, 6, 7, 8, 9, 10, 11]
    assert found.keys[16:22].tolist() == [5, 6, 7, 8, 12, 13]
    assert [positions.tolist() for positions, _ in found.again] == [
        [5, 6, 7, 8, 15, 16],
        [5, 6, 7, 8, 15, 16],
        [15, 16],
    ]


def test_gathered_gradients_come_back_to_their_tokens() -> None:
    stretches = Stretches.of(LAYOUTS, CPU)
    states = torch.randn(TOTAL, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(len(stretches.keys), 2, 3, dtype=torch.float64)
    results = []
    for gathered in (attention_varlen._Gather.apply(states, stretches), states[stretches.keys]):
        (gradient,) = torch.autograd.grad((gathered * weights).sum(), states)
        results.append((gathered.detach(), gradient))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-13)


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("scoring", [FULL, Scoring(0.2, 3, None), Scoring(None, 4, 2.0), Scoring(None, 99, None)])
def test_one_call_is_the_many_calls_of_sdpa(monkeypatch, scoring: Scoring, key_heads: int) -> None:
    random = torch.Generator().manual_seed(0)
    states = [
        torch.randn(1, heads, TOTAL, 8, generator=random, dtype=torch.float64, requires_grad=True)
        for heads in (4, key_heads, key_heads)
    ]
    weights = torch.randn(1, TOTAL, 4, 8, generator=random, dtype=torch.float64)
    results = []
    for kernel in (None, KERNEL):
        monkeypatch.setattr(attention, "find_kernel", lambda _, kernel=kernel: Found(kernel))
        monkeypatch.setattr(attention, "MAX_KEYS", 0)  # not in blocks
        segments = Segments(LAYOUTS, CPU)
        options = {"scaling": scoring.scaling, "sliding_window": scoring.window, "softcap": scoring.softcap}
        out, _ = group_attention(torch.nn.Identity(), *states, None, segments=segments, **options)
        results.append([out, *torch.autograd.grad((out * weights).sum(), states)])
        assert segments.kernels == {"SDPA" if kernel is None else "written out"}
    for found, expected in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def torch_kernel(grouped: bool, q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, more: Any) -> Tensor:
    """From a kernel's own arguments, so that these are checked as well; windows as torch has them."""
    assert q.shape[1] == k.shape[1] or grouped
    ends_q, ends_k = ends_q.tolist(), ends_k.tolist()
    lengths = tuple(zip(np.diff(ends_q).tolist(), np.diff(ends_k).tolist(), strict=True))
    stretches = Stretches(lengths, *[torch.zeros(0)] * 4, ())
    left, right = more["window_size"]
    assert right == 0
    return plain(q, k, v, stretches, Scoring(more["scale"], None if left < 0 else left + 1, more.get("softcap")))


def like_torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    raise AssertionError("it has no windows")


def like_torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    assert (max_q, max_k) == (260, 263)
    return torch_kernel(False, query, key, value, cu_seq_q, cu_seq_k, {"scale": scale, "window_size": window_size})


def like_torch_2_12(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
):
    more = {"scale": scale, "window_size": window_size}
    return torch_kernel(enable_gqa, query, key, value, cu_seq_q, cu_seq_k, more)


def like_flash_attn(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
):
    assert causal
    window_size = (window_size[0], 0)  # what causal makes of it
    more = {"scale": softmax_scale, "window_size": window_size, "softcap": softcap or None}
    return torch_kernel(True, q, k, v, cu_seqlens_q, cu_seqlens_k, more)


@pytest.mark.parametrize(
    ("kernel", "softcaps"),
    [(of_torch(like_torch_2_11), False), (of_torch(like_torch_2_12), False), (of_flash_attn(like_flash_attn), True)],
)
@pytest.mark.parametrize("scoring", [FULL, WINDOW])
def test_every_kernel_is_called_as_its_signature_has_it(kernel: Any, softcaps: bool, scoring: Scoring) -> None:
    assert isinstance(kernel, Kernel)
    assert kernel.softcaps == softcaps
    if softcaps:
        scoring = scoring._replace(softcap=2.0)
    assert trial_error(kernel, shape(torch.float64, scoring)) < 1e-12


def test_a_kernel_without_windows_is_refused() -> None:
    assert "has no windows" in str(of_torch(like_torch_2_10))
    assert isinstance(of_torch(varlen_attn), Kernel)


def test_torchs_own_takes_our_call_forwards_and_backwards() -> None:
    """On the meta device: shapes and arguments only."""
    kernel = of_torch(varlen_attn)
    assert isinstance(kernel, Kernel)
    states = [torch.randn(1, heads, TOTAL, 16, device=META, requires_grad=True) for heads in (4, 2, 2)]
    out = attend(kernel, Stretches.of(LAYOUTS, META), *states, Scoring(0.3, 3, None), torch.bfloat16)
    assert (tuple(out.shape), out.dtype) == ((1, TOTAL, 4, 16), torch.bfloat16)
    out.sum().backward()
    assert [tuple(state.grad.shape) for state in states] == [tuple(state.shape) for state in states]


def aligned_at_the_start(query, key, value, stretches, scoring):
    """A causal mask in the other corner, as SDPA's ``is_causal`` has it."""
    outputs, place = [], 0
    for queries, keys in stretches.lengths:
        seen = slice(place, place + min(queries, keys))
        part = Stretches(((queries, queries),), *[torch.zeros(0)] * 4, ())
        start = sum(len(out) for out in outputs)
        outputs.append(plain(query[start : start + queries], key[seen], value[seen], part, scoring))
        place += keys
    return torch.cat(outputs)


def heads_in_another_order(query, key, value, stretches, scoring):
    repeats = query.shape[1] // key.shape[1]
    return plain(query, key.repeat(1, repeats, 1), value.repeat(1, repeats, 1), stretches, scoring)


def window_off_by_one(by: int, query, key, value, stretches, scoring):
    window = None if scoring.window is None else scoring.window + by
    return plain(query, key, value, stretches, scoring._replace(window=window))


def without_scaling(query, key, value, stretches, scoring):
    return plain(query, key, value, stretches, scoring._replace(scaling=None))


def without_key_gradient(query, key, value, stretches, scoring):
    return plain(query, key.detach(), value, stretches, scoring)


def last_token_lost(query, key, value, stretches, scoring):
    out = plain(query, key, value, stretches, scoring)
    return torch.cat((out[:-1], 0.5 * out[-1:]))


def not_a_number(query, key, value, stretches, scoring):
    return (
        plain(query, key, value, stretches, scoring)
        * torch.where(torch.arange(len(query)) == 7, torch.nan, 1.0)[:, None, None]
    )


WRONG = [
    aligned_at_the_start,
    heads_in_another_order,
    partial(window_off_by_one, 1),
    partial(window_off_by_one, -1),
    without_scaling,
    without_key_gradient,
    last_token_lost,
    not_a_number,
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_alone_passes_the_trial(dtype: torch.dtype) -> None:
    for scoring in (FULL, WINDOW, Scoring(None, None, 5.0)):
        assert trial_error(KERNEL, shape(dtype, scoring)) < 0.3 * TRIAL_TOLERANCE


@pytest.mark.parametrize("call", WRONG)
def test_a_wrong_kernel_is_found_out(call: Any) -> None:
    kernel = Kernel("a kernel", call, softcaps=True)
    assert trial_error(kernel, shape(scoring=WINDOW)) > 2 * TRIAL_TOLERANCE
    assert try_out(kernel, shape(scoring=WINDOW)).startswith("a kernel is wrong here")


def test_a_window_is_tried_with_rows_that_are_shorter_too() -> None:
    def wrong_without(query: Tensor, key: Tensor, value: Tensor, stretches: Stretches, scoring: Scoring) -> Tensor:
        return plain(query, key, value, stretches, scoring) * (0.5 if scoring.window is None else 1.0)

    assert try_out(KERNEL, shape(scoring=WINDOW)) == ""
    assert "wrong here" in try_out(Kernel("a kernel", wrong_without, softcaps=True), shape(scoring=WINDOW))


def test_without_a_gpu_no_kernel_is_called_for() -> None:
    assert find_kernel(shape()) == (None, "")


def test_why_there_is_no_kernel_on_a_gpu(monkeypatch) -> None:
    def broken(*_: Any) -> Tensor:
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr(
        attention_varlen, "_kernels", lambda: ((Kernel("one", broken, softcaps=False),), ("flash_attn is not there",))
    )
    monkeypatch.setattr(attention_varlen, "trial_error", lambda kernel, shape: kernel.call())
    ask = find_kernel.__wrapped__
    on_gpu = partial(shape, device=CUDA)
    assert ask(on_gpu(torch.float32)).why_not == "there is no variable-length kernel for float32"
    assert ask(on_gpu(sinks=True)).why_not == "no variable-length kernel has attention sinks"
    assert ask(on_gpu(scoring=Scoring(None, None, 5.0))).why_not == "flash_attn is not there; one has no softcap"
    assert ask(on_gpu()) == (None, "flash_attn is not there; one does not run here (no kernel image is available)")
    good = Kernel("two", lambda: 0.01, softcaps=True)
    monkeypatch.setattr(attention_varlen, "_kernels", lambda: ((Kernel("one", lambda: 0.5, softcaps=False), good), ()))
    assert ask(on_gpu()) == (good, "")


def test_autocast_decides_in_what_is_computed() -> None:
    query = torch.randn(1, 6, 5, 16)
    assert Shape.of(query, query, FULL, sinks=False).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Shape.of(query, query, FULL, sinks=False).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("found", "right", "kernels", "fallbacks"),
    [
        (Found(KERNEL), True, ("written out",), ()),
        (Found(None, "the moon is full"), True, ("blocks",), ("the moon is full",)),
        (Found(Kernel("wrong", aligned_at_the_start, softcaps=True)), False, ("wrong",), ()),
    ],
)
def test_the_start_up_check_says_what_it_checked(monkeypatch, found: Found, right: bool, kernels, fallbacks) -> None:
    monkeypatch.setattr(attention, "find_kernel", lambda _: found)
    batch = awkward_groups()
    assert collate(batch).layouts[0].branches[1]
    agreement = compare(build(FAMILIES["llama"](), GROUP_ATTENTION, torch.float32), batch, "fp32")
    assert (agreement.right, agreement.kernels, agreement.fallbacks) == (right, kernels, fallbacks)
