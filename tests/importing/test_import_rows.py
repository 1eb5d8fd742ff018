"""Where the rows are, and what they must look like."""

from __future__ import annotations

from typing import Any

import pytest

from dpo_cli.data.formats import reading_problems
from dpo_cli.data.formats.fields import fields_of
from dpo_cli.data.sources import ENDINGS
from dpo_cli.errors import DpoError
from dpo_cli.importing.rows import READABLE, mix_names

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
        ({"datasets": [{"path": "e", "fraction": 0.3}]}, {"path": "e", "split": "train"}),
        ({"datasets": [{"path": "parquet", "data_dir": "folder"}]}, {"path": "folder", "split": "train"}),
        (
            {"datasets": [{"path": "rows.csv.zst", "split": "train[10%:]"}]},
            {"path": "rows.csv.zst", "split": "train[10%:]"},
        ),
        (
            {"dataset_mixer": {"e": 1.0}, "dataset_splits": ["train_a", "test_b"]},
            {"path": "e", "split": "train_a"},
        ),
        (
            {"dataset_mixer": {"e": 0.25}, "dataset_splits": ["test_a", "train_b"], "dataset_configs": ["c"]},
            {"path": "e", "split": "train_b[:25%]", "subset": "c"},
        ),
        (
            {"dataset_mixture": {"datasets": [{"id": "e", "config": "c"}]}},
            {"path": "e", "subset": "c", "split": "train"},
        ),
        (
            {"dataset_mixture": {"datasets": [{"id": "e", "split": "t", "weight": 0.29}]}},
            {"path": "e", "split": "t[:29%]"},
        ),
        ({"dataset_name": "e", "dataset_streaming": True}, {"path": "e", "split": "train", "streaming": True}),
        ({"dataset_name": "e.csv", "dataset_config": "c", "dataset_streaming": True}, {"path": "e.csv"}),
        ({"dataset_name": "./d", "dataset_train_split": "t"}, {"path": "./d", "split": "t"}),
        ({"dataset_name": "e", "dataset_num_proc": 6}, {"path": "e", "split": "train", "workers": 6}),
        ({}, {"path": "???"}),
    ],
)
def test_rows_of_trl(options: dict[str, Any], data: dict[str, Any], convert) -> None:
    found = convert(TRL | options).tree["data"]
    assert {key: value for key, value in found.items() if not key.startswith("max_")} == data


@pytest.mark.parametrize(
    ("options", "mix"),
    [
        (
            {"datasets": [{"path": "o/e"}, {"path": "json", "data_files": ["a.jsonl", "b.jsonl"]}]},
            {"e": {"path": "o/e", "split": "train"}, "a": {"path": "a.jsonl"}, "b": {"path": "b.jsonl"}},
        ),
        (
            {"datasets": [{"path": "o/e", "fraction": 3}, {"path": "f.jsonl", "fraction": 1}]},
            {"e": {"path": "o/e", "split": "train", "weight": 3.0}, "f": {"path": "f.jsonl", "weight": 1.0}},
        ),
        (
            {
                "datasets": [
                    {"path": "e", "fraction": 0.5},
                    {"path": "f", "fraction": 0.0},
                    {"path": "g", "fraction": 1},
                ]
            },
            {
                "e": {"path": "e", "split": "train", "weight": 0.5},
                "g": {"path": "g", "split": "train", "weight": 1.0},
            },
        ),
        (
            {"dataset_mixer": {"o/e": 1.0, "p/e": 0.5}, "dataset_splits": ["train_prefs"]},
            {
                "e": {"path": "o/e", "split": "train_prefs"},
                "e_no_2": {"path": "p/e", "split": "train_prefs[:50%]"},
            },
        ),
        (
            {"dataset_mixture": {"datasets": [{"id": "o/e", "config": "c"}, {"id": "f", "split": "t", "weight": 0.1}]}},
            {"e": {"path": "o/e", "subset": "c", "split": "train"}, "f": {"path": "f", "split": "t[:10%]"}},
        ),
    ],
)
def test_several_data_sets_of_trl(options: dict[str, Any], mix: dict[str, Any], convert) -> None:
    found = convert(TRL | options).tree["data"]
    assert "path" not in found
    assert found["mix"] == mix


