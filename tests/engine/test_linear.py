"""The linear layers of ZeRO 3 against torch's own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
from deepspeed.runtime.zero import linear
from torch import Tensor

from dpo_cli.engine.linear import round_once


def numbers(layer: Callable[..., Tensor], precision: str, bias: bool) -> list[Tensor]:
    """What a layer gives for a row of tokens, and its gradients."""
    random = torch.Generator().manual_seed(0)
    shapes = [(1, 37, 16), (24, 16), (24,)][: 3 if bias else 2]
    given = [torch.randn(shape, generator=random).requires_grad_() for shape in shapes]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        result = layer(*given)
    result.backward(torch.randn(result.shape, generator=random).to(result.dtype))
    return [result.detach(), *(tensor.grad for tensor in given if tensor.grad is not None)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_torchs_to_the_bit(precision: str, bias: bool) -> None:
    round_once()
    found = numbers(linear.zero3_linear_wrap, precision, bias)
    expected = numbers(torch.ops.aten.linear, precision, bias)
    assert len(found) == 3 + bias
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_deepspeeds_own_rounds_twice() -> None:
    """Or there would be no need of ours any more."""
    spec = importlib.util.spec_from_file_location("as_it_is", str(linear.__file__))
    assert spec is not None
    assert spec.loader is not None
    untouched = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(untouched)
    found = numbers(untouched.zero3_linear_wrap, "bf16", True)[0]
    assert not torch.equal(found, numbers(torch.ops.aten.linear, "bf16", True)[0])
