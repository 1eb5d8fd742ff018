"""Where the rows are, and what they must look like."""

from __future__ import annotations

from typing import Any

import pytest

TRL = {"model_name_or_path": "m", "beta": 0.1}
AXOLOTL = {"base_model": "m", "rl": "dpo", "micro_batch_size": 1, "learning_rate": 1e-6}


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({"dataset_name": "org/set"}, {"path": "org/set", "split": "train"}),
        (
            {"dataset_name": "org/set", "dataset_config": "c", "dataset_train_split": "t"},
            {"path": "org/set", "subset": "c", "split": "t"},
        ),
        ({"dataset_name": "rows.jsonl"}, {"path": "rows.jsonl"}),
        ({"datasets": [{"path": "json", "data_files": "rows.jsonl"}]}, {"path": "rows.jsonl"}),
        (
            {"datasets": [{"path": "e", "split": "t", "fraction": 1.0}], "test_split_size": 0.1},
            {"path": "e", "split": "t", "eval": 0.1},
        ),
        ({"datasets": [{"path": "e"}, {"path": "f"}]}, {"path": "???"}),
        ({"dataset_mixer": {"e": 1.0}, "dataset_splits": ["a", "b"]}, {"path": "e", "split": "a"}),
        (
            {"dataset_mixture": {"datasets": [{"id": "e", "config": "c"}]}},
            {"path": "e", "subset": "c", "split": "train"},
        ),
        ({}, {"path": "???"}),
    ],
)
def test_rows_of_trl(options: dict[str, Any], data: dict[str, Any], convert) -> None:
    found = convert(TRL | options).tree["data"]
    assert {key: value for key, value in found.items() if not key.startswith("max_")} == data


def test_held_out_rows_of_trl(convert) -> None:
    found = convert(TRL | {"dataset_name": "e", "eval_strategy": "steps", "eval_steps": 7}).keys
    assert (found["data.eval"], found["train.eval_every"]) == ("test", 7)
    assert "data.eval" not in convert(TRL | {"dataset_name": "e"}).keys
    assert "data.eval" not in convert(TRL | {"dataset_name": "e", "eval_strategy": False}).keys  # a bare no
    no_rows = convert(TRL | {"eval_strategy": "steps"})
    assert "train.eval_every" not in no_rows.keys  # not a dictionary
    assert "Held-out rows are not named" in no_rows.section("Not the same")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"datasets": [{"path": "e"}, {"path": "f", "split": "g"}]}, ("data set: e", "data set: f g", "2 data sets")),
        ({"datasets": [{"path": "e", "data_dir": "d"}]}, ("datasets.data_dir: d",)),
        ({"datasets": [{"path": "e", "data_files": ["a", "b"]}]}, ("datasets.data_files: [a, b]",)),
        ({"datasets": [{"path": "e"}], "test_split_size": 500}, ("test_split_size: 500",)),
        ({"dataset_mixer": {"e": 0.5}}, ("datasets.weight: 0.5",)),
    ],
)
def test_what_is_lost_of_rows(options: dict[str, Any], named: tuple[str, ...], convert) -> None:
    lost = convert(TRL | options).section("Not converted, and the run differs")
    for part in named:
        assert part in lost


def test_a_mixtures_seed_is_named(convert) -> None:
    result = convert(TRL | {"dataset_mixture": {"datasets": [{"id": "e"}], "seed": 0, "test_split_size": 0.1}})
    assert "dataset_mixture.seed: 0" in result.section("Not converted, without effect")
    assert result.keys["data.eval"] == 0.1


def test_an_unknown_key_of_a_data_set_is_said_to_be(convert) -> None:
    result = convert(TRL | {"datasets": [{"path": "e", "splitt": "x"}]})
    assert "datasets.splitt: x" in result.section("Unknown")
    result = convert(AXOLOTL | {"datasets": [{"path": "e", "splitt": "x"}]})
    assert "datasets.splitt: x" in result.section("Unknown")


def entry(**keys: Any) -> dict[str, Any]:
    return {"path": "org/set", "split": "train", **keys}


@pytest.mark.parametrize(
    ("kind", "model", "text"),
    [
        ("chatml.intel", "chatml", None),
        ("llama3.ultra", "llama3", None),
        ("zephyr.nectar", "zephyr", None),
        ("chat_template.default", None, None),
        (None, None, "plain"),
        ("passthrough", None, "plain"),
        ({"field_prompt": "prompt", "prompt_format": "{prompt}"}, None, "plain"),
    ],
)
def test_the_type_of_axolotls_rows_decides_the_template(
    kind: Any, model: str | None, text: str | None, convert
) -> None:
    result = convert(AXOLOTL | {"datasets": [entry(type=kind)]})
    assert result.keys.get("model.chat_template") == model
    assert result.keys.get("data.text") == text
    assert "datasets.type" not in result.remarks


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"datasets": [entry(type={"field_prompt": "question"})]}, "datasets.type: {field_prompt: question}"),
        ({"datasets": [entry(type="chat_template.x", roles={"user": ["human"]})]}, "datasets.roles"),
        ({"datasets": [entry(type="chat_template.x", shards=10)]}, "datasets.shards: 10"),
        ({"datasets": [entry()], "val_set_size": 200}, "val_set_size: 200"),
        ({"datasets": [entry()], "test_datasets": [{"path": "other", "split": "test"}]}, "test_datasets: [other]"),
        ({"datasets": [entry()], "chat_template": "phi_3"}, "chat_template: phi_3"),
        ({"datasets": [entry()], "chat_template_jinja": "{{ x }}"}, "chat_template_jinja: {{ x }}"),
    ],
)
def test_what_is_lost_of_axolotls_rows(options: dict[str, Any], named: str, convert) -> None:
    assert named in convert(AXOLOTL | options).section("Not converted, and the run differs")


@pytest.mark.parametrize(
    ("kind", "columns"),
    [("chatml.intel", "question, chosen and rejected"), ("llama3.argilla", "instruction, chosen_response"),
     ("chat_template.default", "conversation, chosen, rejected")],
)  # fmt: skip
def test_columns_that_must_be_renamed_are_named(kind: str, columns: str, convert) -> None:
    result = convert(AXOLOTL | {"datasets": [entry(type=kind, field_messages="conversation")]})
    assert columns in result.section("Not the same")


@pytest.mark.parametrize("strategy", [None, "drop", "truncate", "raise"])
def test_rows_that_are_too_long_for_axolotl(strategy: str | None, convert) -> None:
    result = convert(AXOLOTL | {"datasets": [entry()], "excess_length_strategy": strategy})
    assert result.keys["data.on_too_long"] == (strategy or "drop")
    assert result.keys["data.max_length"] == 512
    assert (result.keys.get("data.max_prompt_length") == 511) == (strategy == "truncate")
    assert ("excess_length_strategy=truncate" in result.section("Not the same")) == (strategy == "truncate")


def test_held_out_rows_of_axolotl(convert) -> None:
    same = {"datasets": [entry()], "test_datasets": [{"path": "org/set", "split": "test"}]}
    assert convert(AXOLOTL | same).keys["data.eval"] == "test"
    file = {"datasets": [entry()], "test_datasets": [{"path": "json", "data_files": ["held.jsonl"]}]}
    assert convert(AXOLOTL | file).keys["data.eval"] == "held.jsonl"
    assert convert(AXOLOTL | {"datasets": [entry()], "val_set_size": 0.1}).keys["data.eval"] == 0.1