def test_which_rows_are_taken_is_said(convert) -> None:
    fractions = {"datasets": [{"path": "e", "fraction": 0.5}, {"path": "f", "fraction": 0.5}]}
    assert "TRL takes the first rows" in convert(TRL | fractions).section("Not the same")
    weights = {"dataset_mixture": {"datasets": [{"id": "e", "weight": 0.5}]}}
    assert "train[:50%] are the first" in convert(TRL | weights).section("Not the same")
    mixer = {"dataset_mixer": {"e": 0.5}}  # takes the first rows itself
    assert "[:50%]" not in convert(TRL | mixer).section("Not the same")


def test_tools_of_all_rows(convert) -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "a ${b}\nc"}}]
    result = convert(TRL | {"dataset_name": "e", "tools": tools})
    assert result.tree["data"]["template_args"]["tools"][0]["function"]["description"] == "a \\${b}\nc"
    assert "tools: here.json" in convert(TRL | {"dataset_name": "e", "tools": "here.json"}).section(
        "Not converted, and"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"datasets": [{"path": "e", "fraction": 0.5}, {"path": "f"}]}, "for all of them or for none"),
        ({"datasets": [{"path": "e", "fraction": "x"}, {"path": "f", "fraction": 1}]}, "datasets.fraction='x'"),
        ({"dataset_mixer": {"e": 1.5}}, "dataset_mixer.e=1.5: expected a share between 0 and 1"),
        ({"dataset_mixer": {"e": 1}, "dataset_configs": ["a", "b"]}, "expected 1, one for each of dataset_mixer"),
        ({"dataset_mixer": {"e": 1}, "dataset_splits": ["a"]}, "expected names with train or test"),
    ],
)
def test_data_sets_that_can_not_be(options: dict[str, Any], says: str, convert) -> None:
    with pytest.raises(DpoError, match=r"given.yaml: ") as problem:
        convert(TRL | options)
    assert says in str(problem.value)


def test_held_out_rows_of_trl(convert) -> None:
    found = convert(TRL | {"dataset_name": "e", "eval_strategy": "steps", "eval_steps": 7}).keys
    assert (found["data.eval"], found["train.eval_every"]) == ("test", 7)
    assert "data.eval" not in convert(TRL | {"dataset_name": "e"}).keys
    assert "data.eval" not in convert(TRL | {"dataset_name": "e", "eval_strategy": False}).keys  # a bare no
    folder = convert(TRL | {"dataset_name": "./d", "eval_strategy": "steps"})
    assert folder.keys["data.eval"] == "test"
    assert "data.eval" not in convert(TRL | {"dataset_name": "d.csv", "eval_strategy": "steps"}).keys
    mixer = {"dataset_mixer": {"o/e": 1.0}, "dataset_splits": ["train", "test_x"]}
    assert convert(TRL | mixer | {"eval_strategy": "steps"}).keys["data.eval"] == "test_x"
    assert "data.eval" not in convert(TRL | mixer).keys
    mixer["dataset_mixer"] = {"o/e": 0.0, "o/f": 1.0}
    lost = convert(TRL | mixer | {"eval_strategy": "steps"}).section("Not converted, and the run differs")
    assert "dataset_splits: [o/e test_x, o/f test_x] -- data.eval is one file" in lost
    no_rows = convert(TRL | {"eval_strategy": "steps"})
    assert "train.eval_every" not in no_rows.keys  # not a dictionary
    assert "Held-out rows are not named" in no_rows.section("Not the same")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"datasets": [{"path": "e", "data_dir": "d"}]}, ("datasets.data_dir: d",)),
        (
            {"datasets": [{"path": "json", "data_files": ["a", "b"], "fraction": 0.5}, {"path": "e", "fraction": 0.5}]},
            ("datasets.fraction: [0.5, 0.5]",),
        ),
        ({"dataset_mixer": {"e": 0.125}}, ("dataset_mixer.e: 0.125", "whole percents")),
        ({"dataset_mixer": {"e": 1}, "dataset_splits": ["train_a", "train_b"]}, ("dataset_splits: [train_b]",)),
        ({"datasets": [{"path": "e", "data_files": ["a", "b"]}]}, ("datasets.data_files: [a, b]",)),
        ({"datasets": [{"path": "e"}], "test_split_size": 500}, ("test_split_size: 500",)),
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
    return {"path": "org/set", "split": "train"} | keys


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
        ({"datasets": [entry(type={"prompt_format": "{other}"})]}, "datasets.type: {prompt_format: {other}}"),
        ({"datasets": [entry(type={"prompt_format": "{system} {prompt}"})]}, "prompt_format: {system} {prompt}"),
        ({"datasets": [entry(), entry(type="chat_template.x")]}, "datasets.type: [null]"),
        ({"datasets": [entry(chat_template="a"), entry(chat_template="b")]}, "datasets.chat_template: [a, b]"),
        ({"datasets": [entry(type="chat_template.x", roles={"user": ["bot"]})]}, "datasets.roles"),
        (
            {"datasets": [entry(type="chat_template.x", message_property_mappings={"role": "r", "content": "c"})]},
            "datasets.message_property_mappings: {content: c, role: r}",
        ),
        ({"datasets": [entry()], "val_set_size": 200}, "val_set_size: 200"),
        ({"datasets": [entry()], "test_datasets": [{"path": "other", "split": "test"}]}, "test_datasets: [other test]"),
        ({"datasets": [entry()], "test_datasets": [entry(split="a"), entry(split="b")]}, "data.eval is one file"),
        ({"datasets": [entry()], "test_datasets": [entry(split="test[:9]")]}, "and no parts of them"),
        (
            {"datasets": [entry()], "test_datasets": [entry(split="test", name="c")]},
            "the subset and revision of the training rows",
        ),
        ({"datasets": [entry()], "test_datasets": [entry(path="o/n", name="c")]}, "has no subset or revision"),
        ({"datasets": [entry()], "test_datasets": [{"path": "./d", "split": "test"}]}, "name the file"),
        (
            {
                "datasets": [entry(type="chatml.intel"), entry(type="chatml.icr")],
                "test_datasets": [entry(split="test")],
            },
            "data.shape, data.columns",
        ),
        ({"datasets": [entry()], "chat_template": "phi_3"}, "chat_template: phi_3"),
        ({"datasets": [entry()], "chat_template_jinja": "{{ x }}"}, "chat_template_jinja: {{ x }}"),
    ],
)
def test_what_is_lost_of_axolotls_rows(options: dict[str, Any], named: str, convert) -> None:
    assert named in convert(AXOLOTL | options).section("Not converted, and the run differs")


