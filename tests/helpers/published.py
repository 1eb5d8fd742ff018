"""A run's folder as ``dpo train`` leaves it, made by hand, with a model in it that need not be good."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

HASH = "0123456789abcdef" * 4

SETTINGS: dict[str, Any] = {
    "model": {
        "path": "/home/somebody/models/base",
        "revision": None,
        "chat_template": None,
        "adapter": {"name": "none"},
    },
    "data": {
        "path": "https://somebody:open-sesame@data.example/pairs.jsonl?signature=abc",
        "mix": None,
        "eval": "/home/somebody/held-out.jsonl",
        "system": "/no_think",
        "max_length": 128,
        "cache_dir": "/home/somebody/cache",
    },
    "loss": {"name": "ipo", "beta": 0.2, "normalise": "mean", "label_smoothing": 0.0, "wpo": False},
    "reference": {"mode": "cached", "path": None, "cache_dir": None},
    "optim": {"name": "adamw", "lr": 5e-7, "schedule": "linear"},
    "train": {"epochs": 1, "max_steps": None, "batch_size": 64},
    "seed": 7,
    "run_dir": "/home/somebody/runs/mine",
    "resume": "none",
}
ABOUT: dict[str, Any] = {
    "model": "org/base",
    "base": "org/base",
    "base_model": "org/base",
    "quantization": None,
    "adapter": None,
    "adapter_kind": None,
    "data": ["org/pairs", "more.jsonl"],
    "datasets": ["org/pairs"],
    "held_out": 0.05,
    "license": {"license": "apache-2.0"},
}
RECORD: dict[str, Any] = {
    "status": "done",
    "versions": {"dpo": "0.1.0", "torch": "2.13.0"},
    "code": HASH[::-1],
    "data": {
        "train": {
            "rows": {"read": 1234, "bad": 3, "without_preference": 5, "duplicates": 2, "first_bad": ["secret row"]},
            "tokenized": {"groups": 1226, "answers_truncated": 17, "dropped_too_long": 1, "longest": 99},
            "prompts_held_out": 4,
            "groups": 1221,
        },
        "held_out": {"groups": 64},
        "fingerprint": HASH,
    },
    "precision": "bf16",
    "about": ABOUT,
    "reference": {"identity": {"files": {"model.safetensors": HASH}}, "store": "/home/somebody/cache/x"},
    "updates": 19,
    "final": {"eval/loss": 0.61, "eval/rewards/accuracies": 0.75, "loss": 0.5, "samples/kl": None},
}


def make_run(folder: Path, card: str, **files: bytes) -> Path:
    """A run's folder: a model folder of arbitrary bytes, ``files`` beside them, and what else a run leaves.

    Args:
        folder: to be made.
        card: README.md.
        files: of ``final/``, instead of a full model's.
    """
    final = folder / "final"
    final.mkdir(parents=True)
    record = {**RECORD, "card": hashlib.sha256(card.encode()).hexdigest()}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    (folder / "metrics.jsonl").write_text("{}\n")
    (final / "README.md").write_text(card)
    model = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"\x08" + bytes(range(256)) * 9}
    for name, content in (files or {**model, "tokenizer.json": b"{}"}).items():
        (final / name).write_bytes(content)
    return folder
