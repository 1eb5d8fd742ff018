"""Our settings as DeepSpeed's, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_cli.errors import ConfigError

# Decided by keys of ours: setting them under engine.deepspeed as well would be two answers to one question.
_OURS = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.tokens_per_micro_batch",
    "gradient_accumulation_steps": "train.batch_size and train.tokens_per_micro_batch",
    "gradient_clipping": "optim.max_grad_norm",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "data_types": "train.precision",
    "zero_optimization.stage": "engine.zero_stage",
    "sequence_parallel_size": "engine.sequence_parallel",
    "data_parallel_size": "launch.num_processes and engine.sequence_parallel",
}

# docs/design.md says what was tried.
_REFUSED = {
    "tensor_parallel": "tensor parallelism (AutoTP) leaves parts of weights on each rank, which checkpoints and "
    "samples would take for whole ones",
    "expert_parallel": "expert parallelism (AutoEP) puts layers of its own into a model, of which files hold none",
}


def resolve_stage(wanted: int | str, world_size: int) -> int:
    """The ZeRO stage for a wish that may be ``auto``."""
    if isinstance(wanted, int):
        return wanted
    return 0 if world_size == 1 else 2


def offload_device(extra: Mapping[str, Any], what: str) -> str:
    """Where ZeRO is to keep something: ``none`` (where it is), ``cpu`` or ``nvme``.

    Args:
        extra: the user's DeepSpeed keys.
        what: ``optimizer`` or ``param``.
    """
    settings = extra.get("zero_optimization", {}).get(f"offload_{what}")
    return str(settings.get("device", "none")) if isinstance(settings, Mapping) else "none"


def deepspeed_config(*, zero_stage: int, max_grad_norm: float | None, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What DeepSpeed is told.

    Batch sizes are 1 because DeepSpeed does not count our batches: micro-batches hold different numbers of tokens
    and comparisons, and the loop says where an update ends. Precision stays float32 for DeepSpeed: under bf16 the
    policy enters autocast itself, which keeps float32 weights for the optimizer.

    Args:
        zero_stage: 0 to 3.
        max_grad_norm: None = no clipping. Stage 0 is clipped by the engine, which needs the norm anyway.
        extra: the user's own keys, merged in.

    Raises:
        ConfigError: for each key in ``extra`` that a key of ours decides, or that is refused.
    """
    zero = extra.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        raise ConfigError([f"engine.deepspeed.zero_optimization={zero!r}: expected keys and values"])
    problems = [
        f"engine.deepspeed.{key} is decided by {ours}: set that instead"
        for key, ours in _OURS.items()
        if key in extra or (key == "zero_optimization.stage" and "stage" in zero)
    ]
    problems += [
        f"engine.deepspeed.{key} is not supported: {why}. To spread a model over ranks use engine.zero_stage=3, to "
        "spread long rows engine.sequence_parallel"
        for key, why in _REFUSED.items()
        if key in extra
    ]
    if problems:
        raise ConfigError(problems)
    return {
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # It would make the host wait for the GPU in every forward pass, to time something nobody reads.
        "timers": {"throughput": {"enabled": False}},
        **extra,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0 if zero_stage == 0 or max_grad_norm is None else max_grad_norm,
        "zero_optimization": {**zero, "stage": zero_stage},
    }
