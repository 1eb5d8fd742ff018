"""Measure ``dpo`` and trl side by side: the same rows, the same tokens in the same global batches, the same losses.

    python scripts/bench_peers.py --model SmolLM2-135M-Instruct --data FOLDER --work hh,ranked --precision fp32,bf16

Works: ``hh`` (hh_harmless.jsonl.gz), ``ranked`` (alpaca_ranked.jsonl.gz, four answers a prompt) and ``dpo_en``
(dpo_en_demo.json, longer answers), each file in the folder ``--data``. Every training is a process of its own, on the
same number of threads. trl is installed into ``--environment`` where it isn't there. The table is printed, and written
beside ``--out``, which has everything. It ends with an error where float32 losses differ by more than 1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from dpo_cli.data.build import Counts, Recipe, encode, usable
from dpo_cli.data.formats import Reading
from dpo_cli.data.plan import Plan
from dpo_cli.data.sources import Place, open_source
from dpo_cli.data.tokenize import Encoding
from dpo_cli.data.types import Example, Group, Pair
from dpo_cli.model.flops import FlopsModel, peak_flops
from dpo_cli.model.precision import processor
from dpo_cli.quiet import quieten

TORCH, TRL = "torch==2.13.0", "trl==1.16.0"
WORKER = Path(__file__).with_name("bench_peers_trl.py")
TOLERANCE = 1e-4
"""Between losses in float32."""
SEED, LR, BETA, MAX_LENGTH = 0, 5e-6, 0.1, 1024
BEST = {"gradient_checkpointing": False, "precompute_ref_log_probs": True, "per_device_train_batch_size": 1}
"""trl at its fastest here: no padding but within a pair, nothing computed twice. Accumulated to the global batch."""


@dataclass(frozen=True)
class Work:
    """Rows to be trained on."""

    file: str
    batch: int
    """Comparisons per update."""


WORKS = {
    "hh": Work("hh_harmless.jsonl.gz", 8),
    "ranked": Work("alpaca_ranked.jsonl.gz", 12),
    "dpo_en": Work("dpo_en_demo.json", 8),
}


@dataclass(frozen=True)
class Measured:
    """One training."""

    reference: float | None
    """Seconds of the reference's forward pass over all rows; None where each update has it."""
    updates: list[float]
    """Seconds of each."""
    losses: list[float]
    """Of each update."""
    rss_gib: float
    """The most memory that the process held, from its start to its end."""
    versions: dict[str, str]

    @property
    def passes(self) -> tuple[float | None, float | None, float]:
        """Seconds of the reference pass, of training alone, of both."""
        total = sum(self.updates)
        return (None, None, total) if self.reference is None else (self.reference, total, self.reference + total)


@dataclass(frozen=True)
class Operations:
    """Necessary FLOPs of all rows: each shared token once, log-probs of answer tokens only, nothing twice."""

    reference: float
    """Forward."""
    training: float
    """Forward and backward."""

    @property
    def both(self) -> float:
        """The two together."""
        return self.reference + self.training


@dataclass(frozen=True)
class Prepared:
    """A work's rows, as each who is measured reads them."""

    batch: int
    comparisons: int
    grouped: Path | None
    """For ``dpo``, a prompt with all its answers a row; None where a row has two answers anyway."""
    pairs: Path
    """For ``dpo``, a comparison a row."""
    tokens: Path
    """For trl: the same comparisons as token ids, in the order in which ``dpo`` comes to them."""
    necessary: Operations
    separate: Operations
    """If each comparison were a row of its own."""


def readable(file: Path, tokenizer: PreTrainedTokenizerBase, cache: Path) -> list[tuple[Example, Group]]:
    """The rows of a file that need no cut and prefer something, as ``dpo`` reads them; hashes go into ``cache``."""
    recipe = Recipe(Reading(), Encoding(max_length=MAX_LENGTH, on_too_long="drop"), "pairs", "skip")
    counts = Counts()
    source = open_source(Place(str(file)), key="--data", cache=cache)
    examples = list(usable(source.rows(), recipe, counts))
    found = encode(examples, recipe, tokenizer, [], counts)
    return [(encoded.example, encoded.group) for encoded in found if encoded.group is not None]