@pytest.mark.parametrize(
    ("keys", "rl", "shape", "columns"),
    [
        ({"type": "chatml.intel"}, "dpo", "question_pair", None),
        ({"type": "llama3.icr"}, "ipo", "input_pair", None),
        ({"type": "chatml.argilla"}, "dpo", "argilla_responses", None),
        ({"type": "chatml.argilla_chat"}, "dpo", "dialogues", None),
        ({"type": "chatml.ultra"}, "dpo", None, None),
        ({"type": "llama3.argilla"}, "kto", "judged", {"prompt": "instruction"}),
        ({"type": "chatml.argilla_chat"}, "kto", "messages_judged", {"messages": "completion"}),
        ({"type": "chatml.ultra"}, "kto", None, None),
        ({"type": "chat_template.default"}, "dpo", "messages_pair", None),
        (
            {"type": "chat_template.default", "field_messages": "turns", "field_chosen": "good"},
            "dpo",
            "messages_pair",
            {"messages": "turns", "chosen": "good"},
        ),
        ({"type": "chat_template.argilla_chat", "field_rejected": "bad"}, "dpo", "dialogues", {"rejected": "bad"}),
        ({"type": "chat_template.argilla"}, "orpo", None, None),
        ({"type": {"field_prompt": "q", "field_chosen": "a.b"}}, "dpo", None, {"prompt": "q", "chosen": "a.b"}),
        (
            {"type": {"field_prompt": "q", "prompt_format": "<u>{prompt}{{x}}\n", "chosen_format": "{chosen}</s>"}},
            "dpo",
            None,
            {"prompt": "<u>{q}{{x}}\n", "chosen": "{chosen}</s>"},
        ),
        (
            {"type": {"field_system": "sys", "prompt_format": "{system}|{prompt}"}},
            "dpo",
            None,
            {"prompt": "{sys}|{prompt}"},
        ),
        (
            {"type": {"field_completion": "out", "field_label": "good", "completion_format": " {completion}"}},
            "kto",
            None,
            {"completion": " {out}", "label": "good"},
        ),
    ],
)
def test_a_type_of_axolotls_says_what_rows_look_like(
    keys: dict[str, Any], rl: str, shape: str | None, columns: dict[str, str] | None, convert
) -> None:
    result = convert(AXOLOTL | {"rl": rl, "datasets": [entry(**keys)]})
    data = result.tree["data"]
    assert (data.get("shape"), data.get("columns")) == (shape, columns)
    assert reading_problems(shape or "auto", columns or {}) == []
    assert "datasets" not in result.section("Not converted, and") + result.section("Unknown")


