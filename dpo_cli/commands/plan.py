"""``dpo plan``: whether a run fits, what it takes and what to change. No weight is loaded and nothing is downloaded."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpo_cli.commands.caches import cache_folder
from dpo_cli.commands.layout import offload_of, reference_kind, sampling_of
from dpo_cli.commands.plan_batch import Source, assumed_group
from dpo_cli.commands.plan_fit import Candidate, Choice, Run, overrides, room_on, what_fits, why_not_shared
from dpo_cli.commands.rows import known_rows
from dpo_cli.config import PlanConfig
from dpo_cli.config_adapters import NewAdapterConfig
from dpo_cli.config_folder import config_folder
from dpo_cli.config_launch import LocalConfig, SlurmConfig
from dpo_cli.distributed import check_sequence_parallel
from dpo_cli.engine.settings import resolve_stage
from dpo_cli.errors import DpoError
from dpo_cli.losses import Loss, make_loss
from dpo_cli.model.activations import outline
from dpo_cli.model.adapters import NewAdapter
from dpo_cli.model.checkpointing import can_checkpoint
from dpo_cli.model.devices import NAMES, TOKENS, Device, detected_gpu, free_memory, gpu
from dpo_cli.model.files import CONFIG_FILE
from dpo_cli.model.flops import FlopsModel, peak_flops
from dpo_cli.model.known_shapes import model_config
from dpo_cli.model.load import not_spread
from dpo_cli.model.memory import MOMENTS, Checkpointing, Shape, moment_bytes
from dpo_cli.model.precision import choose_precision, processor
from dpo_cli.overrides import given
from dpo_cli.tracking.console import Console

_MFU = {True: 0.4, False: 0.5}
"""Share of the peak that is taken for granted, on a GPU or not."""


@dataclass(frozen=True)
class Machine:
    """What a run is planned for."""

    device: Device
    gpu: bool
    memory: float
    """Bytes of a device; of a CPU: of the machine."""
    processes: int
    """On each host."""
    hosts: int
    found: bool
    """Whether it is this machine."""


@dataclass(frozen=True)
class Costs:
    """Of a whole run."""

    update_flops: float
    reference_flops: float
    mfu: float
    hours: float | None
    """None where the device's peak is not known."""
    price: float | None


@dataclass(frozen=True)
class Disk:
    """Bytes."""

    checkpoints: float
    """As many as are kept at a time, and the one being written."""
    final: float
    reference: float
    """Of the store of log-probs."""


@dataclass(frozen=True)
class Result:
    """Everything that a plan says."""

    model: str
    weights: int
    trained: int
    machine: Machine
    precision: str
    room: float
    """Bytes that the run may take of a device."""
    chosen: Candidate
    stages: list[Candidate]
    fix: Candidate | None
    """What would fit; None = the chosen one does, or nothing that was tried does."""
    words: list[str]
    """Overrides that lead to it."""
    smallest: dict[str, int]
    """How many of each kind of GPU it takes at least, with ``words``."""
    batches: Any
    assumed: bool
    """Whether lengths are assumed."""
    costs: Costs
    disk: Disk
    host: float
    """Bytes of each host's memory on top, where the devices are GPUs."""


def run(config: PlanConfig) -> None:
    """Work it out and show it.

    Raises:
        DpoError: a model whose shape is not known, or a device that is not.
    """
    result = plan(config, Console())
    if config.plan.as_json:
        print(json.dumps(as_plain(result), indent=2))
        return
    from dpo_cli.commands.plan_view import show

    show(result, config, given)


@dataclass(frozen=True)
class Prepared:
    """A run that can be looked at under any choice."""

    run: Run
    loss: Loss
    machine: Machine
    choice: Choice
    """What the configuration says."""
    room: float
    """Bytes that it may take of a device."""


def prepare(config: PlanConfig, console: Console) -> Prepared:
    """What is needed to look at a run: its model's shape, its batches, its device."""
    machine = _machine(config)
    precision = _precision(config, machine)
    wanted, quantization, path = _adapter(config)
    shape_of = model_config(path, config_folder() / "model" / "shapes")
    model, _ = outline(shape_of, wanted, precision)
    _check_spread(config, machine, shape_of)
    loss = make_loss(config.loss.settings())
    group, longest = assumed_group(config.plan, config.data, loss.kind)
    source = Source(
        train=config.train,
        loss=loss,
        seed=config.seed,
        share=config.model.attention != "plain",
        update=FlopsModel.of(model, update=True),
        forward=FlopsModel.of(model),
        known=known_rows(config.model, config.data, loss, config.seed, console),
        typical=group,
        longest=longest,
        count=config.plan.rows if config.data.limit is None else min(config.plan.rows, config.data.limit),
    )
    run = Run(
        config=shape_of,
        shape=Shape.of(model, quantization),
        source=source,
        precision=precision,
        kernel=machine.gpu and precision == "bf16",
        adapter=wanted,
        quantization=quantization,
        reference=lambda stage: reference_kind(config, loss, stage),
        sampling=sampling_of(config),
        saves_moments=config.train.save_every is not None,
        can_checkpoint=can_checkpoint(model),
    )
    room = room_on(machine.device, machine.memory, config.plan.headroom, machine.processes, gpu=machine.gpu)
    return Prepared(run, loss, machine, _choice(config, machine), room)