def fill_batches(counts: Sequence[int], batch: int, batches: int) -> list[int]:
    """Rows by number, so that each global batch has exactly as many comparisons: trl can't do with more or fewer.

    Args:
        counts: comparisons of each row.
        batch: comparisons of a global batch.
        batches: how many are wanted.

    Returns:
        The rows of the first batch, those of the second, ... Each row goes into the first batch that has room.
    """
    open_batches: list[list[int]] = []
    full: list[int] = []
    for row, count in enumerate(counts):
        room = (b for b in open_batches if sum(counts[r] for r in b) + count <= batch)
        members = next(room, None)
        if members is None:
            members = []
            open_batches.append(members)
        members.append(row)
        if sum(counts[r] for r in members) == batch:
            open_batches.remove(members)
            full += members
            batches -= 1
        if batches == 0:
            return full
    raise SystemExit(f"too few rows for the comparisons asked for: {batches} batches of {batch} lacking; lower --pairs")


def as_in_file(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows as a file must have them so that ``dpo train`` comes to them in the order given."""
    count = len(rows)
    ones = [1] * count
    plan = Plan(ones, ones, ones, seed=SEED, batch_size=count, epochs=1, max_steps=None, world_size=1, token_budget=1)
    places = dict(zip(plan[0].groups, rows, strict=True))
    return [places[place] for place in range(count)]


def comparisons_of(example: Example) -> list[dict[str, Any]]:
    """A row for each comparison of the example."""
    answers = example.answers
    return [
        {"prompt": example.prompt, "chosen": answers[pair.winner], "rejected": answers[pair.loser]}
        for pair in example.pairs
    ]


def separate(group: Group) -> list[Group]:
    """The group's comparisons, each a group of its own."""
    answers = group.answers
    return [
        replace(group, answers=(answers[pair.winner], answers[pair.loser]), pairs=(Pair(0, 1),), ranks=())
        for pair in group.pairs
    ]


def operations(model: FlopsModel, update: FlopsModel, groups: Sequence[Group]) -> Operations:
    """Necessary FLOPs of the groups, by the model's forward pass and its update."""
    return Operations(sum(map(model.forward, groups)), sum(map(update.forward, groups)))


def prepare(work: Work, pairs: int, batch: int, options: argparse.Namespace, folder: Path) -> Prepared:
    """Write a work's rows for everyone."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = readable(options.data / work.file, tokenizer, folder)
    taken = [rows[row] for row in fill_batches([len(group.pairs) for _, group in rows], batch, pairs // batch)]
    singles = [single for _, group in taken for single in separate(group)]
    several = any(len(group.answers) > 2 for _, group in taken)
    rankings = [{"prompt": ex.prompt, "completions": ex.answers, "ranks": ex.ranks} for ex, _ in taken]
    compared = [row for example, _ in taken for row in comparisons_of(example)]
    ids = [
        {"prompt_ids": one.prompt_ids, "chosen_ids": one.answers[0], "rejected_ids": one.answers[1]} for one in singles
    ]
    with torch.device("meta"):  # only the shapes matter
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(options.model))
    count = partial(operations, FlopsModel.of(model), FlopsModel.of(model, update=True))
    return Prepared(
        batch,
        pairs,
        write_rows(folder / "grouped.jsonl", as_in_file(rankings)) if several else None,
        write_rows(folder / "pairs.jsonl", as_in_file(compared)),
        write_rows(folder / "tokens.jsonl", [{name: array.tolist() for name, array in row.items()} for row in ids]),
        count([group for _, group in taken]),
        count(singles),
    )


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def run_dpo(rows: Path, batch: int, precision: str, options: argparse.Namespace) -> Measured:
    """``dpo train`` on the rows, its reference pass included."""
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch, "run")
        words = [
            *("train", f"model.path={options.model}", f"data.path={rows}", f"data.max_length={MAX_LENGTH}"),
            *("data.on_too_long=raise", f"loss.beta={BETA}", f"optim.lr={LR}", "optim.schedule=linear"),
            *("optim.warmup_ratio=0", f"seed={SEED}", f"train.batch_size={batch}", f"train.precision={precision}"),
            *("train.log_every=1", "tracker.mode=disabled", f"run_dir={run_dir}"),
        ]
        call([sys.executable, "-m", "dpo_cli", *words], Path(scratch), options.threads)
        record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    updates = [line for line in lines if "loss" in line]
    return Measured(
        record["reference"]["seconds"],
        [batch / line["pairs_per_second"] for line in updates],
        [line["loss"] for line in updates],
        record["final"]["memory/rss_gib"],
        record["versions"],
    )


def run_trl(rows: Path, settings: Mapping[str, Any], precision: str, options: argparse.Namespace) -> Measured:
    """trl's DPOTrainer on rows of token ids."""
    shared = {"learning_rate": LR, "lr_scheduler_type": "linear", "warmup_steps": 0, "max_grad_norm": 1.0, "beta": BETA}
    shared |= {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "weight_decay": 0.0}
    shared |= {"max_length": MAX_LENGTH, "bf16": precision == "bf16", "seed": SEED}
    with tempfile.TemporaryDirectory() as scratch:
        job, out = Path(scratch, "job.json"), Path(scratch, "out.json")
        said = {"model": str(options.model), "rows": str(rows), "folder": scratch, "arguments": {**shared, **settings}}
        job.write_text(json.dumps(said), encoding="utf-8")
        python = str(options.environment / "bin" / "python")
        call([python, str(WORKER), str(job), str(out)], job.parent, options.threads)
        return Measured(**json.loads(out.read_text(encoding="utf-8")))


def call(words: Sequence[str], folder: Path, threads: int) -> None:
    """Run a command in a folder that has its caches as well, without a network or a GPU, on so many threads."""
    quiet = {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
    places = {"DPO_CACHE": str(folder / "dpo"), "HF_HOME": str(folder / "hf")}
    environment = {**os.environ, **quiet, **places, "OMP_NUM_THREADS": str(threads)}
    ended = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{' '.join(words[:3])} ended with {ended.returncode}:\n{ended.stderr[-3000:]}")


def install_trl(folder: Path) -> None:
    """An environment of trl's own, unless it is there."""
    python = folder / "bin" / "python"
    name, wanted = TRL.split("==")
    query = [str(python), "-c", f"import importlib.metadata as m; print(m.version({name!r}))"]
    found = subprocess.run(query, capture_output=True, text=True).stdout.strip() if python.exists() else ""
    if found == wanted:
        return
    if found:
        raise SystemExit(f"--environment {folder} has {name} {found}, expected {wanted}: name another folder")
    print(f"installing {TRL} into {folder}", file=sys.stderr)
    venv.create(folder, with_pip=True)
    for package in (TORCH, TRL):  # torch first and alone, so that it is the build wanted
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", package], check=True)


def measure(name: str, prepared: Prepared, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everyone on one work at one precision, one after another, ``--repeats`` times; the first named is the measure."""
    batch = prepared.batch
    best = {**BEST, "gradient_accumulation_steps": batch}
    dpo, trl = partial(run_dpo, batch=batch), partial(run_trl, prepared.tokens)
    trainings: dict[str, Callable[..., Measured]] = {"dpo": partial(dpo, prepared.grouped or prepared.pairs)}
    if prepared.grouped is not None:
        trainings = {"dpo, answers grouped": trainings["dpo"], "dpo, separate pairs": partial(dpo, prepared.pairs)}
    trainings["trl, best settings"] = partial(trl, best)
    if options.as_shipped:
        trainings["trl, as shipped"] = partial(trl, {"per_device_train_batch_size": batch})
    torch.set_num_threads(options.threads)
    peaks = [peak_flops(torch.device("cpu"), precision)]
    runs: dict[str, list[Measured]] = {what: [] for what in trainings}
    for _ in range(options.repeats):
        for what, training in trainings.items():
            run = training(precision=precision, options=options)
            runs[what].append(run)
            peaks.append(peak_flops(torch.device("cpu"), precision))  # something else may disturb any one of them
            seconds = ", ".join("in both" if one is None else f"{one:.1f} s" for one in run.passes)
            said = f"reference, training, both: {seconds}; {run.rss_gib:.1f} GiB"
            print(f"{name}, {precision}, {what}: {said}", file=sys.stderr, flush=True)
    return summary(name, precision, prepared, max(peak or 0.0 for peak in peaks), runs)


def summary(
    name: str, precision: str, prepared: Prepared, peak: float, runs: Mapping[str, Sequence[Measured]]
) -> dict[str, Any]:
    """What is kept of one work at one precision: medians of the repeats, and all of them."""
    first = next(iter(runs.values()))[0]
    need, apart = prepared.necessary, prepared.separate
    rows = []
    for what, repeats in runs.items():
        reference, training, both = map(median, zip(*(run.passes for run in repeats), strict=True))
        row = {"what": what, "reference_seconds": reference, "training_seconds": training, "both_seconds": both}
        row["pairs_per_second"] = prepared.comparisons / both
        row["mfu_training"] = training and need.training / (training * peak)
        row["mfu_both"] = need.both / (both * peak)
        row["rss_gib"] = max(run.rss_gib for run in repeats)
        losses = [pair for run in repeats for pair in zip(run.losses, first.losses, strict=True)]
        row["loss_difference"] = float(np.max([abs(one - other) for one, other in losses]))
        rows.append({**row, "repeats": [asdict(run) for run in repeats]})
    block = {"work": name, "precision": precision, "comparisons": prepared.comparisons, "batch": prepared.batch}
    block |= {"peak_flops": peak, "necessary_flops": asdict(need), "separate_flops": asdict(apart), "rows": rows}
    return {**block, "flop_ratio": {"training": apart.training / need.training, "both": apart.both / need.both}}


def median(seconds: Sequence[float | None]) -> Any:
    """Of repeats; None where there was nothing to time."""
    return None if None in seconds else float(np.median(np.array(seconds, dtype=float)))


COLUMNS = {
    "reference pass (forward), s": ("reference_seconds", ".1f"),
    "training (forward, backward, AdamW), s": ("training_seconds", ".1f"),
    "both, s": ("both_seconds", ".1f"),
    "pairs/s, both": ("pairs_per_second", ".2f"),
    "mfu, training": ("mfu_training", ".2f"),
    "mfu, both": ("mfu_both", ".2f"),
    "peak memory, both, GiB": ("rss_gib", ".1f"),
    "largest difference of losses": ("loss_difference", ".1e"),
}
"""Heads, and what stands below them."""


def markdown(blocks: Sequence[Mapping[str, Any]]) -> str:
    """The table, and below it how the others compare with the first of each work."""
    lines = [["work", "what", "precision", *COLUMNS], ["---"] * 3 + ["---:"] * len(COLUMNS)]
    for block in blocks:
        for row in block["rows"]:
            cells = ["in both" if row[key] is None else format(row[key], digits) for key, digits in COLUMNS.values()]
            lines.append([block["work"], row["what"], block["precision"], *cells])
    table = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([*table, "", *(line for block in blocks for line in ratios(block))])


def ratios(block: Mapping[str, Any]) -> list[str]:
    """A line for each of the others: how many times the first one's seconds and memory it took."""
    first, *others = block["rows"]
    lines = []
    for row in others:
        passes = [name for name in ("reference", "training", "both") if row[f"{name}_seconds"] is not None]
        times = {name: row[f"{name}_seconds"] / first[f"{name}_seconds"] for name in passes}
        said = ", ".join(f"{name} {ratio:.2f}" for name, ratio in times.items())
        memory = row["rss_gib"] / first["rss_gib"]
        where = f"{block['work']}, {block['precision']}"
        lines.append(f"- {where}: {row['what']} over {first['what']}: seconds: {said}; peak memory {memory:.2f}.")
        for name, ratio in block["flop_ratio"].items():
            if ratio > 1.0 and name in times:
                got = f"{times[name] / ratio:.2f} of the FLOP ratio {ratio:.2f} of separate pairs over grouped answers"
                lines.append(f"  - {name}: {got}.")
    return lines


def complaints(blocks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where float32 losses are not the same."""
    return [
        f"{block['work']}, fp32: the losses of {row['what']} and {block['rows'][0]['what']} differ by up to "
        f"{row['loss_difference']:.1e}, expected {TOLERANCE:.0e} at most: they did not do the same work"
        for block in blocks
        for row in block["rows"]
        if block["precision"] == "fp32" and not row["loss_difference"] <= TOLERANCE
    ]


def machine(threads: int) -> dict[str, Any]:
    """What it was measured on."""
    return {"cpu": processor(), "cores": os.cpu_count(), "threads": threads}


def listed(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """An option's type: some of ``allowed``, with commas between."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in allowed]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r}: expected some of {','.join(allowed)}")
        return names

    return read


def read_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--data", type=Path, required=True, help="folder of the files that the works name")
    parser.add_argument("--work", type=listed([*WORKS]), default=["hh", "ranked"], help=",".join(WORKS))
    parser.add_argument("--precision", type=listed(["fp32", "bf16"]), default=["fp32", "bf16"])
    parser.add_argument("--pairs", type=int, default=48, help="comparisons of each work, in whole batches")
    parser.add_argument("--batch", type=int, help="comparisons per update; the default is 8, for ranked 12")
    parser.add_argument("--repeats", type=int, default=1, help="the table has medians")
    parser.add_argument("--as-shipped", action="store_true", help="trl with its defaults as well: slow, much memory")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each process")
    parser.add_argument("--environment", type=Path, default=cache / "dpo-bench" / TRL.replace("==", "-"))
    parser.add_argument("--out", type=Path, default=Path("bench_peers.json"), help="the table goes beside it, as .md")
    options = parser.parse_args(words)
    for folder in ("model", "data"):
        if not getattr(options, folder).is_dir():
            parser.error(f"--{folder} {getattr(options, folder)}: expected a folder")
    for name in options.work:
        batch = options.batch or WORKS[name].batch
        if options.pairs < batch or options.pairs % batch:
            parser.error(f"--pairs {options.pairs}: expected whole batches of {batch} for {name}; see --batch")
    for place in ("model", "data", "environment", "out"):
        setattr(options, place, getattr(options, place).absolute())
    return options


def main(words: Sequence[str] | None = None) -> None:
    quieten()
    options = read_options(words)
    install_trl(options.environment)
    settings = {name: str(value) for name, value in vars(options).items()}
    date = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    blocks: list[dict[str, Any]] = []
    for name in options.work:
        with tempfile.TemporaryDirectory() as folder:
            prepared = prepare(WORKS[name], options.pairs, options.batch or WORKS[name].batch, options, Path(folder))
            for precision in options.precision:
                blocks.append(measure(name, prepared, precision, options))
                said = {"date": date, "machine": machine(options.threads), "settings": settings, "results": blocks}
                options.out.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    table = markdown(blocks)
    options.out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    print(table)
    if wrong := complaints(blocks):
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
