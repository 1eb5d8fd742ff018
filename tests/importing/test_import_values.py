"""What each option becomes: the keys its table names and no others; and no option goes without a word."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dpo_cli.errors import DpoError
from dpo_cli.importing.axolotl_options import AXOLOTL, PLUGINS
from dpo_cli.importing.llamafactory_options import LLAMAFACTORY
from dpo_cli.importing.options import Table
from dpo_cli.importing.trl_options import TRAINERS, known

BASE = {
    "TRL": {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"},
    "axolotl": {"base_model": "m", "datasets": [{"path": "d", "type": "chat_template.argilla_chat"}], "rl": "dpo"},
    "LLaMA-Factory": {"model_name_or_path": "m", "dataset": "d", "stage": "dpo", "finetuning_type": "full"},
}
"""What every file says, by tool."""

# A value other than the default, and what else the file must say for it to count.
SAMPLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "num_train_epochs": (2, {}),
    "max_steps": (7, {}),
    "per_device_train_batch_size": (3, {}),
    "gradient_accumulation_steps": (3, {}),
    "seed": (5, {}),
    "learning_rate": ("3e-7", {}),
    "optim": ("rmsprop", {}),
    "adam_beta1": (0.8, {}),
    "adam_beta2": (0.95, {}),
    "adam_epsilon": (1e-6, {}),
    "weight_decay": (0.1, {}),
    "max_grad_norm": (0.2, {}),
    "lr_scheduler_type": ("cosine", {}),
    "lr_scheduler_kwargs": (
        {"min_lr_rate": 0.2},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-7}},
    ),
    "warmup_steps": (12, {}),
    "warmup_ratio": (0.2, {}),
    "bf16": (False, {}),
    "eval_strategy": ("steps", {"eval_steps": 5}),
    "evaluation_strategy": ("steps", {"eval_steps": 5}),
    "eval_steps": (9, {"eval_strategy": "steps"}),
    "load_best_model_at_end": (True, {"eval_strategy": "steps", "eval_steps": 5}),
    "metric_for_best_model": ("eval_rewards/accuracies", {"eval_strategy": "steps", "load_best_model_at_end": True}),
    "save_strategy": ("no", {}),
    "save_steps": (40, {}),
    "save_total_limit": (5, {}),
    "output_dir": ("there", {}),
    "logging_steps": (3, {}),
    "report_to": ("tensorboard", {}),
    "run_name": ("mine", {}),
    "deepspeed": ("configs/zero3.json", {}),
    "fsdp": ("full_shard", {}),
    "model_init_kwargs": ({"revision": "v1"}, {}),
    "max_length": (512, {}),
    "sync_ref_model": (True, {}),
    "ref_model_mixup_alpha": (0.9, {"sync_ref_model": True}),
    "ref_model_sync_steps": (9, {"sync_ref_model": True}),
    "loss_type": (["hinge"], {}),
    "loss_weights": ([0.5], {}),
    "beta": (0.3, {}),
    "label_smoothing": (0.2, {"loss_type": "robust"}),
    "ld_alpha": (0.4, {}),
    "f_divergence_type": ("js_divergence", {}),
    "f_alpha_divergence_coef": (0.7, {"f_divergence_type": "alpha_divergence"}),
    "use_weighting": (True, {}),
    "discopop_tau": (0.1, {"loss_type": "discopop"}),
    "truncation_mode": ("keep_end", {}),
    "model_name_or_path": ("other", {}),
    "model_revision": ("v2", {}),
    "dtype": ("bfloat16", {"bf16": False}),
    "torch_dtype": ("bfloat16", {"bf16": False}),
    "dataset_name": ("other", {}),
    "dataset_config": ("sub", {}),
    "dataset_train_split": ("train_prefs", {}),
    "dataset_test_split": ("test_prefs", {"eval_strategy": "steps"}),
    "datasets": ([{"path": "e", "name": "s", "split": "t"}], {}),
    "test_split_size": (0.1, {"datasets": [{"path": "e"}]}),
    "max_prompt_length": (100, {}),
    "rpo_alpha": (0.5, {}),
    "reference_free": (True, {}),
    "dataset_mixer": ({"e": 0.5}, {"dataset_name": None}),
    "dataset_configs": (["c"], {"dataset_mixer": {"e": 0.5}, "dataset_name": None}),
    "dataset_streaming": (True, {}),
    "streaming": (True, {"datasets": [{"path": "e"}]}),
    "dataset_num_proc": (4, {}),
    "preprocessing_num_workers": (4, {}),
    "tools": ([{"type": "function"}], {}),
    "dataset_mixture": ({"datasets": [{"id": "e", "config": "s", "split": "t", "weight": 1.0}]}, {}),
    "dataset_splits": (
        ["train_a", "test_b"],
        {"dataset_mixer": {"e": 1.0}, "eval_strategy": "steps", "dataset_name": None},
    ),
    "chat_template": ("chatml", {}),
    "gamma_beta_ratio": (0.3, {}),
    "sft_weight": (0.1, {"gamma_beta_ratio": 0.3}),
    "desirable_weight": (1.5, {}),
    "undesirable_weight": (1.5, {}),
    "cpo_alpha": (0.5, {}),
    "simpo_gamma": (1.0, {"loss_type": "simpo"}),
    "alpha": (0.25, {"loss_type": "simpo"}),
}
SAMPLES_OF: dict[str, dict[str, tuple[Any, dict[str, Any]]]] = {
    "kto": {"loss_type": ("apo_zero_unpaired", {})},
    "cpo": {"loss_type": ("simpo", {}), "label_smoothing": (0.1, {})},
    "axolotl": {
        "rl": ("orpo", {}),
        "rl_beta": (0.3, {}),
        "dpo_beta": (0.3, {}),
        "orpo_alpha": (0.3, {"rl": "orpo"}),
        "trl": ({"beta": 0.3}, {}),
        "dpo_loss_type": (["hinge"], {}),
        "dpo_loss_weights": ([0.5], {}),
        "dpo_label_smoothing": (0.2, {"dpo_loss_type": ["robust"]}),
        "dpo_use_weighting": (True, {}),
        "simpo_gamma": (1.0, {"rl": "simpo"}),
        "cpo_alpha": (0.5, {"rl": "simpo"}),
        "kto_desirable_weight": (1.5, {"rl": "kto"}),
        "kto_undesirable_weight": (1.5, {"rl": "kto"}),
        "sequence_parallel_degree": (2, {}),
        "context_parallel_size": (4, {}),
        "num_epochs": (2.0, {}),
        "micro_batch_size": (3, {}),
        "batch_size": (24, {}),
        "optimizer": ("rmsprop", {}),
        "lr_scheduler": ("linear", {}),
        "cosine_min_lr_ratio": (0.1, {}),
        "bfloat16": (True, {"bf16": None}),
        "datasets": ([{"path": "e", "name": "s", "split": "t", "type": "chat_template.argilla_chat"}], {}),
        "test_datasets": ([{"path": "d", "split": "test"}], {}),
        "dataset_processes": (4, {}),
        "val_set_size": (0.1, {}),
        "sequence_len": (1024, {}),
        "excess_length_strategy": ("raise", {}),
        "chat_template_jinja": ("mine.jinja", {}),
        "eval_steps": (9, {"val_set_size": 0.1}),
        "eval_strategy": ("steps", {"val_set_size": 0.1, "logging_steps": 3}),
        "evaluation_strategy": ("steps", {"val_set_size": 0.1, "logging_steps": 3}),
        "load_best_model_at_end": (True, {"val_set_size": 0.1, "eval_steps": 5, "save_steps": 5}),
        "metric_for_best_model": (
            "rewards/margins",
            {"val_set_size": 0.1, "eval_steps": 5, "save_steps": 5, "load_best_model_at_end": True},
        ),
        "save_steps": (40, {}),
        "save_strategy": ("steps", {}),
        "lr_scheduler_kwargs": (
            {"min_lr_rate": 0.2},
            {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-7}, "learning_rate": 1e-6},
        ),
        "save_total_limit": (5, {"save_steps": 5}),
        "wandb_project": ("p", {}),
        "wandb_name": ("n", {}),
        "wandb_mode": ("offline", {}),
        "use_wandb": (False, {}),
        "base_model": ("other", {}),
        "revision_of_model": ("v2", {}),
        "model_revision": ("v2", {}),
        "fsdp_config": ({"reshard_after_forward": True}, {}),
    },
    "LLaMA-Factory": {
        "stage": ("kto", {}),
        "pref_loss": ("ipo", {}),
        "pref_beta": (0.3, {}),
        "pref_ftx": (0.1, {}),
        "pref_bco_weight": (0.25, {}),
        "dpo_label_smoothing": (0.1, {}),
        "simpo_gamma": (1.0, {"pref_loss": "simpo"}),
        "kto_chosen_weight": (1.5, {"stage": "kto"}),
        "kto_rejected_weight": (1.5, {"stage": "kto"}),
        "ref_model": ("ref", {}),
        "dataset": ("d,e", {}),
        "eval_dataset": ("e", {"eval_strategy": "steps"}),
        "mix_strategy": ("interleave_under", {"dataset": "d,e"}),
        "interleave_probs": ("0.1,0.9", {"dataset": "d,e", "mix_strategy": "interleave_under"}),
        "default_system": ("s", {}),
        "enable_thinking": (False, {}),
        "val_size": (0.1, {}),
        "max_samples": (100, {}),
        "cutoff_len": (1024, {}),
        "template": ("llama3", {}),
        "bf16": (True, {}),
        "pure_bf16": (True, {}),
        "eval_strategy": ("steps", {"eval_steps": 5, "val_size": 0.1}),
        "evaluation_strategy": ("steps", {"eval_steps": 5, "val_size": 0.1}),
        "eval_steps": (9, {"eval_strategy": "steps", "val_size": 0.1}),
        "load_best_model_at_end": (True, {"eval_strategy": "steps", "eval_steps": 5, "val_size": 0.1}),
        "metric_for_best_model": (
            "eval_rewards/accuracies",
            {"eval_strategy": "steps", "eval_steps": 5, "val_size": 0.1, "load_best_model_at_end": True},
        ),
    },
}
"""Where a trainer or a tool has another sample for a name."""

ALSO = {
    "optim": "optim.",  # the keys of the optimiser
    "dpo_loss_type": "loss.",
    "loss_type": "loss.",  # the keys of the loss
    "pref_loss": "loss.",
    "stage": "loss.",
    "rl": ("loss.", "reference.mode", "data.shape"),
    "optimizer": "optim.",
    "save_steps": "train.keep_last",
    "loss_weights": "loss",  # the sum's, for the loss's own
    "dpo_loss_weights": "loss",
    "pref_bco_weight": "loss",
    "gamma_beta_ratio": "loss",
    "alpha": "loss",
    "sync_ref_model": "reference.",
    "cosine_min_lr_ratio": "optim.schedule",
    "save_strategy": "train.keep_last",
    "dataset_mixer": "data.split",
    "dataset_splits": "train.eval_every",
    "eval_dataset": "train.eval_every",
    "dataset_mixture": "data.",
    "metric_for_best_model": "train.",
}
"""Keys that change as well, beside those that the table names."""


OF_ONE = {"rpo_alpha": "dpo", "reference_free": "dpo", "gamma_beta_ratio": "cpo", "sft_weight": "cpo"}
"""Old options that one trainer had."""


def cases() -> list[Any]:
    """Every option that is converted, of every trainer and tool."""
    found = [
        (trainer, name)
        for trainer in TRAINERS
        for name, option in known(trainer).items()
        if option.ours and OF_ONE.get(name, trainer) == trainer
    ]
    found += [("axolotl", name) for name, option in (AXOLOTL | PLUGINS).items() if option.ours]
    found += [("LLaMA-Factory", name) for name, option in LLAMAFACTORY.items() if option.ours]
    return [pytest.param(*case, id="-".join(case)) for case in found]


def given(who: str, more: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """A file's options, and the trainer that it must be read for."""
    tool = "TRL" if who in TRAINERS else who
    file = BASE[tool] | more
    return {name: value for name, value in file.items() if value is not None}, who if who in TRAINERS else None