def test_a_users_format_gives_the_text_that_axolotl_would_make(convert) -> None:
    """``str.format`` over the same row, as ``prompt_strategies/dpo/user_defined.py`` has it."""
    kind = {"field_system": "s", "field_prompt": "q", "prompt_format": "{{{system}}}: {prompt}\n{{end}}"}
    columns = convert(AXOLOTL | {"datasets": [entry(type=kind)]}).tree["data"]["columns"]
    row = {"s": "be kind", "q": "why {x}?", "chosen": "a", "rejected": "b"}
    assert fields_of(row, columns)["prompt"] == kind["prompt_format"].format(system=row["s"], prompt=row["q"])


def test_names_that_are_read_in_any_case_need_no_word(convert) -> None:
    keys = {"roles": {"user": ["human", "user"], "assistant": ["gpt"]}, "ds_type": "json", "shards": 4, "shards_idx": 1}
    for parts in (
        {"message_property_mappings": {"role": "from", "content": "value"}},
        {"message_field_role": "from", "message_field_content": "value"},
    ):
        result = convert(AXOLOTL | {"datasets": [entry(type="chat_template.default", **keys, **parts)]})
        assert "datasets" not in result.section("Not converted, and") + result.section("Unknown")
        assert "datasets.shards: 4; datasets.shards_idx: 1" in result.section("Not converted, without")


def test_several_data_sets_of_axolotl(convert) -> None:
    sets = [
        {"path": "o/on", "type": "chatml.intel", "name": ["x", "y"]},
        {"path": "json", "data_files": ["data/Some Rows.jsonl"], "type": "chatml.icr"},
    ]
    data = convert(AXOLOTL | {"datasets": sets, "dataset_processes": 3}).tree["data"]
    assert data["mix"] == {
        "set_on": {"path": "o/on", "subset": "x", "split": "train", "shape": "question_pair"},
        "set_on_no_2": {"path": "o/on", "subset": "y", "split": "train", "shape": "question_pair"},
        "some_rows": {"path": "data/Some Rows.jsonl", "shape": "input_pair"},
    }
    assert data["workers"] == 3
    same = convert(AXOLOTL | {"datasets": [entry(type="chatml.intel"), entry(path="x.jsonl", type="llama3.intel")]})
    assert same.tree["data"]["shape"] == "question_pair"
    assert same.tree["data"]["mix"]["x"] == {"path": "x.jsonl"}


def test_names_of_sources_can_stand_in_keys() -> None:
    found = mix_names(["a/b", "c/B.jsonl.gz", "no", "7", "s3://x/ü-é", "d/b/"])
    assert found == ["b", "b_no_2", "set_no", "set_7", "set_", "b_no_3"]


def test_files_that_can_be_read_are_the_readers() -> None:
    assert set(READABLE) == set(ENDINGS)


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
    folder = {"datasets": [entry()], "test_datasets": [{"path": "./held"}]}
    assert convert(AXOLOTL | folder).keys["data.eval"] == "./held"
    folder = {"datasets": [{"path": "./d"}], "test_datasets": [{"path": "./d", "split": "test"}]}
    assert convert(AXOLOTL | folder).keys["data.eval"] == "test"
    subset = {"datasets": [entry(name="c")], "test_datasets": [entry(split="test", name="c")]}
    assert convert(AXOLOTL | subset).keys["data.eval"] == "test"
    other = {"datasets": [entry()], "test_datasets": [{"path": "org/other", "split": "test"}]}
    assert convert(AXOLOTL | other).keys["data.eval"] == "org/other:test"
    mixed = {"datasets": [entry(), entry(path="x.jsonl")], "test_datasets": [entry(split="test")]}
    assert convert(AXOLOTL | mixed).keys["data.eval"] == "org/set:test"
    columns = {"type": {"field_prompt": "q"}}
    read_alike = {"datasets": [entry(**columns)], "test_datasets": [entry(split="test", **columns)]}
    assert convert(AXOLOTL | read_alike).keys["data.eval"] == "test"
    # axolotl takes the fields of the training rows for held-out ones, whatever these say.
    chats = {"type": "chat_template.default", "field_messages": "turns"}
    read_alike = {"datasets": [entry(**chats)], "test_datasets": [entry(type=chats["type"], split="test")]}
    assert convert(AXOLOTL | read_alike).keys["data.eval"] == "test"
    file = {"datasets": [entry()], "test_datasets": [{"path": "json", "data_files": ["held.jsonl"]}]}
    assert convert(AXOLOTL | file).keys["data.eval"] == "held.jsonl"
    assert convert(AXOLOTL | {"datasets": [entry()], "val_set_size": 0.1}).keys["data.eval"] == 0.1


