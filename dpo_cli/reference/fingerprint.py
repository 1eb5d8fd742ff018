"""What a reference's numbers depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.utils import cached_file

from dpo_cli.file_hash import file_hash
from dpo_cli.model.files import ModelFiles, adapter_files


def reference_identity(
    model: ModelFiles, *, precision: str, groups: bool, vocabulary: int, cache: Path
) -> dict[str, Any]:
    """The identity of a reference model for the store.

    Args:
        model: its files.
        precision: it is scored in.
        groups: the attention path.
        vocabulary: the tokenizer's length; rows that the embedding lacks for it are made by a fixed rule.
        cache: folder where hashes of weight files are remembered.
    """
    rows = (
        AutoConfig.from_pretrained(model.path, revision=model.revision, trust_remote_code=False)
        .get_text_config()
        .vocab_size
    )
    quantised = {} if model.quantization is None else {"quantization": model.quantization}
    return {
        "files": reference_files(model, cache),
        "precision": precision,
        "attention": "groups" if groups else "plain",
        "added_rows": max(0, vocabulary - rows),
        **quantised,
    }


def reference_files(model: ModelFiles, cache: Path) -> dict[str, str]:
    """SHA-256 of a model's configuration and weight files, its adapter's among them, by name.

    Args:
        model: its files.
        cache: folder where hashes of weight files are remembered.
    """
    path, revision = model.path, model.revision
    files = [model_file(path, revision, "config.json"), *weight_files(path, revision)]
    if model.adapter is not None:
        files += adapter_files(model.adapter, model.adapter_revision)
    return {file.name: file_hash(file, cache) for file in files}


def weight_files(path: str, revision: str | None) -> list[Path]:
    """A model's safetensors files, in the folder or in the hub's cache."""
    if Path(path).is_dir():
        return sorted(Path(path).glob("*.safetensors"))
    index = cached_file(
        path, "model.safetensors.index.json", revision=revision, _raise_exceptions_for_missing_entries=False
    )
    if index is None:
        return [model_file(path, revision, "model.safetensors")]
    names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    return [model_file(path, revision, name) for name in names]


def model_file(path: str, revision: str | None, name: str) -> Path:
    """One file of a model, where it lies on this machine."""
    return Path(path, name) if Path(path).is_dir() else Path(str(cached_file(path, name, revision=revision)))
