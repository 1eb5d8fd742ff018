#!/usr/bin/env python3
"""Make the measured tables of docs/dpo.md: train the quickstart once per setting, and write down what came of it.

    python scripts/study_quickstart.py

Every setting is a run of `dpo train +experiment=quickstart` in runs/study, half a minute to some minutes on two CPU
cores; all share one reference pass. Runs that are there already are not made again: remove runs/study to begin anew.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENT = REPOSITORY / "docs" / "dpo.md"
RUNS = REPOSITORY / "runs" / "study"
ALWAYS = ["+experiment=quickstart", "tracker.mode=disabled", "train.log_every=16"]
RECIPE = ""
BEFORE = "before"
"""In the place of overrides: the model before training."""


@dataclass(frozen=True)
class Table:
    """What a run is called in its first column, the other columns, and for each row the overrides of its run."""

    heading: str
    columns: tuple[str, ...]
    rows: Mapping[str, str]


_SAMPLES = ("true reward", "KL", "right words")
_HELD_OUT = ("held-out loss", "accuracy", "margin")
_LOGPS = ("log π(chosen)", "log π(rejected)")

TABLES = {
    "seeds": Table(
        "`seed`",
        (*_HELD_OUT, *_SAMPLES),
        {"before training": BEFORE, "0 (the recipe)": RECIPE, "1": "seed=1", "2": "seed=2"},
    ),
    "beta": Table(
        "`loss.beta`",
        (*_HELD_OUT, "h", *_SAMPLES),
        {
            "0.01": "loss.beta=0.01",
            "0.1": "loss.beta=0.1",
            "0.3": "loss.beta=0.3",
            "1 (the recipe)": RECIPE,
            "3": "loss.beta=3",
            "10": "loss.beta=10",
        },
    ),
    "lr": Table(
        "`optim.lr`",
        (*_HELD_OUT, *_SAMPLES),
        {
            "3e-5": "optim.lr=3e-5",
            "3e-4 (the recipe)": RECIPE,
            "1e-3": "optim.lr=1e-3",
            "3e-3": "optim.lr=3e-3",
        },
    ),
    "batch": Table(
        "`train.batch_size`",
        ("updates", *_HELD_OUT, *_SAMPLES),
        {"16": "train.batch_size=16", "64 (the recipe)": RECIPE, "256": "train.batch_size=256"},
    ),
    "epochs": Table(
        "pairs x epochs",
        ("updates", "training loss", *_HELD_OUT, *_SAMPLES),
        {
            "8,192 x 1 (the recipe)": RECIPE,
            "8,192 x 3": "train.epochs=3",
            "512 x 16": "data.limit=512 train.epochs=16",
        },
    ),
    "over-optimisation": Table(
        "updates",
        (*_HELD_OUT, *_LOGPS, *_SAMPLES),
        {
            "0": BEFORE,
            "16": "loss.beta=0.1 train.max_steps=16",
            "32": "loss.beta=0.1 train.max_steps=32",
            "64": "loss.beta=0.1 train.max_steps=64",
            "128 (one epoch)": "loss.beta=0.1",
            "512 (four epochs)": "loss.beta=0.1 train.epochs=4",
        },
    ),
    "displacement": Table(
        "setting",
        ("accuracy", "margin", *_LOGPS, *_SAMPLES, "too long"),
        {
            "before training": BEFORE,
            "`loss.beta=0.1`": "loss.beta=0.1",
            "and `loss.label_smoothing=0.1`": "loss.beta=0.1 loss.label_smoothing=0.1",
            "and `loss.sft_weight=0.1`": "loss.beta=0.1 loss.sft_weight=0.1",
            "and `loss.sft_weight=1`": "loss.beta=0.1 loss.sft_weight=1",
            "and `optim.lr=1e-4`": "loss.beta=0.1 optim.lr=1e-4",
            "and `train.max_steps=32`": "loss.beta=0.1 train.max_steps=32",
            "`loss.beta=1` (the recipe)": RECIPE,
        },
    ),
}


@dataclass(frozen=True)
class Outcome:
    """A model that was measured."""

    metrics: Mapping[str, float]
    samples: list[dict[str, Any]]
    beta: float
    updates: int


def number(name: str, digits: int = 3) -> Callable[[Outcome], str]:
    """A column that shows a metric; ± its standard error where that is a metric too."""

    def show(outcome: Outcome) -> str:
        value, error = outcome.metrics.get(name), outcome.metrics.get(f"{name}_error")
        if value is None:
            return "0"  # only the KL of the reference to itself isn't measured
        return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")

    return show


def log_ratio_gap(outcome: Outcome) -> str:
    return f"{outcome.metrics['eval/rewards/margins'] / outcome.beta:.1f}"


def true_reward(outcome: Outcome) -> str:
    rewards = [sample["true_reward"] for sample in outcome.samples]
    return f"{statistics.mean(rewards):.3f} ± {statistics.stdev(rewards) / math.sqrt(len(rewards)):.3f}"


def share(holds: Callable[[list[str], list[str]], bool]) -> Callable[[Outcome], str]:
    """A column: the share of sampled answers of which something holds, told the answer's and the prompt's words."""

    def show(outcome: Outcome) -> str:
        found = [holds(s["answer"].split(), s["prompt"].partition(": ")[2].split()) for s in outcome.samples]
        return f"{statistics.mean(found):.2f}"

    return show


COLUMNS: dict[str, Callable[[Outcome], str]] = {
    "updates": lambda outcome: str(outcome.updates),
    "training loss": number("loss"),
    "held-out loss": number("eval/loss"),
    "accuracy": number("eval/rewards/accuracies"),
    "margin": number("eval/rewards/margins", 2),
    "h": log_ratio_gap,
    "log π(chosen)": number("eval/logps/chosen", 1),
    "log π(rejected)": number("eval/logps/rejected", 1),
    "true reward": true_reward,
    "KL": number("samples/kl", 1),
    "right words": share(lambda answer, words: sorted(answer) == sorted(words)),
    "too long": share(lambda answer, words: len(answer) > len(words) + 2),
}


def folder(overrides: str) -> Path:
    return RUNS / (re.sub("[ =]", "-", overrides) or "recipe")


def record(overrides: str) -> dict[str, Any]:
    """`run.json` of a setting's run; empty where there is none."""
    file = folder(overrides) / "run.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def train(overrides: str) -> None:
    """Make the run of these overrides, unless it is there; one that was cut off begins anew."""
    if record(overrides).get("status") == "done":
        return
    print(f"== {overrides or 'the recipe'}", flush=True)
    words = [*ALWAYS, *overrides.split(), f"run_dir={folder(overrides)}", "resume=auto"]
    words += [f"reference.cache_dir={RUNS / 'cache'}"]
    subprocess.run([sys.executable, "-m", "dpo_cli", "train", *words], cwd=REPOSITORY, check=True)


