#!/usr/bin/env python3
"""How seconds and memory grow with the batch, the lengths, the answers per prompt, the vocabulary and the model.

    python scripts/bench_scaling.py --page docs/scaling.md

One axis at a time is varied, the others stay at a base. Each point is a process of its own: a Llama with random
weights, random tokens, the reference pass and the update that `dpo train` makes, each once to warm up and then the best
of two, and the most memory that the process ever held. Beside what was measured stands what formulas say, for points
beyond this machine as well: necessary work at the machine's peak, and the bytes that `dpo plan` estimates. Under 8
minutes on two CPU cores.
"""

# ruff: noqa: E402 (other libraries are told to be quiet before they are imported)
from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dpo_cli.allocator import bound_kernel_caches, keep_freed_memory
from dpo_cli.quiet import quieten

quieten()
keep_freed_memory()
bound_kernel_caches()

import deepspeed
import matplotlib
import numpy as np
import psutil
import torch
import transformers
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from dpo_cli import distributed
from dpo_cli.data.collate import FlatBatch, collate, flat_length
from dpo_cli.data.plan import Plan
from dpo_cli.data.types import Group, Pair
from dpo_cli.engine.engine import Engine
from dpo_cli.losses import Sums, make_loss
from dpo_cli.model import memory
from dpo_cli.model.activations import activations, outline
from dpo_cli.model.attention import GROUP_ATTENTION
from dpo_cli.model.flops import FlopsModel, count_weights, peak_flops
from dpo_cli.model.memory import Layout, Work, estimate
from dpo_cli.model.policy import Policy
from dpo_cli.model.precision import processor
from dpo_cli.model.score import score_all
from dpo_cli.objective import Objective
from dpo_cli.training.step import train_step

HEAD = 64
"""Width of an attention head."""
TOKEN_BUDGET = 1024
"""Per micro-batch: what `dpo train` takes on a CPU."""
ROOM = 0.85
"""Of the memory that is free, a point may be predicted to take this much; a larger one is not tried."""
LONG = 10.0
"""Seconds from which on a call is not made again: what disturbs it is small beside it."""
PARTS = {"update": "update", "reference": "reference pass"}


@dataclass(frozen=True)
class Shape:
    """Everything that a point's costs depend on."""

    prompts: int = 4
    prompt: int = 64
    """Tokens."""
    answer: int = 64
    """Tokens of each."""
    answers: int = 2
    """Of each prompt; the first is preferred to each other."""
    vocabulary: int = 8192
    width: int = 384
    layers: int = 6

    @property
    def inner(self) -> int:
        """Width of the MLP: 8/3 of the model's, in whole 64s, as Llama has it."""
        return math.ceil(self.width * 8 / 3 / 64) * 64

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.width // HEAD,
            num_key_value_heads=self.width // HEAD,
            max_position_embeddings=self.prompt + self.answer,
            bos_token_id=0,
            eos_token_id=1,
        )

    def groups(self) -> list[Group]:
        """Prompts with random tokens; no two answers to one begin alike."""
        random = np.random.default_rng(0)

        def tokens(length: int, first: int) -> Any:
            return np.concatenate(([first], random.integers(self.vocabulary, size=length - 1))).astype(np.int32)

        pairs = tuple(Pair(0, other) for other in range(1, self.answers))
        rows = []
        for row in range(self.prompts):
            answers = tuple(tokens(self.answer, number) for number in range(self.answers))
            rows.append(Group(tokens(self.prompt, 0), answers, pairs, f"row {row}"))
        return rows


def models(*sizes: tuple[int, int]) -> list[dict[str, int]]:
    return [{"width": width, "layers": layers} for width, layers in sizes]


def values(name: str, *numbers: int) -> list[dict[str, int]]:
    return [{name: number} for number in numbers]


@dataclass(frozen=True)
class Axis:
    """What is varied."""

    title: str
    measured: Sequence[dict[str, int]]
    """Changes to the base, the smallest first."""
    beyond: Sequence[dict[str, int]]
    """Those that are only predicted."""

    @property
    def field(self) -> str:
        """The part of the shape that is varied, if it is one."""
        return next(iter(self.measured[0]))


