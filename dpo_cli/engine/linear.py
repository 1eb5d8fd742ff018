"""The linear layers of ZeRO 3, with torch's own forward pass.

For ZeRO 3 DeepSpeed puts a function of its own in the place of ``torch.nn.functional.linear``, whose graph holds no
gathered weights. That function adds the bias to a product that has been rounded, so that in bf16 a layer with a bias
rounds twice where torch rounds once.
"""

from __future__ import annotations

import torch
from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3
from torch import Tensor


def round_once() -> None:
    """Have layers under ZeRO 3 give what they give at the other stages, to the bit."""
    LinearFunctionForZeroStage3.forward = staticmethod(_linear)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # Not torch.nn.functional.linear, in whose place this may be.
    result: Tensor = torch.ops.aten.linear(input, weight, bias)
    return result