LLAMAFACTORY = {"model_name_or_path": "m", "stage": "dpo", "finetuning_type": "full"}


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, [None, None]),
        ({"mix_strategy": "interleave_once", "interleave_probs": "0.2, 0.8"}, [None, None]),
        ({"mix_strategy": "interleave_under", "interleave_probs": "0.2,0.8"}, [0.2, 0.8]),
        ({"mix_strategy": "interleave_under"}, [1.0, 1.0]),
        ({"mix_strategy": "interleave_over", "interleave_probs": [0.2, 0.8]}, [None, None]),
    ],
)
def test_several_data_sets_of_llamafactory(options: dict[str, Any], weights: list[float | None], convert) -> None:
    result = convert(LLAMAFACTORY | {"dataset": "dpo_en_demo, my-own"} | options)
    mix = result.tree["data"]["mix"]
    assert list(mix) == ["dpo_en_demo", "my_own"]
    assert [source.get("weight") for source in mix.values()] == weights
    assert [source["path"] for source in mix.values()] == ["???", "???"]
    assert "data.mix.my_own.path=... on the command line: of my-own in dataset_info.json" in result.text
    lost = result.section("Not converted, and the run differs")
    assert ("mix_strategy: interleave_over" in lost) == (options.get("mix_strategy") == "interleave_over")
    assert ("drawn by the seed" in result.section("Not the same")) == (weights[0] is not None)


def test_held_out_rows_of_llamafactory(convert) -> None:
    evaluated = {"dataset": "a", "eval_dataset": "b", "eval_strategy": "steps", "eval_steps": 5}
    found = convert(LLAMAFACTORY | evaluated)
    assert (found.keys["data.eval"], found.keys["train.eval_every"]) == ("???", 5)
    assert "eval_dataset=b is a name in dataset_info.json" in found.text
    assert "data.eval" not in convert(LLAMAFACTORY | evaluated | {"eval_strategy": False}).keys
    several = convert(LLAMAFACTORY | evaluated | {"eval_dataset": ["b", "c"]})
    assert "data.eval" not in several.keys
    assert "eval_dataset: [b, c]" in several.section("Not converted, and the run differs")


def test_llamafactorys_words_for_the_template(convert) -> None:
    given = {"dataset": "a", "default_system": "Be kind.", "enable_thinking": False}
    data = convert(LLAMAFACTORY | given | {"preprocessing_num_workers": 16}).tree["data"]
    assert (data["system"], data["template_args"]) == ("Be kind.", {"enable_thinking": False})
    assert (data["workers"], data["truncate_prompt"]) == (16, "end")
    assert "template_args" not in convert(LLAMAFACTORY | {"dataset": "a"}).tree["data"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mix_strategy": "shuffle"}, "mix_strategy=shuffle: expected one of concat"),
        ({"mix_strategy": "interleave_under", "interleave_probs": "0.5"}, "expected 2 numbers over 0"),
        ({"mix_strategy": "interleave_under", "interleave_probs": "1,0"}, "expected 2 numbers over 0"),
        ({"interleave_probs": "a,b"}, "expected numbers"),
    ],
)
def test_shares_that_can_not_be(options: dict[str, Any], says: str, convert) -> None:
    with pytest.raises(DpoError) as problem:
        convert(LLAMAFACTORY | {"dataset": "a,b"} | options)
    assert says in str(problem.value)