AXES = {
    "pairs": Axis("pairs in a batch", values("prompts", 1, 2, 4, 8, 16), values("prompts", 64, 256)),
    "prompt": Axis("tokens of the prompt", values("prompt", 16, 64, 256, 1024), values("prompt", 4096, 16384)),
    "answer": Axis("tokens of each answer", values("answer", 16, 64, 256, 512), values("answer", 2048, 8192)),
    "answers": Axis("answers of a prompt", values("answers", 2, 4, 8, 16), values("answers", 32, 64)),
    "vocabulary": Axis(
        "tokens in the vocabulary", values("vocabulary", 2048, 8192, 32768, 131072), values("vocabulary", 262144)
    ),
    "model": Axis(
        "weights of the model",
        models((192, 4), (384, 6), (576, 10), (768, 14), (1024, 20), (1280, 24)),
        models((2048, 22), (4096, 34), (8192, 80)),
    ),
}
QUICK_BASE = Shape(prompts=2, prompt=8, answer=8, vocabulary=256, width=64, layers=1)
_TINY = {
    "pairs": values("prompts", 2, 4, 8),
    "prompt": values("prompt", 8, 32, 64),
    "answer": values("answer", 8, 32, 64),
    "answers": values("answers", 2, 4, 8),
    "vocabulary": values("vocabulary", 256, 512, 1024),
    "model": models((64, 1), (128, 2), (256, 4)),
}
QUICK = {name: replace(AXES[name], measured=tiny[:2], beyond=tiny[2:]) for name, tiny in _TINY.items()}


# -- what the formulas say


@dataclass(frozen=True)
class Costs:
    """Of a shape in a number format, by formula alone."""

    weights: int
    tokens: int
    """Run through the model in an update."""
    update_flops: float
    """Necessary ones, as `mfu` counts them: see dpo_cli/model/flops.py."""
    reference_flops: float
    memory: float
    """Bytes beyond what the process holds before there is a model."""


MEMORY = """\
memory: as `dpo plan` estimates it (dpo_cli/model/memory.py, docs/plan.md), beyond what the process holds before there
is a model: 16 bytes a weight (4 each for it, its gradient and AdamW's two moments), what autograd saves of the largest
micro-batch (counted off the model's own code), logits and two pieces of their gradient, in bf16 a copy of the matrices;
with several micro-batches a quarter more than they keep, in pieces that the C library's allocator holds."""


def costs_of(shape: Shape, precision: str) -> Costs:
    """The formulas' numbers; no weight is made for them."""
    config, groups = shape.config(), shape.groups()
    model, _ = outline(config, None, precision)
    update, forward = FlopsModel.of(model, update=True), FlopsModel.of(model)
    micro_batches = [collate([groups[index] for index in members]) for members in plan_of(groups)[0].ranks[0]]
    largest = max(micro_batches, key=lambda batch: len(batch.input_ids))
    kept = activations(config, largest, precision=precision, kernel=False)
    work = Work(kept, len(largest.rows), len(micro_batches))
    return Costs(
        weights=count_weights(model),
        tokens=sum(flat_length(group) for group in groups),
        update_flops=sum(update.forward(group) for group in groups),
        reference_flops=sum(forward.forward(group) for group in groups),
        memory=estimate(memory.Shape.of(model), work, Layout(precision, gpu=False)).backward.total,
    )


def plan_of(groups: Sequence[Group]) -> Plan:
    """One update on all of the groups."""
    lengths = [flat_length(group) for group in groups]
    pairs = [len(group.pairs) for group in groups]
    rest: dict[str, Any] = {"seed": 0, "epochs": 1, "max_steps": None, "world_size": 1, "token_budget": TOKEN_BUDGET}
    return Plan(lengths, lengths, pairs, batch_size=sum(pairs), **rest)


# -- what is measured, each in a process of its own


@dataclass(frozen=True)
class Measured:
    update_seconds: float
    reference_seconds: float
    peak_memory: int
    """Bytes: the most that the process held."""
    memory_before: int
    """Bytes that it held before there was a model."""
    loss: float
    """Of the first update."""


def held(field: str) -> int:
    """Bytes of a line of Linux's own count of this process's memory: VmRSS = now, VmHWM = at most so far."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


def best(function: Callable[[], object]) -> float:
    """Seconds of the faster of two calls, or of a single long one, after one that warms up."""
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 3 and seconds[1] < LONG):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def measure(shape: Shape, precision: str) -> Measured:
    """The reference pass and the update of a shape, in this process."""
    before = held("VmRSS")
    distributed.start()
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(shape.config(), attn_implementation=GROUP_ATTENTION, dtype=torch.float32)
    policy = Policy(model, precision=precision, groups=True)
    groups = shape.groups()
    known: dict[str, list[Any]] = {}

    def reference_pass() -> None:
        found = score_all(policy, groups, share=True, lengths=flat_length, token_budget=TOKEN_BUDGET)
        known.update((group.source, logps) for group, logps in zip(groups, found, strict=True))

    def look_up(batch: FlatBatch) -> Tensor:
        return torch.from_numpy(np.concatenate([logps for group in batch.groups for logps in known[group.source]]))

    reference_seconds = best(reference_pass)
    adamw = {"name": "adamw", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    engine = Engine(policy, optimizer=adamw, max_grad_norm=1.0, zero_stage=0, extra={})
    loss = make_loss({"name": "dpo", "beta": 0.1, "label_smoothing": 0.0})
    objective = Objective(groups, loss, look_up, share=True)
    step = plan_of(groups)[0]
    losses: list[float] = []

    def update() -> None:
        sums = Sums(loss.metric_names)
        train_step(engine, step, objective, 1e-6, sums, {})
        losses.append(sums.total("loss") / step.comparisons)

    update_seconds = best(update)
    return Measured(update_seconds, reference_seconds, held("VmHWM"), before, losses[0])


def in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns. The process begins with all imports done, and with nothing computed."""
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["matplotlib.figure", "transformers.models.llama.modeling_llama", "dpo_cli.training.step"]
    )
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def by_formula(shape: Shape, precision: str, peak: float) -> dict[str, Any]:
    """A point, of which nothing is measured yet."""
    costs = costs_of(shape, precision)
    return {
        "precision": precision,
        "shape": asdict(shape),
        **asdict(costs),
        "update_seconds_at_peak": costs.update_flops / peak,
        "reference_seconds_at_peak": costs.reference_flops / peak,
    }


