"""A plan for people, in 80 columns."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from dpo_cli.commands.plan_fit import Candidate
from dpo_cli.config import PlanConfig
from dpo_cli.config_losses import SumConfig, kind_of
from dpo_cli.model.memory import PARTS
from dpo_cli.tracking.console import Terminal

_GIB = 2**30
_HEADS = {
    "weights": "weights",
    "gradients": "grads",
    "optimizer": "optim.",
    "activations": "activ.",
    "logits": "logits",
    "reference": "ref.",
    "buffers": "buffers",
}
_MOMENTS = {
    "start": "at the start, while weights are loaded and the reference is scored",
    "backward": "before the backward pass of the largest micro-batch",
    "step": "while the weights are updated",
    "save": "while final/ or a checkpoint is written",
    "sample": "while answers are sampled (eval.samples), with a whole model in each process",
}


def show(result: Any, config: PlanConfig, given: Sequence[str]) -> None:
    """Print it: whether it fits first, then why."""
    screen = Terminal()
    screen.print(_verdict(result))
    if not result.chosen.fits:
        if result.fix is not None:
            words = [word for word in given if not word.startswith("plan.")]
            command = " ".join(shlex.quote(word) for word in ("dpo", "train", *words, *result.words))
            screen.print(f"this would fit, with {size(result.fix.estimate.peak.total)}:", style="bold")
            screen.print(f"  {command}", style="bold", soft_wrap=True)  # to be copied
        screen.print(_advice(result))
    screen.print(_about(result, config))
    screen.print(_table(result))
    screen.print(_notes(result, config))


def _verdict(result: Any) -> Text:
    peak, fits = result.chosen.estimate.peak.total, result.chosen.fits
    head = Text("fits" if fits else "does not fit", style="bold green" if fits else "bold red")
    head.append(f": {size(peak)} of the {size(result.room)} that {_devices(result)} may hold", style="bold")
    if result.chosen.refused:
        head.append(f"; {result.chosen.refused}")
    return head.append(f", {_MOMENTS[result.chosen.estimate.worst]}")


def _devices(result: Any) -> str:
    machine = result.machine
    if not machine.gpu:
        several = f" among {machine.processes} processes" if machine.processes > 1 else ""
        return f"this machine's memory{several}"
    count = machine.processes * machine.hosts
    return f"each of {count} {machine.device.name}" if count > 1 else f"one {machine.device.name}"


def _advice(result: Any) -> Text:
    text = Text()
    if result.fix is None:
        text.append("no ZeRO stage, checkpointing, budget of tokens, sharing of rows, optimizer or offload makes it ")
        text.append("fit there\n")
    if result.smallest:
        counts = ", ".join(f"{count} x {name}" for name, count in result.smallest.items())
        how = "so" if result.words else "as it is"
        text.append(f"{how}, or with a higher ZeRO stage, it takes at least {counts}")
    return text


def _about(result: Any, config: PlanConfig) -> Table:
    batches, choice = result.batches, result.chosen.choice
    trained = "" if result.trained == result.weights else f", {_number(result.trained)} trained"
    counted = "one micro-batch" if batches.micro_batches == 1 else f"{batches.micro_batches} micro-batches"
    lengths = "lengths are assumed" if result.assumed else "with the rows' own lengths"
    processes = "1 process" if choice.world_size == 1 else f"{choice.world_size} processes"
    where = "each process"
    if (shared_by := choice.sequence_parallel) > 1:
        processes += f", {shared_by} to a row"
        where = f"every {shared_by} processes"
    return _facts(
        ("model", f"{result.model}: {_number(result.weights)} weights{trained}, {result.precision}"),
        (
            "batch",
            f"{config.train.batch_size} {_kind(config)} an update, {counted} of at most {batches.tokens:,} tokens on "
            f"{where}",
        ),
        ("rows", f"{batches.comparisons:,} {_kind(config)}, {batches.updates:,} updates; {lengths}"),
        (
            "layout",
            f"{processes}, ZeRO {choice.zero_stage}, {choice.optimizer}, reference {config.reference.mode}, activation "
            f"checkpointing {result.chosen.checkpointing}" + (" (auto)" if choice.checkpointing == "auto" else ""),
        ),
    )


def _kind(config: PlanConfig) -> str:
    kind = kind_of(
        next(iter(config.loss.terms.values())).name if isinstance(config.loss, SumConfig) else config.loss.name
    )
    return {"pairs": "comparisons", "answers": "judged answers"}.get(kind, kind)


def _facts(*lines: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    for name, fact in lines:
        table.add_row(name, fact)
    return table


def _table(result: Any) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left", title_style="dim")
    table.title = "GiB on a device, at the moment that takes most"
    table.add_column("ZeRO")
    for head in (*_HEADS.values(), "total"):
        table.add_column(head, justify="right")
    table.add_column("")
    for candidate in result.stages:
        chosen = _same(candidate, result.chosen)
        peak = candidate.estimate.peak
        cells = [_cell(getattr(peak, part)) for part in PARTS]
        table.add_row(
            _layout(candidate),
            *cells,
            _cell(peak.total),
            (candidate.refused and "no") or ("fits" if candidate.fits else "no"),
            style="bold" if chosen else "" if candidate.fits else "dim",
        )
    return table


def _layout(candidate: Candidate) -> str:
    moved = {"none": "", "optimizer": " off", "all": " off+"}[candidate.choice.offload]
    return f"{candidate.choice.zero_stage}{moved}"


def _same(one: Candidate, other: Candidate) -> bool:
    return (one.choice.zero_stage, one.choice.offload) == (other.choice.zero_stage, other.choice.offload)


def _notes(result: Any, config: PlanConfig) -> Table:
    costs, disk = result.costs, result.disk
    lines = []
    if result.machine.gpu:
        lines.append(("", "off: optimizer state in the host's memory; off+: weights as well"))
    if result.chosen.estimate.worst == "start":
        backward = result.chosen.estimate.backward.total
        lines.append(("", f"once ZeRO has shared the weights out, an update takes {size(backward)}"))
    total = costs.update_flops + costs.reference_flops
    lines.append(("work", f"{total:.3g} FLOPs, {costs.reference_flops / total:.0%} of them for the reference"))
    lines.append(("time", _time(costs, config)))
    kept = f", checkpoints {size(disk.checkpoints)}" if disk.checkpoints else ", no checkpoints"
    store = f", reference store {size(disk.reference)}" if disk.reference else ""
    lines.append(("disk", f"final/ {size(disk.final)}{kept}{store}"))
    if result.host:
        lines.append(("host", f"{size(result.host)} of each machine's own memory, while weights are loaded or written"))
    return _facts(*lines)


def _time(costs: Any, config: PlanConfig) -> str:
    if costs.hours is None:
        return "not known: this device's peak is not in the table"
    price = "" if costs.price is None else f"; {costs.price:,.0f} at {config.plan.price_per_hour:g} a device and hour"
    guess = "" if config.plan.mfu else " (assumed: plan.mfu)"
    return f"{_hours(costs.hours)} at {costs.mfu:.0%} of the peak{guess}{price}"


def _number(count: float) -> str:
    for unit, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f}"


def size(count: float) -> str:
    """Bytes, for people."""
    for unit, name in ((2**40, "TiB"), (_GIB, "GiB"), (2**20, "MiB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}" if count < 1000 * unit else f"{count / unit:,.0f} {name}"
    return "0" if not count else f"{count / 1024:.3g} KiB"


def _cell(count: float) -> str:
    return f"{count / _GIB:.1f}" if count >= 0.05 * _GIB else "0" if count < 2**20 else "<0.1"


def _hours(hours: float) -> str:
    if hours < 1 / 30:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h"