def plan(config: PlanConfig, console: Console) -> Result:
    """All that can be said of a run."""
    prepared = prepare(config, console)
    about, machine, choice, room = prepared.run, prepared.machine, prepared.choice, prepared.room
    chosen = about.look(choice, room, gpu=machine.gpu)
    fix = None if chosen.fits else what_fits(about, choice, room, gpu=machine.gpu)
    batches, estimate, shape = about.batches(choice), chosen.estimate, about.shape
    best = choice if fix is None else fix.choice
    on_host = (estimate.start.host, estimate.backward.host + estimate.save.host / machine.processes)
    return Result(
        model=config.model.path,
        weights=shape.weights,
        trained=shape.trained,
        machine=machine,
        precision=about.precision,
        room=room,
        chosen=chosen,
        stages=about.stages(choice, room, gpu=machine.gpu),
        fix=fix,
        words=[] if fix is None else overrides(choice, fix.choice),
        smallest=about.smallest(best, config.plan.headroom) if machine.gpu else {},
        batches=batches,
        assumed=about.source.assumed,
        costs=_costs(config, machine, batches, prepared.loss, about.precision, chosen.checkpointing),
        disk=_disk(config, shape, batches, prepared.loss),
        host=max(on_host) * machine.processes if machine.gpu else 0.0,
    )


def _machine(config: PlanConfig) -> Machine:
    """The device that is named, or this machine's."""
    settings = config.plan
    name, (wanted, hosts) = settings.device, _processes(config)
    given = None if settings.memory_gib is None else settings.memory_gib * 2**30
    count = wanted or 1
    if name in NAMES:
        device = gpu(name)
        return Machine(device, True, given or device.memory, count, hosts, found=False)
    if name not in ("auto", "cpu"):
        raise DpoError(f"plan.device={name}: expected auto, cpu or one of {', '.join(NAMES)}")
    found = detected_gpu() if name == "auto" else None
    if found is not None:
        device, there = found
        processes = wanted or there
        return Machine(device, True, given or device.memory, processes, hosts, found=True)
    device = Device(processor() or "cpu", "", given or free_memory(), 0.0, 0.0)
    return Machine(device, False, device.memory, count, hosts, found=True)


def _processes(config: PlanConfig) -> tuple[int | None, int]:
    """Processes of a machine (None = as many as it has GPUs), and machines.

    Raises:
        DpoError: if they are known where the run is launched only, or asked for twice.
    """
    launch, hosts = config.launch, config.plan.hosts
    if isinstance(launch, LocalConfig):
        return None if launch.num_processes == "auto" else launch.num_processes, hosts
    if not isinstance(launch, SlurmConfig):
        raise DpoError(
            f"launch={launch.name} says nothing of how many processes there are: use plan.hosts and "
            "launch.num_processes, which is per machine, without it"
        )
    if hosts != 1:
        raise DpoError(f"plan.hosts={hosts} has no effect with launch=slurm: use launch.nodes")
    wanted = launch.processes_per_node
    return (launch.gpus_per_node or 1) if wanted == "auto" else wanted, launch.nodes


def _check_spread(config: PlanConfig, machine: Machine, shape: Any) -> None:
    """Refuse what the run would refuse of processes that share rows.

    Raises:
        DpoError: naming the number of processes, or what it is about the model.
    """
    shared_by = config.engine.sequence_parallel
    check_sequence_parallel(shared_by, machine.processes * machine.hosts)
    if shared_by > 1 and (problem := why_not_shared(shape, shared_by)):
        raise not_spread(shared_by, problem)


def _precision(config: PlanConfig, machine: Machine) -> str:
    wanted = config.train.precision
    if machine.gpu and wanted == "auto":
        return "bf16"
    return choose_precision(wanted, torch.device("cpu"), cache_folder(config.reference.cache_dir))


