"""What fits a device, and which overrides make a run fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, Literal

from dpo_cli.commands.plan_batch import Batches, Source
from dpo_cli.data.collate import FlatBatch
from dpo_cli.model.activations import Activations, activations
from dpo_cli.model.adapters import NewAdapter
from dpo_cli.model.devices import GPUS, Device
from dpo_cli.model.load import why_no_groups
from dpo_cli.model.memory import (
    KINDS,
    Checkpointing,
    Estimate,
    Layout,
    Offload,
    ReferenceKind,
    Sampling,
    Shape,
    Work,
    estimate,
    least_checkpointing,
)
from dpo_cli.model.sequence_parallel import most_rows, why_not

_STAGES: tuple[tuple[int, Offload], ...] = (
    (0, "none"),
    (1, "none"),
    (2, "none"),
    (3, "none"),
    (2, "optimizer"),
    (3, "optimizer"),
    (3, "all"),
)
_SHOWN = ("rtx4090", "l40s", "a100_40gb", "a100_80gb", "h100", "h200")
_OFFLOAD = "engine.deepspeed.zero_optimization.offload"
_SMALLEST_BUDGET = 2048
"""Tokens a micro-batch that are still worth while on a GPU."""


@dataclass(frozen=True)
class Choice:
    """What can be changed about a run to make it fit."""

    zero_stage: int
    offload: Offload
    processes: int
    """On each host."""
    hosts: int
    budget: int
    """Tokens a micro-batch."""
    optimizer: str
    checkpointing: Checkpointing | Literal["auto"]
    sequence_parallel: int = 1
    """Processes that share each row."""

    @property
    def world_size(self) -> int:
        return self.processes * self.hosts

    @property
    def data_ranks(self) -> int:
        return self.world_size // self.sequence_parallel


@dataclass(frozen=True)
class Candidate:
    """A choice and what it takes."""

    choice: Choice
    checkpointing: Checkpointing
    """What it comes to."""
    estimate: Estimate
    fits: bool
    refused: str = ""
    """Why it can't be run; empty = it can."""


