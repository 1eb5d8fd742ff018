"""How large a weight is, however it is held."""

from __future__ import annotations

import torch
from torch import nn


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape that a parameter has in its model, also where it is in 4 bits, or shared out over ranks by ZeRO 3."""
    packed = getattr(parameter, "quant_state", None)  # bitsandbytes has two entries in a byte
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape) if packed is None else packed.shape
    return shape