def _adapter(config: PlanConfig) -> tuple[NewAdapter | None, str | None, str]:
    """The adapter that is trained, how the matrices beside it are held, and the model it is on."""
    adapter, path = config.model.adapter, config.model.path
    if isinstance(adapter, NewAdapterConfig):
        return NewAdapter(**adapter.settings()), adapter.quantization, path
    place = getattr(adapter, "path", None) or path
    file = Path(place, CONFIG_FILE)
    if not file.is_file():
        if adapter.name == "existing":
            raise DpoError(f"{place} is not a folder with {CONFIG_FILE}, and a plan downloads nothing")
        return None, None, path
    settings = json.loads(file.read_text(encoding="utf-8"))
    kind = "dora" if settings.get("use_dora") else "lora"
    found = NewAdapter(
        kind, settings["r"], settings["lora_alpha"], settings["lora_dropout"], settings["target_modules"]
    )
    return found, adapter.quantization, str(settings["base_model_name_or_path"]) if place == path else path


def _choice(config: PlanConfig, machine: Machine) -> Choice:
    budget = config.train.tokens_per_micro_batch
    return Choice(
        zero_stage=resolve_stage(config.engine.zero_stage, machine.processes * machine.hosts),
        offload=offload_of(config),
        processes=machine.processes,
        hosts=machine.hosts,
        budget=budget if budget != "auto" else TOKENS["cuda" if machine.gpu else "cpu"],
        optimizer=config.optim.name,
        checkpointing=config.train.activation_checkpointing,
        sequence_parallel=config.engine.sequence_parallel,
    )


def _costs(
    config: PlanConfig, machine: Machine, batches: Any, loss: Loss, precision: str, checkpointing: Checkpointing
) -> Costs:
    settings = config.plan
    mfu = settings.mfu or _MFU[machine.gpu]
    passes = 0.0
    if loss.needs_reference:
        passes = 1.0 if config.reference.mode == "cached" else float(config.train.epochs)
    reference = passes * batches.reference_flops
    # Work that is done again counts in the time and not in the share.
    again = {"none": 1.0, "selective": 1.05, "full": 4 / 3}[checkpointing]
    if machine.gpu:
        peak: float | None = machine.device.peak(precision) * machine.processes * machine.hosts or None
    else:
        measured = peak_flops(torch.device("cpu"), precision)
        peak = None if measured is None else measured * machine.hosts
    hours = None if peak is None else (batches.update_flops * again + reference) / (peak * mfu) / 3600
    price = settings.price_per_hour
    devices = machine.hosts * (machine.processes if machine.gpu else 1)
    cost = None if price is None or hours is None else hours * price * devices
    return Costs(batches.update_flops, reference, mfu, hours, cost)


def _disk(config: PlanConfig, shape: Shape, batches: Any, loss: Loss) -> Disk:
    train = config.train
    each = shape.trained * (4.0 + moment_bytes(config.optim.name))
    if config.reference.update_every is not None:
        each += 4.0 * (shape.trained if config.reference.mode == "adapter_off" else shape.weights)
    kept = 0 if train.save_every is None else train.keep_last + 1 + (train.keep_best is not None)
    stored = loss.needs_reference and config.reference.mode == "cached"
    # A key and an end for each answer, and a float32 number for each of its tokens.
    store = batches.answers * 24.0 + batches.answer_tokens * 4.0 if stored else 0.0
    return Disk(each * kept, 4.0 * shape.trained, store)


def as_plain(result: Result) -> dict[str, Any]:
    """As JSON: bytes, FLOPs, hours."""
    batches = result.batches

    def candidate(one: Candidate) -> dict[str, Any]:
        moments = {name: _memory(getattr(one.estimate, name)) for name in MOMENTS}
        return {
            **dataclasses.asdict(one.choice),
            "checkpointing": one.checkpointing,
            "fits": one.fits,
            "refused": one.refused or None,
            "peak": one.estimate.peak.total,
            "peak_at": one.estimate.worst,
            "memory": moments,
        }

    return {
        "model": {"path": result.model, "weights": result.weights, "trained": result.trained},
        "device": {**dataclasses.asdict(result.machine.device), "gpu": result.machine.gpu, "room": result.room},
        "precision": result.precision,
        "fits": result.chosen.fits,
        "chosen": candidate(result.chosen),
        "stages": [candidate(one) for one in result.stages],
        "fix": None if result.fix is None else {"overrides": result.words, **candidate(result.fix)},
        "smallest": result.smallest,
        "batch": {
            "lengths": "assumed" if result.assumed else "of the rows",
            "comparisons": batches.comparisons,
            "updates": batches.updates,
            "micro_batches": batches.micro_batches,
            "tokens": batches.tokens,
            "logits": batches.rows,  # of all processes that share a micro-batch, as its tokens are
        },
        "costs": dataclasses.asdict(result.costs),
        "disk": dataclasses.asdict(result.disk),
        "host_memory": result.host,
    }


def _memory(memory: Any) -> dict[str, float]:
    return {**dataclasses.asdict(memory), "total": memory.total}