def try_out(point: dict[str, Any]) -> dict[str, Any]:
    """The point with what was measured; as it was where this machine lacks the memory."""
    if point["memory"] > ROOM * psutil.virtual_memory().available:
        return point
    try:
        measured = in_own_process(measure, Shape(**point["shape"]), point["precision"])
    except BrokenProcessPool:  # the kernel ended it
        return point
    return {**point, **asdict(measured)}


def run(axes: dict[str, Axis], base: Shape, precisions: Sequence[str]) -> dict[str, Any]:
    """All points of all axes; one that several axes share is measured once."""
    peaks = {precision: in_own_process(peak_flops, torch.device("cpu"), precision) for precision in precisions}
    known: dict[tuple[Shape, str], dict[str, Any]] = {}
    found = {}
    for name, axis in axes.items():
        points: list[dict[str, Any]] = []
        for precision, peak in peaks.items():
            line = []
            for change in (*axis.measured, *axis.beyond):
                key = (replace(base, **change), precision)
                if key not in known:
                    point = by_formula(*key, peak)
                    known[key] = try_out(point) if change in axis.measured else point
                    say = f"{known[key]['update_seconds']:.2f} s" if "update_seconds" in known[key] else "not measured"
                    print(f"{name}: {change} in {precision}: {say}", file=sys.stderr, flush=True)
                value = known[key]["weights"] if name == "model" else change[axis.field]
                line.append({"value": value, **known[key]})
            points += with_expectations(line)
        found[name] = {"title": axis.title, "points": points}
    return {
        "machine": describe_machine(),
        "base": asdict(base),
        "token_budget": TOKEN_BUDGET,
        "peak_flops": peaks,
        "memory_formula": MEMORY,
        "axes": found,
    }


def with_expectations(line: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points of one axis and number format, with what to expect of them: the formulas, times by how much the last
    measured point was above them."""
    last = [point for point in line if "update_seconds" in point][-1:]
    for point in line if last else ():
        for name in (f"{part}_seconds" for part in PARTS):
            point[f"{name}_expected"] = point[f"{name}_at_peak"] * last[0][name] / last[0][f"{name}_at_peak"]
        before = point.get("memory_before", last[0]["memory_before"])
        share = (last[0]["peak_memory"] - last[0]["memory_before"]) / last[0]["memory"]
        point["memory_by_formula"] = before + point["memory"]
        point["memory_expected"] = before + point["memory"] * share
    return line


def describe_machine() -> dict[str, Any]:
    """What the numbers are of."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version()}
        | {library.__name__: library.__version__ for library in (torch, transformers, deepspeed)},
    }


# -- for people


def markdown(report: dict[str, Any], pictures: Mapping[str, str] = MappingProxyType({})) -> str:
    """All of it as tables, under plots by axis where there are any."""
    machine, base = report["machine"], report["base"]
    peaks = ", ".join(f"{peak / 1e9:,.0f} GFLOP/s in {precision}" for precision, peak in report["peak_flops"].items())
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gib']} GiB, {machine['date']}; {versions}. Matrix products: {peaks}.",
        "",
        f"The base: {base['prompts']} prompts of {base['prompt']} tokens with {base['answers']} answers of "
        f"{base['answer']}, {base['vocabulary']:,} tokens in the vocabulary, a Llama {base['width']} wide with "
        f"{base['layers']} layers; {report['token_budget']} tokens a micro-batch. Seconds: measured (share of the "
        "machine's peak that the necessary work makes of it). Memory: peak of the process (by the formula). A ~ is "
        "expected and not measured: as far above the formula as the last measured point.",
    ]
    for name, axis in report["axes"].items():
        if name in pictures:
            lines += ["", f"![{axis['title']}]({pictures[name]})"]
        heads = [axis["title"], "format", "tokens", "update, s", "reference pass, s", "memory, GiB"]
        lines += ["", f"| {' | '.join(heads)} |", "|---:|---|---:|---:|---:|---:|"]
        lines += [f"| {' | '.join(_cells(point))} |" for point in axis["points"]]
    return "\n".join([*lines, "", "```", report["memory_formula"], "```", ""])


