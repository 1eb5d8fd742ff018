"""``train.activation_checkpointing=auto`` in ``dpo train``: decided by the estimate that ``dpo plan`` makes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dpo_cli import distributed
from dpo_cli.commands.layout import HEADROOM, layout_of
from dpo_cli.commands.parts import Scorer
from dpo_cli.commands.plan_batch import largest_micro_batch, some_steps
from dpo_cli.commands.plan_fit import is_capped
from dpo_cli.commands.plan_view import size
from dpo_cli.config import TrainConfig
from dpo_cli.data.collate import collate
from dpo_cli.data.plan import Plan
from dpo_cli.data.types import Group
from dpo_cli.losses import Loss
from dpo_cli.model.activations import activations, outline
from dpo_cli.model.adapters import NewAdapter
from dpo_cli.model.checkpointing import can_checkpoint
from dpo_cli.model.devices import free_memory
from dpo_cli.model.files import first_line
from dpo_cli.model.memory import KINDS, Checkpointing, Estimate, Shape, Work, estimate, least_checkpointing
from dpo_cli.model.sequence_parallel import most_rows


@dataclass(frozen=True)
class Decision:
    """What was decided, and by what."""

    kind: Checkpointing
    said: str
    """For people."""
    fits: bool
    estimated: dict[str, float]
    """Bytes on the fullest device with each kind that was looked at."""
    room: float | None
    """Bytes that it may take; None = the system does not say."""


def room_here() -> float | None:
    """Bytes that this rank may take of its device; None where the system does not say. All ranks must call it.

    To be asked before the rank has taken any: of a CPU it is a share of what is free. The smallest of all ranks'.
    """
    device = distributed.device()
    if device.type == "cuda":
        whole = float(torch.cuda.get_device_properties(device).total_memory)
    else:
        try:
            free = float(free_memory())
        except OSError:
            free = float("inf")
        machines = distributed.from_all(socket.gethostname())
        whole = free / machines.count(socket.gethostname())
    least = -distributed.largest([-whole])[0]
    return None if least == float("inf") else least * (1 - HEADROOM)


def decide(
    config: TrainConfig,
    loss: Loss,
    scorer: Scorer,
    groups: Sequence[Group],
    plan: Plan,
    *,
    precision: str,
    room: float | None,
) -> Decision:
    """The kind that computes least again of those that fit. One rank decides, as all must do alike.

    Args:
        config: the run's.
        loss: its loss.
        scorer: the model that is to be trained.
        groups: its rows.
        plan: of its updates.
        precision: ``fp32`` or ``bf16``.
        room: as ``room_here`` gave it.
    """
    if not can_checkpoint(scorer.loaded.model):
        return Decision("none", "none, as this model's layers can't compute anything again", True, {}, room)
    if room is None:
        return Decision("none", "none, as this system does not say how much memory is free", True, {}, room)
    found: dict[str, Estimate] = {}
    try:
        estimates = _estimates(config, loss, scorer, groups, plan, precision)
    except Exception as error:  # a model's own code, run as it was never meant to be: that must not end a run
        why = f"{type(error).__name__}: {first_line(error)}"
        return Decision("none", f"none, as no estimate of its memory could be made ({why})", True, {}, room)

    def kept(kind: Checkpointing) -> Estimate:
        return found.setdefault(kind, estimates(kind))

    kind = least_checkpointing(kept, room)
    peak = {name: each.peak.total for name, each in found.items()}
    said = f"{kind}: {size(peak[kind])} of the {size(room)} that a process may hold are estimated"
    if kind != KINDS[0]:
        said += f", and {size(peak[KINDS[0]])} without it"
    return Decision(kind, said, peak[kind] <= room, peak, room)


def _estimates(
    config: TrainConfig, loss: Loss, scorer: Scorer, groups: Sequence[Group], plan: Plan, precision: str
) -> Callable[[Checkpointing], Estimate]:
    """Of the run with each kind."""
    settings, adapter = scorer.loaded.model.config, _adapter(scorer)
    lengths = [scorer.lengths(group) for group in groups]
    members, micro_batches = largest_micro_batch(some_steps(plan), lengths)
    batch = collate([groups[index] for index in members], share=scorer.policy.groups, predict_prompts=loss.needs_prompt)
    gpu = distributed.device().type == "cuda"
    kept = activations(settings, batch, precision=precision, kernel=gpu and precision == "bf16", adapter=adapter)
    shape = Shape.of(outline(settings, adapter, precision)[0], config.model.adapter.quantization)
    processes = distributed.sequence_size()
    work = Work(kept.spread(processes), most_rows(len(batch.rows), processes), micro_batches, is_capped(settings))

    def estimates(kind: Checkpointing) -> Estimate:
        layout = layout_of(config, loss, kind, precision=precision, world_size=distributed.world_size(), gpu=gpu)
        return estimate(shape, work, layout, saves_moments=config.train.save_every is not None)

    return estimates


def _adapter(scorer: Scorer) -> NewAdapter | None:
    """What is trained, if not the whole model."""
    if scorer.loaded.adapter is None:
        return None
    settings = scorer.loaded.adapter.config
    kind = "dora" if settings.use_dora else "lora"
    return NewAdapter(kind, settings.r, settings.lora_alpha, settings.lora_dropout, list(settings.target_modules))
