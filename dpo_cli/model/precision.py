"""Which number format the matrix products run in."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch

from dpo_cli.model.flops import peak_flops
from dpo_cli.whole_folder import write_file

_WORTH_IT = 1.4
"""How much faster bfloat16 matrix products must be on a CPU: casts and small operations eat some of the gain."""


def choose_precision(wanted: str, device: torch.device, memory: Path) -> str:
    """``fp32`` or ``bf16``, for a wish that may be ``auto``.

    Args:
        wanted: ``fp32``, ``bf16`` or ``auto``.
        device: it is for.
        memory: folder where what a CPU was measured to do is remembered: two runs on one machine must not differ
            because it was busy while one of them measured.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    file = memory / "precision.json"
    machine = f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    try:
        known = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # it only saves a measurement
        known = {}
    if machine not in known:
        slow, fast = peak_flops(device, "fp32"), peak_flops(device, "bf16")
        known[machine] = "bf16" if slow is not None and fast is not None and fast > _WORTH_IT * slow else "fp32"
        memory.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps(known))
    return str(known[machine])


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
