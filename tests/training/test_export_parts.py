"""A model that is written in several files, layer by layer, is the model that transformers reads."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from helpers import tokenizers
from helpers.families import FAMILIES, MIXTURES, build
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dpo_cli.errors import StorageError
from dpo_cli.model.attention import GROUP_ATTENTION
from dpo_cli.training import export


def test_a_rehearsal_finds_what_can_not_be_saved_and_leaves_nothing(tmp_path: Path) -> None:
    model = build((FAMILIES | MIXTURES)["llama"](), GROUP_ATTENTION, torch.float32)
    model.config.attention_dropout = 0.0
    export.rehearse(tmp_path / "r", model, tokenizers.quickstart(), dropout={"attention_dropout": 0.1}, ends=[1])
    assert (list(tmp_path.iterdir()), model.config.attention_dropout) == ([], 0.0)
    model.generation_config.num_beams, model.generation_config.num_return_sequences = 1, 9
    with pytest.raises(ValueError, match="num_return_sequences"):
        export.rehearse(tmp_path / "r", model, tokenizers.quickstart(), dropout={}, ends=[1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["llama", *MIXTURES])
def test_in_parts_it_is_the_same_model(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where experts have other names and cuts on disk than in memory."""
    model = build((FAMILIES | MIXTURES)[family](), GROUP_ATTENTION, torch.float32)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for folder, size in ((tmp_path / "whole", 10**9), (tmp_path / "parts", 1)):
        folder.mkdir()
        monkeypatch.setattr(export, "_PART", size)
        export.write_model(folder, model, tokenizers.quickstart(), weights.items(), dropout={}, card="", ends=[])
    transformers_own = tmp_path / "own"
    model.save_pretrained(transformers_own)
    own = load_file(transformers_own / "model.safetensors")
    assert [file.name for file in (tmp_path / "whole").glob("*.safetensors*")] == ["model.safetensors"]
    files = sorted(file.name for file in (tmp_path / "parts").glob("*.safetensors"))
    assert files == [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    assert len(files) > model.config.num_hidden_layers  # a layer each, embeddings, norm and head
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == own.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in own.values())
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert whole.keys() == own.keys()
    assert all(torch.equal(whole[name], tensor) for name, tensor in own.items())
    read_back, found = AutoModelForCausalLM.from_pretrained(
        tmp_path / "parts", dtype=torch.float32, output_loading_info=True
    )
    assert not found["missing_keys"]
    for name, parameter in read_back.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_a_file_that_grows_too_large_is_no_bug(tmp_path: Path) -> None:
    """``tokenizers`` says no more of it, nor of a full disk, than Exception."""
    model = build(FAMILIES["llama"](), GROUP_ATTENTION, torch.float32)
    weights = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StorageError, match=r"final could not be written \(File too large"):
            export.export(
                tmp_path / "final", model, tokenizers.quickstart(), weights, dropout={}, card="", ends=[], first=True
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
