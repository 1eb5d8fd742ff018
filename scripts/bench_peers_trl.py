"""Trains with trl's DPOTrainer on rows of token ids, and measures it: the part of bench_peers.py that runs in trl's own
environment.

    python bench_peers_trl.py JOB.json OUT.json

A job names a model folder, a file of rows in the order in which they are trained on, a folder for what trl writes, and
arguments of DPOConfig. Written out: seconds of the reference pass (null where it is in the loop) and of each update,
the loss of each update, peak memory, versions.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


class Measured(DPOTrainer):
    """trl's trainer on rows that are tokens already, so that all who are measured train on the same tokens."""

    reference_seconds: float | None = None

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, *arguments: Any, **options: Any) -> Dataset:
        began = time.perf_counter()
        dataset = super()._precompute_ref_logps(*arguments, **options)
        self.reference_seconds = time.perf_counter() - began
        return dataset


class Clock(TrainerCallback):
    """Seconds of each update: forward and backward passes, clipping, optimizer."""

    def __init__(self) -> None:
        self.updates: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.updates.append(time.perf_counter() - self._began)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Train as the job says; what bench_peers.py is told of it."""
    rows = [json.loads(line) for line in Path(job["rows"]).read_text(encoding="utf-8").splitlines()]
    clock = Clock()
    trainer = Measured(
        model=job["model"],
        args=DPOConfig(
            output_dir=job["folder"],
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **job["arguments"],
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[clock],
    )
    trainer.train()
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return {
        "reference": trainer.reference_seconds,
        "updates": clock.updates,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30,
        "versions": {name: version(name) for name in ("trl", "torch", "transformers", "accelerate", "datasets")},
    }


if __name__ == "__main__":
    outcome = measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(outcome), encoding="utf-8")
