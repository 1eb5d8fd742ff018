"""What ZeRO keeps outside the device: DeepSpeed's own keys, refused here where they could not work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepspeed.ops.op_builder import AsyncIOBuilder

from dpo_cli.engine.settings import offload_device
from dpo_cli.errors import DpoError

_LOWEST = {"optimizer": 1, "param": 3}
"""The lowest ZeRO stage that can."""
_LOWEST_NVME = 3


def check_offload(extra: Mapping[str, Any], zero_stage: int) -> None:
    """Refuse offload that this stage has not, which DeepSpeed passes over in silence, or this machine can't do.

    Args:
        extra: the user's DeepSpeed keys.
        zero_stage: of the run.

    Raises:
        DpoError: naming what to change or install.
    """
    for what, lowest in _LOWEST.items():
        device = offload_device(extra, what)
        key = f"engine.deepspeed.zero_optimization.offload_{what}.device={device}"
        needed = _LOWEST_NVME if device == "nvme" else lowest
        if device != "none" and zero_stage < needed:
            raise DpoError(f"{key} has no effect at ZeRO {zero_stage}: set engine.zero_stage={needed}, or leave it out")
        if device == "nvme" and not AsyncIOBuilder().is_compatible(verbose=False):
            raise DpoError(
                f"{key}: DeepSpeed can't read and write NVMe on this machine, for which it needs libaio with its "
                "headers (libaio-dev), a C++ compiler and ninja: install them (ds_report says what is missing), or use "
                "device=cpu"
            )
