"""How the configuration lays a run out over devices, in the words of the memory estimate."""

from __future__ import annotations

from dpo_cli.config import TrainConfig
from dpo_cli.config_adapters import NewAdapterConfig
from dpo_cli.engine.settings import offload_device, resolve_stage
from dpo_cli.losses import Loss
from dpo_cli.model.memory import Checkpointing, Layout, Offload, ReferenceKind, Sampling

HEADROOM = 0.06
"""Share of a device that a run leaves free, as far as it decides that itself."""


def layout_of(
    config: TrainConfig, loss: Loss, kind: Checkpointing, *, precision: str, world_size: int, gpu: bool
) -> Layout:
    """The run as it is configured.

    Args:
        config: the run's.
        loss: its loss.
        kind: of activation checkpointing.
        precision: ``fp32`` or ``bf16``.
        world_size: processes of all machines.
        gpu: whether each has a GPU.
    """
    stage = resolve_stage(config.engine.zero_stage, world_size)
    return Layout(
        precision=precision,
        zero_stage=stage,
        world_size=world_size,
        optimizer=config.optim.name,
        offload=offload_of(config),
        checkpointing=kind,
        reference=reference_kind(config, loss, stage),
        sampling=sampling_of(config),
        gpu=gpu,
    )


def offload_of(config: TrainConfig) -> Offload:
    """What ZeRO keeps in the host's memory."""
    moved = [what for what in ("optimizer", "param") if offload_device(config.engine.deepspeed, what) != "none"]
    return "all" if "param" in moved else "optimizer" if moved else "none"


def reference_kind(config: TrainConfig, loss: Loss, stage: int) -> ReferenceKind:
    """What kind of reference is in memory at a ZeRO stage."""
    settings = config.reference
    if not loss.needs_reference or settings.mode in ("cached", "none"):
        return "none"
    if settings.mode == "live":
        sharded = stage == 3 if settings.sharded == "auto" else settings.sharded
        return "sharded" if sharded else "whole"
    goes_on = settings.update_every is not None or not isinstance(config.model.adapter, NewAdapterConfig)
    return "second_adapter" if goes_on else "adapter_off"


def sampling_of(config: TrainConfig) -> Sampling:
    """Which models sampling holds whole, where the run samples at all."""
    if not config.eval.samples or config.data.eval is None:
        return "none"
    loaded = config.reference.mode == "cached" and not isinstance(config.model.adapter, NewAdapterConfig)
    return "policy_and_reference" if loaded and config.eval.temperature == 1.0 else "policy"
