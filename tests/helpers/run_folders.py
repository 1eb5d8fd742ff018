"""Run folders as training leaves them, made up: for what reads them back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dpo_cli.run_folder import this_process

BETAS = (0.1, 0.3, 1.0, 3.0)


def config(**changes: Any) -> dict[str, Any]:
    """Some of a resolved configuration; ``loss__beta=1`` changes a key."""
    values: dict[str, Any] = {
        "model": {"path": "a-model", "revision": None, "adapter": {"name": "none"}},
        "data": {"path": "rows.jsonl", "eval": "held-out.jsonl", "max_length": 128},
        "loss": {"name": "dpo", "beta": 0.1, "label_smoothing": 0.0},
        "reference": {"mode": "cached", "path": None},
        "optim": {"name": "adamw", "lr": 3e-4, "betas": [0.9, 0.95]},
        "train": {"epochs": 1, "max_steps": None, "batch_size": 64},
        "tracker": {"name": "wandb", "run_name": None},
        "seed": 0,
        "run_dir": "somewhere",
        "resume": "none",
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values[section] = {**values[section], name: value}
        else:
            values[section] = value
    return values


def record(status: str = "done", **changes: Any) -> dict[str, Any]:
    """``run.json``"""
    counts = {"read": 8200, "bad": 0, "without_preference": 0, "duplicates": 3, "first_bad": []}
    tokenized = {"groups": 8192, "prompts_truncated": 0, "answers_truncated": 0, "dropped_too_long": 0, "longest": 99}
    side = {"rows": counts, "tokenized": tokenized, "prompts_held_out": 0, "groups": 8192}
    return {
        "status": status,
        "started": "2030-01-02T03:04:05+0000",
        "starts": [{"at": "2030-01-02T03:04:05+0000", "update": 0, "after": None}],
        "process": this_process(),
        "error": None,
        "versions": {"dpo": "0.1.0", "python": "3.12.0", "torch": "2.13.0"},
        "code": "c0de" * 16,
        "data": {"train": side, "held_out": {"groups": 512}, "fingerprint": "f00d" * 16},
        "precision": "fp32",
        "attention": "groups through matrix products (tokens differ from plain sequences by at most 2e-06 nats)",
        "reference": {"identity": {}, "store": "store", "tokens_computed": 1234, "tokens_read": 0, "seconds": 1.0},
        "zero_margin": {"gap": 0.0, "noise": 1e-7},
        **changes,
    }


def make_run(
    folder: Path,
    *,
    steps: int = 40,
    seed: int = 0,
    beta: float = 0.1,
    loss: str = "dpo",
    every: int | None = None,
    samples: int = 32,
    settings: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A run's folder with metrics of ``steps`` updates, evaluated ``every`` so many; ``changes`` are of the record.

    Nothing of it was trained: the curves only look as if it had been.
    """
    noise = np.random.default_rng([seed, int(beta * 1000), len(loss)])
    every = every or max(1, steps // 4)
    folder.mkdir(parents=True)
    told = config(loss__beta=beta, loss__name=loss, seed=seed, **(settings or {}))
    (folder / "config.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    done = np.arange(steps + 1) / steps
    learnt = 1 - np.exp(-3 * done / (1 + beta))
    curves = {
        "loss": 0.693 - 0.5 * learnt + 0.03 * noise.standard_normal(steps + 1),
        "rewards/chosen": -0.5 * learnt,
        "rewards/rejected": -2.5 * learnt,
        "rewards/accuracies": 0.5 + 0.45 * learnt + 0.03 * noise.standard_normal(steps + 1),
        "rewards/margins": 2.0 * learnt + 0.1 * noise.standard_normal(steps + 1),
        "logps/chosen": -20 - 0.5 * learnt + noise.standard_normal(steps + 1),
        "logps/rejected": -21 - 2.5 * learnt + noise.standard_normal(steps + 1),
    }
    speed = {"pairs_per_second": 60 + noise.standard_normal(steps + 1), "tokens_per_second": np.full(steps + 1, 3000.0)}
    lines: list[dict[str, Any]] = []
    sampled: list[dict[str, Any]] = []
    for step in range(steps + 1):
        if step:
            now = {name: float(values[step]) for name, values in (curves | speed).items()}
            rest = {"grad_norm": 1 + float(noise.random()), "lr": 3e-4 * (1 - step / steps), "epoch": step / steps}
            lines.append({"step": step, **now, **rest, "mfu": 0.2, "memory/rss_gib": 1.5 + 0.1 * step / steps})
        if step % every == 0 or step == steps:
            held = {f"eval/{name}": float(values[step]) for name, values in curves.items()}
            lines.append({"step": step, **held})
        if samples and step in (0, steps):
            kl = 0.8 * learnt[step] / beta**0.5
            reward = 0.64 + 0.25 * np.tanh(1.5 * kl) - 0.02 * kl**2 + 0.02 * noise.standard_normal()
            drift = {"samples/kl": float(kl), "samples/kl_error": 0.05} if step else {}
            rewards = np.clip(reward + 0.1 * noise.standard_normal(samples), 0, 1)
            lines.append({"step": step, "samples/length": 6.1, "samples/true_reward": float(rewards.mean()), **drift})
            sampled += [
                {
                    "step": step,
                    "prompt": f"Sort {n}: pear fig",
                    "answer": f"fig {'pear ' * (n % 4)}",
                    "true_reward": float(x),
                }
                for n, x in enumerate(rewards)
            ]
    write_lines(folder / "metrics.jsonl", lines)
    if samples:
        write_lines(folder / "samples.jsonl", sampled)
    final: dict[str, float] = {}
    for line in lines:
        final.update({name: value for name, value in line.items() if name != "step"})
    (folder / "final").mkdir()
    told_record = record(
        **{"planned": steps, "updates": steps, "final": final, "seconds": 31.5, "exit_code": 0, **changes}
    )
    (folder / "run.json").write_text(json.dumps(told_record), encoding="utf-8")
    return folder


def make_sweep(folder: Path, runs: int, *, seeds: int = 1, steps: int = 40, **options: Any) -> Path:
    """A folder of runs over beta, ``seeds`` of each."""
    for number in range(runs):
        beta = round(0.05 * 1.12 ** (number // seeds), 4) if runs > 12 else BETAS[number // seeds % len(BETAS)]
        make_run(
            folder / f"loss.beta={beta},seed={number % seeds}", steps=steps, beta=beta, seed=number % seeds, **options
        )
    return folder


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