def _cells(point: dict[str, Any]) -> list[str]:
    cells = [f"{point['value']:,}", point["precision"], f"{point['tokens']:,}"]
    for name in (f"{part}_seconds" for part in PARTS):
        if name in point:
            cells.append(f"{point[name]:.3g} ({point[f'{name}_at_peak'] / point[name]:.2f})")
        else:
            cells.append(f"~{point[f'{name}_expected']:.3g}" if f"{name}_expected" in point else "not measured")
    if "peak_memory" in point:
        return [*cells, f"{point['peak_memory'] / 2**30:.2f} ({point['memory_by_formula'] / 2**30:.2f})"]
    return [*cells, f"~{point['memory_expected'] / 2**30:.2f}" if "memory_expected" in point else "not measured"]


def plot(axis: dict[str, Any], file: Path) -> None:
    """Dots: measured. Lines: the formulas, of seconds at the machine's peak; dashed: what to expect."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    precisions = dict.fromkeys(point["precision"] for point in axis["points"])
    for color, precision in zip(("tab:blue", "tab:orange"), precisions, strict=False):
        line = [point for point in axis["points"] if point["precision"] == precision]
        for panel, part in zip(panels, PARTS, strict=False):
            name, title = f"{part}_seconds", PARTS[part]
            _draw(panel, line, name, color, f"{precision}, measured", "o", unit=1)
            _draw(panel, line, f"{name}_at_peak", color, f"{precision}, by the formula", "-", unit=1)
            _draw(panel, line, f"{name}_expected", color, f"{precision}, expected", "--", unit=1)
            panel.set_title(f"{title}, seconds")
        _draw(panels[2], line, "peak_memory", color, f"{precision}, measured", "o", unit=2**30)
        _draw(panels[2], line, "memory_by_formula", color, f"{precision}, by the formula", "-", unit=2**30)
        _draw(panels[2], line, "memory_expected", color, f"{precision}, expected", "--", unit=2**30)
        panels[2].set_title("memory, GiB")
    for panel in panels:
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel(axis["title"])
        panel.set_xticks(*_ticks([point["value"] for point in axis["points"]]))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "dpo", "svg.fonttype": "none"}):
        figure.savefig(file, metadata={"Date": None})


def _ticks(values: Sequence[int]) -> tuple[list[int], list[str]]:
    """A tick at every other point, from the first on, with what it is called."""
    places = sorted(set(values))[::2]
    return places, [_short(value) for value in places]


def _short(value: int) -> str:
    for unit, letter in ((1e9, "B"), (1e6, "M")):
        if value >= unit:
            return f"{value / unit:.2g}{letter}"
    return f"{value:,}"


def _draw(panel: Any, line: Sequence[dict[str, Any]], name: str, color: str, label: str, style: str, unit: int) -> None:
    points = [(point["value"], point[name] / unit) for point in line if name in point]
    panel.plot(*zip(*points, strict=True), style, color=color, label=label) if points else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", default=",".join(AXES), help=f"which, with commas between; of {', '.join(AXES)}")
    parser.add_argument("--precision", default="fp32,bf16", help="fp32, bf16 or both")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"), help="folder for scaling.json and scaling.md")
    parser.add_argument("--page", type=Path, help="tables with plots, which go into img/ beside it")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--read", type=Path, help="tables and page of an earlier scaling.json; nothing is measured")
    options = parser.parse_args()
    names, precisions = options.axis.split(","), options.precision.split(",")
    for word, known in [*((name, AXES) for name in names), *((name, ("fp32", "bf16")) for name in precisions)]:
        if word not in known:
            parser.error(f"{word!r}: expected some of {', '.join(known)}, with commas between")
    if options.read:
        report = json.loads(options.read.read_text(encoding="utf-8"))
    else:
        axes, base = (QUICK, QUICK_BASE) if options.quick else (AXES, Shape())
        report = run({name: axes[name] for name in names}, base, precisions)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scaling.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "scaling.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report), end="")
    if options.page:
        pictures = {name: f"img/scaling-{name}.svg" for name in report["axes"]}
        for name, file in pictures.items():
            plot(report["axes"][name], options.page.parent / file)
        options.page.write_text(f"# How cost grows\n\n{markdown(report, pictures)}", encoding="utf-8")


if __name__ == "__main__":
    main()