def read(overrides: str) -> Outcome:
    """What a run measured at its end; of the model before training, what the recipe's run measured at its start."""
    before = overrides == BEFORE
    run = RECIPE if before else overrides
    lines = [json.loads(line) for line in (folder(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    samples = [json.loads(line) for line in (folder(run) / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    updates = 0 if before else record(run)["updates"]
    metrics = {name: value for line in lines if line["step"] <= updates for name, value in line.items()}
    beta = next((float(word.partition("=")[2]) for word in run.split() if word.startswith("loss.beta=")), 1.0)
    return Outcome(metrics, [sample for sample in samples if sample["step"] == updates], beta, updates)


def markdown(table: Table) -> str:
    heads = [table.heading, *table.columns]
    lines = [heads, ["---"] + ["---:"] * len(table.columns)]
    for label, overrides in table.rows.items():
        outcome = read(overrides)
        lines.append([label, *(COLUMNS[column](outcome) for column in table.columns)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def when(records: list[dict[str, Any]]) -> str:
    days = sorted({run["started"][:10] for run in records})
    versions = records[0]["versions"]
    return (
        f"{len(records)} runs, {' to '.join(dict.fromkeys((days[0], days[-1])))}, {os.cpu_count()} CPU cores, "
        f"torch {versions['torch']}, transformers {versions['transformers']}, DeepSpeed {versions['deepspeed']}."
    )


def rewrite(text: str, blocks: Mapping[str, str]) -> str:
    """The document with what stands between each block's markers replaced."""
    for name, block in blocks.items():
        marked = re.compile(rf"(<!-- study: {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text, found = marked.subn(lambda match, block=block: match[1] + block + match[2], text)
        if found != 1:
            raise SystemExit(f"{DOCUMENT}: expected one place for {name}, found {found}")
    return text


def settings() -> list[str]:
    """Every run's overrides, once."""
    return list(dict.fromkeys(words for table in TABLES.values() for words in table.rows.values() if words != BEFORE))


def main() -> None:
    for overrides in settings():
        train(overrides)
    blocks = {name: markdown(table) for name, table in TABLES.items()}
    blocks["when"] = when([record(overrides) for overrides in settings()])
    DOCUMENT.write_text(rewrite(DOCUMENT.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    print(f"{DOCUMENT}: {len(blocks)} tables written")


if __name__ == "__main__":
    main()
