"""What processors can do and hold, by their makers' data sheets or as found on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

_GB = 1e9
_GIB = 2**30


@dataclass(frozen=True)
class Device:
    """A kind of GPU, or a CPU."""

    name: str
    key: str
    """What torch calls it contains this; empty for a CPU."""
    memory: float
    """Bytes that torch sees."""
    bf16: float
    """Dense peak in FLOP/s."""
    fp32: float
    """On the plain units, which PyTorch uses by default, and not on the tensor cores' TF32."""

    def peak(self, precision: str) -> float:
        """FLOP/s in ``fp32`` or ``bf16``."""
        return self.bf16 if precision == "bf16" else self.fp32


# The first whose key is in what torch calls a GPU counts. A card that is sold with 80 GB shows a little less.
GPUS = (
    Device("h200_nvl", "H200 NVL", 139.8 * _GIB, 835e12, 60e12),
    Device("h100_nvl", "H100 NVL", 93.1 * _GIB, 835e12, 60e12),
    Device("h100_pcie", "H100 PCIe", 79.1 * _GIB, 756e12, 51e12),
    Device("h200", "H200", 139.8 * _GIB, 989e12, 67e12),
    Device("h100", "H100", 79.1 * _GIB, 989e12, 67e12),
    Device("a100_80gb", "A100-SXM4-80GB", 79.1 * _GIB, 312e12, 19.5e12),
    Device("a100_40gb", "A100", 39.4 * _GIB, 312e12, 19.5e12),
    Device("l40s", "L40S", 44.4 * _GIB, 362e12, 91.6e12),
    Device("rtx4090", "RTX 4090", 23.5 * _GIB, 165e12, 82.6e12),
)
TOKENS = {"cuda": 16384, "cpu": 768}
"""In a micro-batch. A CPU's matrix products are as fast on 768 as on more, and activations are smaller."""
NAMES = tuple(device.name for device in GPUS)


def gpu(name: str) -> Device:
    """By our own name for it."""
    return next(device for device in GPUS if device.name == name)


def known_gpu(torch_name: str) -> Device | None:
    """By what torch calls it; None if it is none of ours."""
    return next((device for device in GPUS if device.key in torch_name), None)


def free_memory() -> int:
    """Bytes of this machine's memory that processes can have: what is available, or what their control group may take.

    Raises:
        OSError: where the system does not say.
    """
    import psutil  # type: ignore[import-untyped]

    return min([int(psutil.virtual_memory().available), *_group_limits()])


def _group_limits() -> list[int]:
    """Bytes that this process's control groups may still take."""
    found = []
    for folder in _group_folders():
        for most, now in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            try:
                limit = (folder / most).read_text(encoding="ascii").strip()
                used = int((folder / now).read_text(encoding="ascii"))
            except (OSError, ValueError):
                continue
            if limit.isdigit():
                found.append(max(0, int(limit) - used))
    return found


def _group_folders() -> list[Path]:
    """Of this process's control groups that limit memory, and of those around them; of version 1 and 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, kinds, place = line.split(":", 2)
        if kinds in ("", "memory"):
            root = Path("/sys/fs/cgroup") / kinds
            own = root / place.lstrip("/")
            folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return folders


def detected_gpu() -> tuple[Device, int] | None:
    """The first of this machine's GPUs as it is, and how many there are; None if there is none."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    known = known_gpu(properties.name)
    bf16, fp32 = (0.0, 0.0) if known is None else (known.bf16, known.fp32)
    name = properties.name if known is None else known.name
    return Device(name, properties.name, properties.total_memory, bf16, fp32), torch.cuda.device_count()
