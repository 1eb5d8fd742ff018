"""The model card: what the hub reads of it, what people do, and that nothing is made up."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.published import ABOUT, HASH, RECORD, SETTINGS
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from dpo_cli.commands.card import license_of, model_card, plain_card
from dpo_cli.commands.public import hub_id, public_name, public_settings, public_yaml
from dpo_cli.model.files import ModelFiles

ADAPTER = {"adapter": "LoRA of rank 4", "adapter_kind": "qlora", "quantization": "nf4"}


def card(about: dict[str, Any] | None = None, settings: dict[str, Any] | None = None, **options: Any) -> str:
    return model_card({**SETTINGS, **(settings or {})}, {**RECORD, "about": {**ABOUT, **(about or {})}}, **options)


def metadata(text: str) -> dict[str, Any]:
    """As the hub reads it; huggingface_hub checks it on the way."""
    found = ModelCard(text).data.to_dict()
    assert found == yaml.safe_load(text.split("---\n")[1])
    return found


def test_metadata_of_a_model() -> None:
    found = metadata(card())
    index = found.pop("model-index")
    assert found == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "datasets": ["org/pairs"],
        "tags": ["dpo", "preference-optimization", "ipo"],
    }
    name, results = model_index_to_eval_results(index)
    assert name == "base, tuned on preferences"
    assert [(result.metric_type, result.metric_value) for result in results] == [("accuracy", 0.75), ("loss", 0.61)]
    assert {result.task_type for result in results} == {"text-generation"}


def test_metadata_of_an_adapter_and_of_a_merged_one() -> None:
    found = metadata(card(ADAPTER))
    assert (found["library_name"], found["base_model_relation"]) == ("peft", "adapter")
    assert {"peft", "qlora"} <= set(found["tags"])
    merged = card(ADAPTER, merged="and merged.", weights="bfloat16")
    found = metadata(merged)
    assert (found["library_name"], found["base_model_relation"]) == ("transformers", "finetune")
    assert "Its weights are bfloat16. An adapter was trained, LoRA of rank 4, and merged." in merged
    assert "4 bits (NF4)" in card(ADAPTER)


def test_nothing_is_made_up() -> None:
    text = card({"base_model": None, "base": "mine", "datasets": [], "license": {}})
    found = metadata(text)
    assert not {"base_model", "base_model_relation", "datasets", "license"} & found.keys()
    assert "name none, so none is named here" in text
    assert "name none" not in card()
    without = metadata(model_card(SETTINGS, {**RECORD, "final": {"loss": 0.5}}))
    assert "model-index" not in without


def test_a_licence_of_its_own_keeps_name_and_link() -> None:
    own = {"license": "other", "license_name": "base-1", "license_link": "https://base.example/licence"}
    text = card({"license": own})
    assert own.items() <= metadata(text).items()
    assert "name it: base-1" in text


def test_what_people_read() -> None:
    text = card(evaluation={"config": {"data": {"path": "org/other"}}, "metrics": {"loss": 0.25}})
    for row in (
        "| rows read | 1,234 |  |",
        "| left out: unusable | 3 |  |",
        "| left out: without a preference | 5 |  |",
        "| left out: too long | 1 |  |",
        "| left out: prompt is held out | 4 |  |",
        "| **prompts used** | 1,221 | 64 |",
        "| answers cut | 17 |  |",
        "| repeated rows, kept | 2 |  |",
        "| held-out loss | 0.6100 |",
        "| held-out reward accuracy | 0.7500 |",
        "| measured by `dpo eval` on org/other |  |",
        "| loss | 0.2500 |",
        "| torch | 2.13.0 |",
        "| loss | ipo (beta 0.2, normalise mean, label_smoothing 0.0) |",
        f"| reference: model.safetensors | `{HASH}` |",
    ):
        assert row in text.splitlines(), row
    assert "Azar et al. 2023, eq. 17" in text
    assert f"SHA-256 of the tokens trained on: `{HASH}`" in text
    assert "19 updates of 64" in text
    assert "KL to the reference" not in text  # it was not measured
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings["optim"] == SETTINGS["optim"]
    assert settings["defaults"] == ["hydra_settings", "_self_"]


def test_a_sum_of_losses() -> None:
    terms = {"a": {"name": "dpo", "beta": 0.1}, "b": {"name": "sft"}}
    text = card(settings={"loss": {"name": "sum", "terms": terms, "weights": {"a": 1.0, "b": 0.5}}})
    assert {"dpo", "sft"} <= set(metadata(text)["tags"])
    assert "1.0 x dpo (beta 0.1) + 0.5 x sft ()" in text
    assert "Rafailov et al. 2023, eq. 7" in text


def test_a_model_of_which_nothing_is_known() -> None:
    assert metadata(plain_card(None, {})) == {"library_name": "transformers", "pipeline_tag": "text-generation"}
    found = metadata(plain_card("org/base", {"license": "mit"}))
    assert (found["base_model"], found["base_model_relation"], found["license"]) == ("org/base", "adapter", "mit")
    local = plain_card("/home/somebody/base", {}, merged="merged", weights="float16")
    assert "/home" not in local
    assert "base_model" not in metadata(local)


# -- where a licence is read

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("readme", "config", "found"),
    [
        ("---\nlicense: mit\n---\n", "{}", {"license": "mit"}),
        ("---\nlicense: other\nlicense_name: x\n---\n", "{}", {"license": "other", "license_name": "x"}),
        ("# no metadata", '{"license": "gemma"}', {"license": "gemma"}),
        (None, '{"license": "gemma"}', {"license": "gemma"}),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "{}", {}),
        ("---\na: [1\n---\n", "{}", {}),
        ("---\n- a\n---\n", "no json", {}),
        (f"---\nlicense: mit\n{BOMB}---\n", "{}", {"license": "mit"}),
        (f"---\nlicense: mit\na: {'[' * 5000}\n---\n", '{"license": "gemma"}', {"license": "gemma"}),
        ("---\nlicense: &a [*a]\n---\n", "[" * 100_000, {}),
        ('---\nlicense: "mit\\n# More"\n---\n', "{}", {"license": "mit\\n# More"}),
        (None, "{}", {}),
    ],
)
def test_a_licence_is_what_the_base_models_files_say(
    tmp_path: Path, readme: str | None, config: str, found: dict[str, str]
) -> None:
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    (tmp_path / "config.json").write_text(config)
    assert license_of(ModelFiles(str(tmp_path))) == found


def test_a_pipe_names_no_licence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "README.md")
    assert license_of(ModelFiles(str(tmp_path))) == {}


# -- what may leave this machine


@pytest.mark.parametrize(
    ("path", "name", "hub"),
    [
        ("org/base", "org/base", "org/base"),
        ("gpt2", "gpt2", None),
        ("/home/x/base", "base", None),
        ("./runs/a/final", "a/final", None),
        ("~/pairs.jsonl", "pairs.jsonl", None),
        ("data/pairs.jsonl", "pairs.jsonl", None),
        ("data/*.parquet", "*.parquet", None),
        ("https://u:p@h.example/a/b.jsonl?x=1#y", "https://h.example/a/b.jsonl", None),
        ("s3://bucket/rows.jsonl", "s3://bucket/rows.jsonl", None),
    ],
)
def test_names_of_places(path: str, name: str, hub: str | None) -> None:
    assert public_name(path) == name
    assert hub_id(path) == hub


def test_a_folder_here_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("org/base").mkdir(parents=True)
    assert hub_id("org/base") is None
    assert public_name("org/base") == "base"


def test_settings_for_others() -> None:
    found = public_settings(SETTINGS)
    assert "somebody" not in json.dumps(found)
    assert found["data"]["system"] == "/no_think"
    assert found["train"] == SETTINGS["train"]
    assert yaml.safe_load(public_yaml(yaml.safe_load(public_yaml(SETTINGS)))) == yaml.safe_load(public_yaml(SETTINGS))
