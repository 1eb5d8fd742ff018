"""Arrays from the host to the device, without the host waiting for the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def on_device(array: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """A copy on the device, or on a CPU the same memory.

    On a GPU the copy goes through pinned memory and takes its place in the queue: a plain copy would hold the host
    until all that was queued before it is done, and the device would then wait for the host.
    """
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda" and tensor.device.type == "cpu" and tensor.numel():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