@pytest.mark.parametrize(("who", "name"), cases())
def test_an_option_becomes_the_keys_that_its_table_names(who: str, name: str, convert) -> None:
    options: Table = known(who) if who in TRAINERS else AXOLOTL if who == "axolotl" else LLAMAFACTORY
    value, context = SAMPLES_OF.get(who, {}).get(name) or SAMPLES[name]
    before, trainer = given(who, context)
    after, _ = given(who, context | {name: value})
    one, other = (convert(options, trainer=trainer).keys for options in (before, after))
    changed = {key for key in one.keys() | other.keys() if one.get(key, "-") != other.get(key, "-")}
    wanted = options[name].ours.split(", ")
    named = {key for key in changed if any(f"{key}.".startswith(f"{ours}.") for ours in wanted)}
    assert named
    others = {key for key in changed - named if not key.startswith("/loss@")}  # what a sum's terms are made from
    assert all(key.startswith(ALSO.get(name, "-")) for key in others), others


UNCONVERTED = {
    who: [option for option in options.values() if not option.ours]
    for who, options in {
        **{trainer: known(trainer) for trainer in TRAINERS},
        "axolotl": AXOLOTL | PLUGINS,
        "LLaMA-Factory": LLAMAFACTORY,
    }.items()
}


def another(default: Any) -> Any:
    """A value other than the default, of its kind."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1
    return [*default, "else"] if isinstance(default, list) else "else"


@pytest.mark.parametrize("who", UNCONVERTED)
def test_options_that_are_not_converted_are_said_to_be(who: str, convert) -> None:
    values = {option.name: another(option.default) for option in UNCONVERTED[who]}
    given_values = {"fp16": True, "data_seed": 7, "finetuning_type": "freeze"}
    values |= {name: value for name, value in given_values.items() if name in values}
    file, trainer = given(who, values)
    result = convert(file, trainer=trainer)
    sections = {
        True: result.section("Not converted, and the run differs"),
        False: result.section("Not converted, without effect"),
    }
    for option in UNCONVERTED[who]:
        assert re.search(rf"(^|[ ;*]){option.name}: ", sections[option.matters]), option.name
        assert not re.search(rf"(^|[ ;*]){option.name}: ", sections[not option.matters]), option.name
    assert result.section("Unknown") == ""


@pytest.mark.parametrize("who", UNCONVERTED)
def test_options_at_their_defaults_are_named(who: str, convert) -> None:
    file, trainer = given(who, {})
    result = convert(file | {option.name: option.default for option in UNCONVERTED[who]}, trainer=trainer)
    named = set(re.findall(r"\w+", result.section("At the tool's defaults")))
    converted = {"fp16", "finetuning_type"}  # into train.precision; its default is an adapter, which is said
    assert {option.name for option in UNCONVERTED[who]} - named <= converted


@pytest.mark.parametrize("who", [*TRAINERS, "axolotl", "LLaMA-Factory"])
def test_an_option_that_the_tool_does_not_know_is_said_to_be_unknown(who: str, convert) -> None:
    file, trainer = given(who, {"learning_rat": 1e-5, "xyzzy": [1, 2], "sync_with": {"a": None}})
    unknown = convert(file, trainer=trainer).section("Unknown")
    assert "learning_rat: 1e-05 (did you mean learning_rate?)" in unknown
    assert "xyzzy: [1, 2]" in unknown
    assert "sync_with: {a: null}" in unknown


def test_an_option_of_the_library_below_is_unknown_where_it_is_not_handed_on(convert) -> None:
    """axolotl has no ld_alpha, although TRL has."""
    file, _ = given("axolotl", {"ld_alpha": 0.5, "beta": 0.7})
    result = convert(file)
    assert "ld_alpha: 0.5" in result.section("Unknown")
    assert "beta: 0.7" in result.section("Unknown")
    assert result.keys["loss.beta"] == 0.1


def test_the_batch_is_the_whole(convert) -> None:
    file, _ = given("dpo", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3})
    assert convert(file, processes=8).keys["train.batch_size"] == 96
    assert "4 per device x 3 accumulated x 8 processes" in convert(file, processes=8).text
    file, _ = given("axolotl", {"micro_batch_size": 4, "gradient_accumulation_steps": 3})
    assert convert(file, processes=2).keys["train.batch_size"] == 24


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"warmup_steps": 0.1}, {"optim.warmup_ratio": 0.1}),
        ({"warmup_steps": 10, "warmup_ratio": 0.1}, {"optim.warmup_steps": 10}),
        ({"lr_scheduler_type": "constant", "warmup_steps": 10}, {"optim.warmup_ratio": 0.0}),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 10}, {"optim.warmup_steps": 10}),
        ({"max_grad_norm": 0}, {"optim.max_grad_norm": None}),
        ({"max_grad_norm": None}, {"optim.max_grad_norm": None}),
        ({"max_length": None}, {"data.max_length": 1_000_000}),
        ({"max_steps": 10}, {"train.max_steps": 10, "train.epochs": 1000}),
        ({"num_train_epochs": 1.5}, {"train.epochs": 2}),
        ({"fp16": True}, {"train.precision": "bf16"}),
        ({"bf16": False}, {"train.precision": "fp32"}),
        ({"bf16": "false"}, {"train.precision": "fp32"}),
        ({"save_total_limit": 1}, {"train.keep_last": 2}),
        ({"report_to": ["wandb", "tensorboard"], "run_name": "x"}, {"tracker.run_name": "x"}),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, {"engine.zero_stage": 2}),
        ({"optim": "adafactor"}, {"optim.lr": 1e-6}),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 2e-7}},
            {"optim.schedule": "cosine_with_min_lr", "optim.min_lr_ratio": 0.2},
        ),
    ],
)
def test_values_that_need_a_word(options: dict[str, Any], keys: dict[str, Any], convert) -> None:
    file, trainer = given("dpo", {})
    found = convert(file | options, trainer=trainer).keys
    assert {key: found.get(key, "-") for key in keys} == keys


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"learning_rate": "fast"}, "learning_rate='fast': expected a number"),
        ({"learning_rate": True}, "learning_rate=True: expected a number"),
        ({"max_steps": 1.5}, "max_steps=1.5: expected a whole number"),
        ({"fp16": "maybe"}, "fp16='maybe': expected true or false"),
        ({"dataset_name": ["a"]}, "dataset_name=['a']: expected text"),
        ({"datasets": "a"}, "datasets='a': expected a list"),
        ({"lr_scheduler_kwargs": "x"}, "lr_scheduler_kwargs='x': expected keys and values"),
        ({"model_init_kwargs": "x"}, "model_init_kwargs='x': expected keys and values"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr or min_lr_rate"),
        ({"per_device_train_batch_size": -1}, "per_device_train_batch_size=-1: expected a number over 0"),
        ({"loss_type": "sigmoidal"}, "loss_type=sigmoidal: expected one of sigmoid, hinge"),
        ({"loss_type": ["sft", "sft"]}, "stands twice"),
        ({"loss_type": {}}, "expected names of losses"),
        ({"loss_weights": [1, 2]}, "loss_weights=[1, 2]: expected 1 numbers"),
        ({"loss_weights": ["x"]}, "expected numbers"),
        ({"f_divergence_type": "kl"}, "f_divergence_type=kl: expected one of reverse_kl"),
    ],
)
def test_a_value_that_can_not_be_is_refused(options: dict[str, Any], says: str, convert) -> None:
    file, trainer = given("dpo", {})
    with pytest.raises(DpoError) as problem:
        convert(file | options, trainer=trainer)
    assert says in str(problem.value)
    assert len(str(problem.value).splitlines()) == 1


def test_a_lora_run_is_warned_of(convert) -> None:
    file, trainer = given("dpo", {"use_peft": True, "lora_r": 16, "learning_rate": 2e-4})
    result = convert(file, trainer=trainer)
    assert "use_peft: true" in result.section("Not converted, and the run differs")
    assert "optim.lr=0.0002 was chosen for an adapter" in result.section("Not the same")


def test_secrets_are_not_shown(convert) -> None:
    file, trainer = given("dpo", {"hub_token": "hf_abc", "model_init_kwargs": {"hf_token": "hf_def"}})
    text = convert(file | {"my_api_key": "sk-ghi"}, trainer=trainer).text
    assert not any(secret in text for secret in ("hf_abc", "hf_def", "sk-ghi"))
    assert text.count("(not shown)") == 3


@pytest.mark.parametrize("name", ["a\nb: 1", "a\u2028b: 1", "a\x85b: 1", "#\n_target_"])
def test_names_and_values_stay_in_their_comment(name: str, convert) -> None:
    """Line breaks in them would be keys."""
    file, trainer = given("dpo", {})
    plain = convert(file, trainer=trainer)
    strange = convert(file | {name: f"x\n{name}", "hub_model_id": name, "debug": {name: [name]}}, trainer=trainer)
    assert strange.keys == plain.keys


def test_values_stay_values(convert) -> None:
    file, trainer = given("dpo", {"model_name_or_path": "a: b # c", "dataset_name": "x\ny: ${z}", "run_name": "yes"})
    found = convert(file, trainer=trainer).keys
    assert found["model.path"] == "a: b # c"
    assert found["data.path"] == "x\ny: \\${z}"
    assert found["tracker.run_name"] == "yes"
