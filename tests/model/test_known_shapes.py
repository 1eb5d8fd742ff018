"""The shapes of models that ship: parameter counts as published, and no network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_cli.compose import config_folder
from dpo_cli.errors import DpoError
from dpo_cli.model.activations import outline
from dpo_cli.model.flops import count_weights
from dpo_cli.model.known_shapes import model_config

SHAPES = config_folder() / "model" / "shapes"
# Of the published weights, as the hub counts them in their safetensors files.
PUBLISHED = {
    "gemma2_9b": 9_241_705_984,
    "llama31_70b": 70_553_706_496,
    "llama31_8b": 8_030_261_248,
    "llama3_8b": 8_030_261_248,
    "mistral_7b": 7_241_732_096,
    "mistral_7b_v02": 7_241_732_096,
    "qwen25_0_5b": 494_032_768,
    "qwen25_1_5b": 1_543_714_304,
    "qwen25_7b": 7_615_616_512,
    "smollm2_135m": 134_515_008,
    "smollm2_1_7b": 1_711_376_384,
    "smollm2_360m": 361_821_120,
    "smollm3_3b": 3_075_098_624,
    # Llama 3.1's with 8 more rows of embeddings and head.
    "tulu3_70b": 70_553_706_496 + 2 * 8 * 8192,
    "tulu3_8b": 8_030_261_248 + 2 * 8 * 4096,
}


def test_every_shape_is_checked() -> None:
    assert {file.stem for file in SHAPES.iterdir()} == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_the_published_number_of_weights(name: str) -> None:
    hub_id = json.loads((SHAPES / f"{name}.json").read_text())["names"][0]
    model, _ = outline(model_config(hub_id, SHAPES), None, "bf16")
    assert count_weights(model) == PUBLISHED[name]


def test_a_name_stands_for_one_shape() -> None:
    names = [name for file in SHAPES.iterdir() for name in json.loads(file.read_text())["names"]]
    assert len(names) == len(set(names))


def test_a_folders_own_configuration_counts(tmp_path: Path) -> None:
    settings = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = model_config(str(tmp_path), SHAPES)
    assert (config.hidden_size, config.num_hidden_layers) == (64, 3)


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    with pytest.raises(DpoError, match=r"nobody/nothing: its shape is not known .* Qwen/Qwen2\.5-0\.5B"):
        model_config("nobody/nothing", SHAPES)
    with pytest.raises(DpoError, match=r"holds no config\.json"):
        model_config(str(tmp_path), SHAPES)
