"""What changes a reference's identity, and what does not."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from dpo_cli import file_hash
from dpo_cli.model.files import ModelFiles
from dpo_cli.reference.fingerprint import reference_identity


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 100}')
    (folder / "model-1.safetensors").write_bytes(bytes(range(256)) * 10)
    (folder / "model-2.safetensors").write_bytes(b"second")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def identity(model: Path, **options):
    settings = {"precision": "fp32", "groups": True, "vocabulary": 100, "cache": model.parent / "cache"}
    return reference_identity(ModelFiles(str(model)), **(settings | options))


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_identity_is_the_hashes_of_weights_and_config(model: Path) -> None:
    def sha256(name: str) -> str:
        return hashlib.sha256((model / name).read_bytes()).hexdigest()

    names = ("config.json", "model-1.safetensors", "model-2.safetensors")
    assert identity(model) == {
        "files": {name: sha256(name) for name in names},
        "precision": "fp32",
        "attention": "groups",
        "added_rows": 0,
    }
    assert json.loads(json.dumps(identity(model))) == identity(model)


CHANGES = {
    "a byte of the first shard": lambda model: flip(model / "model-1.safetensors"),
    "a byte of the second shard": lambda model: flip(model / "model-2.safetensors"),
    "config.json": lambda model: (model / "config.json").write_text('{"model_type": "llama", "vocab_size": 101}'),
    "one shard more": lambda model: (model / "model-3.safetensors").write_bytes(b""),
    "one shard less": lambda model: (model / "model-2.safetensors").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_weights_are_another_identity(model: Path, change: str) -> None:
    before = identity(model)
    CHANGES[change](model)
    assert identity(model) != before


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"groups": False}, {"vocabulary": 101}])
def test_other_arithmetic_is_another_identity(model: Path, options) -> None:
    assert identity(model, **options) != identity(model)


def test_rows_added_for_new_tokens_are_counted(model: Path) -> None:
    assert [identity(model, vocabulary=n)["added_rows"] for n in (99, 100, 103)] == [0, 0, 3]


def test_what_the_numbers_do_not_depend_on_is_not_in_it(model: Path, tmp_path: Path) -> None:
    before = identity(model)
    assert identity(model) == before
    (model / "tokenizer.json").write_text('{"a": 1}')
    (model / "README.md").write_text("a model")
    os.utime(model / "model-1.safetensors", (1, 1))
    assert identity(model) == before
    # Nor on a tokenizer with fewer tokens than the embedding has rows, nor on where the model lies.
    assert identity(model, vocabulary=90) == before
    assert identity(model.rename(tmp_path / "moved")) == before


def test_a_file_is_read_once_as_long_as_it_is_the_same(model: Path, monkeypatch) -> None:
    reads = []
    digest = hashlib.file_digest

    def counting(stream, name):
        reads.append(Path(stream.name).name)
        return digest(stream, name)

    monkeypatch.setattr(file_hash.hashlib, "file_digest", counting)
    for _ in range(3):
        identity(model)
    assert sorted(reads) == ["config.json", "model-1.safetensors", "model-2.safetensors"]
    flip(model / "model-2.safetensors")
    identity(model)
    assert reads[3:] == ["model-2.safetensors"]
