"""Trains with trl's DPOTrainer; a process of its own, because importing trl warns and changes global state.

    python trl_worker.py JOBS.json OUT.json

Each job names a model folder, rows in the order in which they are trained on, a template (or null: the folder's own)
and DPOConfig arguments. Written out: for each job the metrics of each update, and the token ids of each row.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer


def train(job: dict[str, Any], folder: str) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    if job["chat_template"] is not None:
        tokenizer.chat_template = job["chat_template"]
    rows = [json.loads(line) for line in Path(job["rows"]).read_text(encoding="utf-8").splitlines()]
    trainer = DPOTrainer(
        model=job["model"],
        args=DPOConfig(
            output_dir=folder,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_length=None,
            model_init_kwargs={"dtype": "float32"},
            **job["arguments"],
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    tokens = [
        {name: trainer.train_dataset[index][f"{name}_ids"] for name in ("prompt", "chosen", "rejected")}
        for index in range(len(rows))
    ]
    updates = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {"updates": updates, "tokens": tokens}


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        Path(sys.argv[2]).write_text(json.dumps([train(job, folder) for job in jobs]), encoding="utf-8")


if __name__ == "__main__":
    main()
