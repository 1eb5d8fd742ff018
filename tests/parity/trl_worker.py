"""Trains with trl's trainers; a process of its own, because importing trl warns and changes global state.

    python trl_worker.py JOBS.json OUT.json

Each job names a trainer, a model folder, rows in the order in which they are trained on, a template (or null: the
folder's own) and arguments of the trainer's configuration. Written out: for each job the metrics of each update, and
the token ids of each row.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

TRAINERS = {
    "DPO": (DPOTrainer, DPOConfig),
    "KTO": (KTOTrainer, KTOConfig),
    "CPO": (CPOTrainer, CPOConfig),
    "ORPO": (ORPOTrainer, ORPOConfig),
}


def train(job: dict[str, Any], folder: str) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    if job["chat_template"] is not None:
        tokenizer.chat_template = job["chat_template"]
    rows = [json.loads(line) for line in Path(job["rows"]).read_text(encoding="utf-8").splitlines()]
    trainer_class, config_class = TRAINERS[job["trainer"]]
    trainer = trainer_class(
        model=job["model"],
        args=config_class(
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
    tokens = [row_tokens(trainer.train_dataset[index]) for index in range(len(rows))]
    updates = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {"updates": updates, "tokens": tokens}


def row_tokens(row: dict[str, Any]) -> dict[str, Any]:
    """``prompt`` and ``answers`` of a row as a trainer holds it."""
    if "prompt_input_ids" in row:  # CPO and ORPO, whose sequences begin with the prompt
        prompt, sequences = row["prompt_input_ids"], (row["chosen_input_ids"], row["rejected_input_ids"])
        assert all(sequence[: len(prompt)] == prompt for sequence in sequences)
        return {"prompt": prompt, "answers": [sequence[len(prompt) :] for sequence in sequences]}
    names = ("completion_ids",) if "completion_ids" in row else ("chosen_ids", "rejected_ids")
    return {"prompt": row["prompt_ids"], "answers": [row[name] for name in names]}


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        Path(sys.argv[2]).write_text(json.dumps([train(job, folder) for job in jobs]), encoding="utf-8")


if __name__ == "__main__":
    main()