@dataclass(frozen=True)
class Run:
    """A run whose memory can be asked for under any choice."""

    config: Any
    """The model's, of transformers."""
    shape: Shape
    source: Source
    precision: str
    kernel: bool
    """Whether attention is a variable-length kernel, as on a GPU in bf16."""
    adapter: NewAdapter | None
    quantization: str | None
    reference: Callable[[int], ReferenceKind]
    """The kind of reference at a ZeRO stage."""
    sampling: Sampling
    saves_moments: bool
    can_checkpoint: bool
    """Whether its layers can compute anything again."""

    @cached_property
    def _counted(self) -> Callable[[int, int], tuple[Batches, Activations]]:
        @lru_cache
        def kept(tokens: int, key: bytes) -> Activations:
            return activations(
                self.config, known[key], precision=self.precision, kernel=self.kernel, adapter=self.adapter
            )

        @lru_cache
        def counted(budget: int, ranks: int) -> tuple[Batches, Activations]:
            batches = self.source.batches(budget, ranks)
            key = batches.largest.position_ids.tobytes()  # what is kept depends on lengths alone
            known[key] = batches.largest
            return batches, kept(len(batches.largest.input_ids), key).scaled(batches.share)

        known: dict[bytes, FlatBatch] = {}
        return counted

    def batches(self, choice: Choice) -> Batches:
        """Of a choice."""
        return self._counted(choice.budget, choice.data_ranks)[0]

    def estimate(self, choice: Choice, checkpointing: Checkpointing, *, gpu: bool) -> Estimate:
        """What a choice takes with a kind of checkpointing."""
        batches, kept = self._counted(choice.budget, choice.data_ranks)
        shared_by = choice.sequence_parallel
        layout = Layout(
            precision=self.precision,
            zero_stage=choice.zero_stage,
            world_size=choice.world_size,
            optimizer=choice.optimizer,
            offload=choice.offload,
            checkpointing=checkpointing,
            reference=self.reference(choice.zero_stage),
            sampling=self.sampling,
            gpu=gpu,
        )
        rows = most_rows(batches.rows, shared_by)
        work = Work(kept.spread(shared_by), rows, batches.micro_batches, is_capped(self.config))
        return estimate(self.shape, work, layout, saves_moments=self.saves_moments)

    def look(self, choice: Choice, room: float, *, gpu: bool) -> Candidate:
        """Whether a choice fits into ``room`` bytes on each device."""
        kind = self._checkpointing(choice, room, gpu=gpu)
        found = self.estimate(choice, kind, gpu=gpu)
        refused = ""
        if kind != "none" and not self.can_checkpoint:
            refused = "this model's layers can't compute anything again"
        elif self.quantization is not None and choice.zero_stage == 3:
            refused = "ZeRO 3 can't hold matrices in 4 or 8 bits"
        elif choice.optimizer.endswith("_8bit") and choice.zero_stage:
            refused = f"{choice.optimizer} needs ZeRO 0"
        return Candidate(choice, kind, found, not refused and found.peak.total <= room, refused)

    def _checkpointing(self, choice: Choice, room: float, *, gpu: bool) -> Checkpointing:
        if choice.checkpointing != "auto":
            return choice.checkpointing
        if not self.can_checkpoint:
            return "none"
        return least_checkpointing(lambda kind: self.estimate(choice, kind, gpu=gpu), room)

    def stages(self, choice: Choice, room: float, *, gpu: bool) -> list[Candidate]:
        """The choice at every ZeRO stage, and with offload where there is a device to be relieved."""
        return [
            self.look(replace(choice, zero_stage=stage, offload=offload), room, gpu=gpu)
            for stage, offload in _STAGES
            if gpu or offload == "none"
        ]

    def smallest(self, choice: Choice, headroom: float) -> dict[str, int]:
        """How many of each kind of GPU it takes at least, up to 512, at the choice's stage or a higher one."""
        found = {}
        for device in GPUS:
            if device.name not in _SHOWN:
                continue
            for exponent in range(10):
                count = 2**exponent
                if count % choice.sequence_parallel:
                    continue
                several = replace(choice, processes=min(count, 8), hosts=max(1, count // 8), offload="none")
                stages = {several.zero_stage} if count == 1 else {max(several.zero_stage, 2), 3}
                room = device.memory * (1 - headroom)
                if any(self.look(replace(several, zero_stage=stage), room, gpu=True).fits for stage in stages):
                    found[device.name] = count
                    break
        return found


def overrides(before: Choice, after: Choice) -> list[str]:
    """The words of a command line that make one choice the other."""
    words = []
    if after.zero_stage != before.zero_stage:
        words.append(f"engine.zero_stage={after.zero_stage}")
    if after.checkpointing != before.checkpointing:
        words.append(f"train.activation_checkpointing={after.checkpointing}")
    if after.budget != before.budget:
        words.append(f"train.tokens_per_micro_batch={after.budget}")
    if after.sequence_parallel != before.sequence_parallel:
        words.append(f"engine.sequence_parallel={after.sequence_parallel}")
    if after.optimizer != before.optimizer:
        words.append(f"optim={after.optimizer}")
    if after.offload != before.offload:
        words.append(f"{_OFFLOAD}_optimizer.device=cpu")
        if after.offload == "all":
            words.append(f"{_OFFLOAD}_param.device=cpu")
    if after.processes != before.processes:
        words.append(f"launch.num_processes={after.processes}")
    return words


def what_fits(run: Run, choice: Choice, room: float, *, gpu: bool) -> Candidate | None:
    """The change of least cost that makes a run fit: what costs least is tried first, alone and then together."""
    for candidate in _changes(run, choice, gpu=gpu):
        found = run.look(candidate, room, gpu=gpu)
        if found.fits:
            return found
    return None


def _changes(run: Run, choice: Choice, *, gpu: bool) -> Iterator[Choice]:
    """From the least cost to the greatest: what stands last changes first."""
    more = [choice.processes]
    while gpu and more[-1] < 8:
        more.append(more[-1] * 2)
    offloads: list[Offload] = ["none", "optimizer", "all"] if gpu and choice.offload == "none" else [choice.offload]
    small = {"adamw": "paged_adamw_32bit"}.get(choice.optimizer) if gpu else None
    optimizers = [choice.optimizer, *([small] if small else [])]
    wish = choice.checkpointing
    kinds: Sequence[Checkpointing | Literal["auto"]] = [wish] if wish == "auto" else KINDS[KINDS.index(wish) :]
    budgets = [choice.budget]
    least = max(_SMALLEST_BUDGET if gpu else 256, run.source.longest if run.source.assumed and gpu else 0)
    while budgets[-1] // 2 >= least:
        budgets.append(budgets[-1] // 2)
    for processes, offload, optimizer in product(more, offloads, optimizers):
        stages = [choice.zero_stage, *(stage for stage in (2, 3) if stage > choice.zero_stage)]
        for shared_by, kind, budget in product(_shares(run, choice, processes), kinds, budgets):
            for stage in stages if processes * choice.hosts > 1 or offload != "none" else stages[:1]:
                if offload == "none" or stage == 3 or (stage == 2 and offload == "optimizer"):
                    yield Choice(stage, offload, processes, choice.hosts, budget, optimizer, kind, shared_by)


def _shares(run: Run, choice: Choice, processes: int) -> list[int]:
    """How many processes may share a row: as many as do, or more of those on a host, which exchange fastest."""
    more = range(choice.sequence_parallel + 1, processes + 1)
    even = [shared_by for shared_by in more if processes % shared_by == 0]
    return [choice.sequence_parallel, *(each for each in even if not why_not_shared(run.config, each))]


def why_not_shared(config: Any, processes: int) -> str:
    """Why so many processes can't share rows of a model, as far as its configuration says; empty = they can."""
    return why_no_groups(config) or why_not(config, processes)


def is_capped(config: Any) -> bool:
    """Whether a model caps its logits softly."""
    return getattr(config.get_text_config(), "final_logit_softcapping", None) is not None


def room_on(device: Device, memory: float | None, headroom: float, processes: int, *, gpu: bool) -> float:
    """Bytes that a rank may take: a GPU's own, or a CPU's share of the machine's memory."""
    whole = device.memory if memory is None else memory
    return whole * (1 - headroom) / (1 if gpu else processes)
