"""Other libraries' voices: kept out of the terminal where they say nothing a user of ``dpo`` can act on."""

from __future__ import annotations

import glob
import logging
import os
import warnings


def quieten() -> None:
    """To be called before torch, transformers and DeepSpeed are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DS_ACCELERATOR", "" if _may_have_gpu() else "cpu")
    if not os.environ["DS_ACCELERATOR"]:
        del os.environ["DS_ACCELERATOR"]
    for name in ("DeepSpeed", "deepspeed", "torch.distributed", "wandb", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|transformers|deepspeed|hydra)\b")


def _may_have_gpu() -> bool:
    # A container may be given one GPU of many, with the number that it has outside: nvidia3 and no nvidia0.
    return any(glob.glob(pattern) for pattern in ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dri", "/dev/dxg"))
