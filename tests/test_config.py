"""The configuration's checks: every wrong key is named, with what was expected, all at once."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from helpers.loss_cases import settings
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dpo_cli.config import EvaluateConfig, PrecomputeConfig, TrainConfig, nearest_key, read_config, valid_keys
from dpo_cli.errors import ConfigError, ExitCode

CONFIGS = Path(__file__).parents[1] / "configs"
SCHEMAS = {"train": TrainConfig, "precompute_ref": PrecomputeConfig, "eval": EvaluateConfig}
DELETED = "(deleted)"  # by identity; a plain object would have another name in every process


@cache
def _composed(name: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        tree = OmegaConf.to_container(compose(name, ["model.path=a-model", "data.path=rows.jsonl"]), resolve=True)
    tree.pop("hydra", None)
    return tree


def tree_of(name: str = "train", **changes: Any) -> dict[str, Any]:
    """The defaults with a model and data, changed by full key (``loss__beta`` for ``loss.beta``)."""
    tree = copy.deepcopy(_composed(name))
    for key, value in changes.items():
        *sections, last = key.split("__")
        section = tree
        for part in sections:
            section = section[part]
        if value is DELETED:
            del section[last]
        else:
            section[last] = value
    return tree


def problems_of(tree: dict[str, Any], name: str = "train", files=()) -> list[str]:
    with pytest.raises(ConfigError) as error:
        read_config(tree, SCHEMAS[name], files)
    assert str(error.value) == "\n".join(error.value.problems)
    assert error.value.exit_code == ExitCode.USAGE
    return error.value.problems


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_defaults_are_valid_and_the_schema_has_no_key_more(name: str) -> None:
    config = read_config(tree_of(name), SCHEMAS[name])
    assert (config.model.path, config.data.path, config.loss.beta) == ("a-model", "rows.jsonl", 0.1)

    def keys(tree: dict[str, Any], prefix: str = "") -> set[str]:
        found = set()
        for key, value in tree.items():
            found.add(prefix + key)
            if isinstance(value, dict):
                found |= keys(value, f"{prefix}{key}.")
        return found

    of_other_options = {
        key for key in valid_keys(SCHEMAS[name]) if nearest_key(key, SCHEMAS[name])[:5] in ("; it ", ": the")
    }
    assert keys(tree_of(name)) <= set(valid_keys(SCHEMAS[name]))
    assert set(valid_keys(SCHEMAS[name])) - keys(tree_of(name)) <= of_other_options


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("loss__betta", "loss.beta"),
        ("loss__Beta", "loss.beta"),
        ("optim__learning_rate", None),
        ("optim__weigth_decay", "optim.weight_decay"),
        ("loss__lr", "optim.lr"),  # right name, wrong section
        ("batch_size", "train.batch_size"),
        ("train__max_length", "data.max_length"),
        ("modle", "model"),
        ("xyzzy", None),
    ],
)
def test_an_unknown_key_suggests_the_nearest(key: str, nearest: str | None) -> None:
    (problem,) = problems_of(tree_of(**{key: 1}))
    dotted = key.replace("__", ".")
    if nearest is None:
        assert problem.startswith(f"unknown key {dotted}")
    else:
        assert problem == f"unknown key {dotted}; did you mean {nearest}?"


def test_the_file_and_line_of_an_unknown_key(tmp_path: Path) -> None:
    empty, file = tmp_path / "other.yaml", tmp_path / "mine.yaml"
    empty.write_text("# betta: in a comment\n")
    file.write_text("# @package _global_\nloss:\n  betta: 0.3\n")
    assert problems_of(tree_of(loss__betta=0.3), files=[empty, file]) == [
        f"unknown key loss.betta ({file}, line 3); did you mean loss.beta?"
    ]


def test_the_file_and_line_of_a_wrong_value(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("loss:\n  beta: -0.3\n")
    assert problems_of(tree_of(loss__beta=-0.3), files=[file]) == [
        f"loss.beta=-0.3 ({file}, line 2): expected greater than 0"
    ]


NUMBER = "expected number"
INTEGER = "expected integer"
FINITE = "expected a finite number"
WRONG: list[tuple[str, Any, str]] = [
    # types
    ("loss.beta", "strong", f"loss.beta='strong': {NUMBER}"),
    ("loss.beta", True, f"loss.beta=True: {NUMBER}"),
    ("loss.beta", None, f"loss.beta=None: {NUMBER}"),
    ("loss.beta", [0.1], f"loss.beta=[0.1]: {NUMBER}"),
    ("optim.lr", "0.1", f"optim.lr='0.1': {NUMBER}"),
    ("train.batch_size", 1.5, f"train.batch_size=1.5: {INTEGER}"),
    ("train.batch_size", True, f"train.batch_size=True: {INTEGER}"),
    ("train.batch_size", "64", f"train.batch_size='64': {INTEGER}"),
    ("seed", 1.0, f"seed=1.0: {INTEGER}"),
    ("model.path", 3, "model.path=3: expected string"),
    ("engine.deepspeed", None, "engine.deepspeed=None: expected dictionary"),
    ("optim.betas", [0.9], "optim.betas=[0.9]: expected one item more"),
    ("optim.betas", [0.9, 0.9, 0.9], "optim.betas=[0.9, 0.9, 0.9]: expected 2 items"),
    ("optim.betas", 0.9, "optim.betas=0.9: expected tuple"),
    # choices
    (
        "loss.name",
        "dop",
        "loss.name=dop: expected one of dpo, robust, ipo, hinge, slic, exo, nca, bco_pair, sppo, aot, "
        "aot_unpaired, apo_zero, apo_down, discopop, dpo_norm, simpo, alphapo, cpo, orpo, rpo_bwd_kl, rpo_fwd_kl, "
        "rpo_sq, sft, kto, bco, apo_zero_unpaired, plackett_luce, sum",
    ),
    ("engine.zero_stage", 4, "engine.zero_stage=4: expected 0, 1, 2 or 3 or 'auto'"),
    ("engine.zero_stage", "2", "engine.zero_stage='2': expected 0, 1, 2 or 3 or 'auto'"),
    ("train.tokens_per_micro_batch", "many", f"train.tokens_per_micro_batch='many': {INTEGER} or 'auto'"),
    ("train.precision", "fp16", "train.precision='fp16': expected 'auto', 'fp32' or 'bf16'"),
    ("reference.mode", "online", "reference.mode='online': expected 'cached', 'live', 'adapter_off' or 'none'"),
    ("reference.sharded", "some", "reference.sharded='some': expected boolean, unable to interpret input or 'auto'"),
    (
        "optim.schedule",
        "step",
        "optim.schedule='step': expected 'linear', 'cosine', 'cosine_with_min_lr', 'inverse_sqrt' or 'constant'",
    ),
    (
        "optim.name",
        "adam",
        "optim.name=adam: expected one of adamw, adamw_8bit, paged_adamw_8bit, paged_adamw_32bit, rmsprop",
    ),
    # ranges
    ("loss.beta", 0, "loss.beta=0: expected greater than 0"),
    ("loss.beta", -0.1, "loss.beta=-0.1: expected greater than 0"),
    ("loss.label_smoothing", 0.5, "loss.label_smoothing=0.5: expected less than 0.5"),
    ("loss.label_smoothing", -0.1, "loss.label_smoothing=-0.1: expected greater than or equal to 0"),
    ("optim.betas", [0.9, 1.0], "optim.betas=1.0: expected less than 1"),
    ("optim.warmup_steps", 0, "optim.warmup_steps=0: expected greater than 0"),
    ("optim.min_lr_ratio", 1.0, "optim.min_lr_ratio=1.0: expected less than 1"),
    ("optim.warmup_ratio", 1.0, "optim.warmup_ratio=1.0: expected less than 1"),
    ("optim.max_grad_norm", 0, "optim.max_grad_norm=0: expected greater than 0"),
    ("optim.weight_decay", -1, "optim.weight_decay=-1: expected greater than or equal to 0"),
    ("train.keep_last", 1, "train.keep_last=1: expected greater than or equal to 2"),
    ("train.batch_size", 0, "train.batch_size=0: expected greater than 0"),
    ("train.tokens_per_micro_batch", 0, "train.tokens_per_micro_batch=0: expected greater than 0 or 'auto'"),
    ("seed", -1, "seed=-1: expected greater than or equal to 0"),
    ("data.eval", 1.0, "data.eval=1.0: expected string or less than 1"),
    ("data.eval", 0.0, "data.eval=0.0: expected string or greater than 0"),
    # not numbers
    ("loss.beta", math.nan, f"loss.beta=nan: {FINITE}"),
    ("loss.beta", math.inf, f"loss.beta=inf: {FINITE}"),
    ("optim.lr", math.nan, f"optim.lr=nan: {FINITE}"),
    ("optim.eps", math.inf, f"optim.eps=inf: {FINITE}"),
    ("optim.weight_decay", math.nan, f"optim.weight_decay=nan: {FINITE}"),
    ("optim.max_grad_norm", math.inf, f"optim.max_grad_norm=inf: {FINITE}"),
    ("optim.betas", [math.nan, 0.9], f"optim.betas=nan: {FINITE}"),
    ("loss.label_smoothing", math.nan, f"loss.label_smoothing=nan: {FINITE}"),
    ("eval.temperature", math.nan, f"eval.temperature=nan: {FINITE}"),
    ("data.eval", math.nan, "data.eval=nan: expected string or less than 1"),
    # missing
    ("model.path", "???", "model.path has no value: give it one, model.path=..."),
    ("loss.beta", "???", "loss.beta has no value: give it one, loss.beta=..."),
    ("loss.beta", DELETED, "loss.beta is missing: the configuration must give it a value"),
    ("optim.lr", DELETED, "optim.lr is missing: the configuration must give it a value"),
    ("optim.name", DELETED, "optim.name is missing: the configuration must give it a value"),
    ("optim", DELETED, "optim is missing: the configuration must give it a value"),
]


@pytest.mark.parametrize(("key", "value", "problem"), WRONG, ids=[f"{k}={v}" for k, v, _ in WRONG])
def test_a_wrong_value_is_named_with_what_was_expected(key: str, value: Any, problem: str) -> None:
    assert problems_of(tree_of(**{key.replace(".", "__"): value})) == [problem]


RMSPROP = {"name": "rmsprop", "lr": 1e-6, "alpha": 0.99, "eps": 1e-8, "schedule": "linear"}
RMSPROP |= {"min_lr_ratio": None, "warmup_ratio": 0.1, "warmup_steps": None, "max_grad_norm": 1.0}


def test_each_optimizer_has_its_own_keys() -> None:
    config = read_config(tree_of(optim=RMSPROP), TrainConfig)
    assert config.optim.settings() == {"name": "rmsprop", "alpha": 0.99, "eps": 1e-8}
    assert read_config(tree_of(), TrainConfig).optim.settings() == {
        "name": "adamw",
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
    }


def test_a_key_of_another_optimizer_is_an_error() -> None:
    (problem,) = problems_of(tree_of(optim={**RMSPROP, "betas": [0.9, 0.99]}))
    assert problem.startswith("unknown key optim.betas: optim=rmsprop makes no use of betas; its keys are lr, schedule")
    (problem,) = problems_of(tree_of(optim__alpha=0.9))
    assert problem.startswith("unknown key optim.alpha: optim=adamw makes no use of alpha; its keys are lr, schedule")
    assert problems_of(tree_of(optim={**RMSPROP, "alhpa": 0.9})) == [
        "unknown key optim.alhpa; did you mean optim.alpha?"
    ]
    assert problems_of(tree_of(optim={**RMSPROP, "alpha": 1.0})) == ["optim.alpha=1.0: expected less than 1"]


def test_a_key_of_another_option_names_the_options_that_have_it() -> None:
    """What is said where Hydra finds that there is no such key."""
    assert nearest_key("optim.alpha", TrainConfig) == "; it is a key of optim=rmsprop"
    assert nearest_key("optim.betas", TrainConfig) == (
        "; it is a key of optim=adamw or optim=adamw_8bit or optim=paged_adamw_8bit or optim=paged_adamw_32bit"
    )


def test_all_problems_are_reported_at_once() -> None:
    tree = tree_of(loss__beta=-1, train__batch_size="x", optim__lrr=1, model__path="???", seed=DELETED)
    assert sorted(problems_of(tree)) == [
        "loss.beta=-1: expected greater than 0",
        "model.path has no value: give it one, model.path=...",
        "seed is missing: the configuration must give it a value",
        "train.batch_size='x': expected integer",
        "unknown key optim.lrr; did you mean optim.lr?",
    ]


GOOD = [
    {"loss__beta": 1},
    {"optim__betas": [0, 0.5]},
    {"optim__max_grad_norm": None},
    {"optim__name": "adamw_8bit"},
    {"optim__schedule": "cosine_with_min_lr", "optim__min_lr_ratio": 0},
    {"optim__schedule": "inverse_sqrt", "optim__warmup_ratio": 0, "optim__warmup_steps": 150},
    {"engine__zero_stage": 3},
    {"engine__deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}},
    {"data__eval": 0.05},
    {"data__eval": "test"},
    {"data__eval": "test", "train__eval_every": 5, "train__save_every": 5, "train__keep_best": "loss"},
    {"data__eval": "test", "eval__samples": 4, "eval__true_reward": "quickstart"},
    {"data__max_length": 64, "data__max_prompt_length": 63},
    {"data__truncate_prompt": "end"},
    {"data__template_args": {"enable_thinking": False}},
    {"reference__mode": "live"},
    {"reference__mode": "live", "reference__sharded": True, "engine__zero_stage": 2},
    {"reference__mode": "live", "reference__sharded": False, "engine__zero_stage": 3},
    {"reference__mode": "cached", "reference__cache_dir": "cache"},
    {"resume": "none"},
    {"resume": "auto", "run_dir": "runs/a"},
]


@pytest.mark.parametrize("changes", GOOD, ids=str)
def test_what_goes_together_is_taken(changes: dict[str, Any]) -> None:
    config = read_config(tree_of(**changes), TrainConfig)
    for key, value in changes.items():
        found: Any = config
        for part in key.split("__"):
            found = getattr(found, part)
        assert found == (tuple(value) if isinstance(value, list) else value)


LOSS_CONFLICTS = [
    (
        {"loss": settings("kto"), "data__margin": "gap"},
        "data.margin has no effect: loss=kto makes no use of it",
    ),
    (
        {"loss": settings("aot"), "data__weight": "w", "data__label_prob": "p"},
        "data.weight has no effect: loss=aot makes no use of it",
        "data.label_prob has no effect: loss=aot makes no use of it",
    ),
    (
        {"loss": settings("rpo_sq")},
        "data.margin has no value: rpo_sq needs the true reward's gap, a column or two ([good, bad])",
    ),
    ({"reference__mode": "none"}, "reference.mode=none: loss=dpo needs a reference"),
    (
        {"loss": settings("simpo"), "reference__path": "other"},
        "reference.path has no effect: loss=simpo needs no reference",
    ),
    (
        {"loss__divergence": "alpha"},
        "loss.divergence_alpha has no value: between 0 (reverse KL) and 1 (forward KL)",
    ),
    (
        {"loss__divergence_alpha": 0.5},
        "loss.divergence_alpha=0.5 has no effect with loss.divergence=reverse_kl",
    ),
    ({"loss__humanline": [1.5, -1.0]}, "loss.humanline=[1.5, -1.0]: expected [low, high]"),
    (
        {"reference__update_every": 5},
        "reference.update_mix has no value: which share of the policy, such as 0.6",
        "reference.update_every moves the reference: it needs reference.mode=live or adapter_off, and a loss with a "
        "reference",
    ),
    ({"reference__update_mix": 0.5}, "reference.update_mix=0.5 has no effect without reference.update_every"),
    (
        {"loss": {"name": "sum", "terms": {}, "weights": {}}},
        "loss.terms is empty: configs/loss/sum.yaml says how to give a sum its losses",
    ),
    (
        {"loss": {"name": "sum", "terms": {"dpo": settings("dpo")}, "weights": {"dop": 1.0}}},
        "loss.weights has dop; expected one for each of loss.terms: dpo",
    ),
    (
        {
            "loss": {
                "name": "sum",
                "terms": {n: settings(n) for n in ("dpo", "kto")},
                "weights": {"dpo": 1.0, "kto": 1.0},
            }
        },
        "loss.terms: one sum can't count answers and pairs",
    ),
]


@pytest.mark.parametrize(("changes", "problems"), [(changes, list(problems)) for changes, *problems in LOSS_CONFLICTS])
def test_what_a_loss_makes_no_use_of_is_an_error(changes: dict[str, Any], problems: list[str]) -> None:
    assert problems_of(tree_of(**changes)) == problems


@pytest.mark.parametrize(
    ("name", "key"), [("ipo", "label_smoothing"), ("simpo", "ld_alpha"), ("kto", "sft_weight"), ("aot", "divergence")]
)
def test_a_key_of_another_loss_is_an_unknown_key(name: str, key: str) -> None:
    (problem,) = problems_of(tree_of(loss={**settings(name), key: 0.1}))
    assert problem.startswith(f"unknown key loss.{key}: loss={name} makes no use of {key}; its keys are ")


PARTS = {"a": {"path": "a.jsonl", "weight": 1}, "b": {"path": "b.jsonl", "rows": 5}}
CONFLICTS = [
    (
        {"data__path": None},
        "data.path has no value: give it one, data.path=..., or several sources, data.mix={...}",
    ),
    ({"data__mix": {"a": {"path": "a.jsonl"}}}, "data.path=rows.jsonl has no effect with data.mix: put it in there"),
    (
        {"data__path": None, "data__mix": {"a": {"path": "a.jsonl", "weight": 0.5, "rows": 3}}},
        "data.mix.a: rows and weight contradict each other: give one",
    ),
    (
        {"data__path": None, "data__mix": PARTS},
        "data.mix: a with a weight and b without: give all one, or none",
    ),
    (
        {"data__truncate_prompt": "end", "data__on_too_long": "drop"},
        "data.truncate_prompt=end has no effect with data.on_too_long=drop: nothing is cut",
    ),
    (
        {"data__template_args": {"x": 1}, "data__text": "plain"},
        "data.template_args has no effect with data.text=plain: no template is used",
    ),
    (
        {"data__system": "S", "data__text": "plain"},
        "data.system has no effect with data.text=plain: no template is used",
    ),
    (
        {"data__max_length": 64, "data__max_prompt_length": 64},
        "data.max_prompt_length=64 leaves no room for an answer in data.max_length=64: make it smaller",
    ),
    (
        {"eval__true_reward": "quickstart"},
        "eval.true_reward=quickstart has no effect without eval.samples: it judges samples",
    ),
    ({"train__eval_every": 5}, "train.eval_every=5 has no effect without data.eval"),
    (
        {"sweep__direction": "minimize"},
        "sweep.direction=minimize has no effect without sweep.metric",
    ),
    (
        {"eval__generator": "vllm"},
        "eval.generator=vllm has no effect in `dpo train`: the model there answers itself",
    ),
    ({"eval__samples": 4}, "eval.samples=4 has no effect without data.eval: samples answer its prompts"),
    (
        {"data__eval": 0.1, "train__eval_every": 5, "train__keep_best": "loss"},
        "train.keep_best=loss has no effect without train.eval_every and train.save_every",
    ),
    (
        {"data__eval": 0.1, "train__save_every": 5, "train__keep_best": "loss"},
        "train.keep_best=loss has no effect without train.eval_every and train.save_every",
    ),
    (
        {"reference__mode": "live", "reference__cache_dir": "cache"},
        "reference.cache_dir has no effect with reference.mode=live: nothing is kept",
    ),
    *(
        (
            changes,
            "reference.sharded has no effect: only a second model is shared out, which there is with "
            "reference.mode=live and a loss that needs a reference",
        )
        for changes in (
            {"reference__sharded": True},
            {"reference__sharded": False, "engine__zero_stage": 3},
            {"reference__sharded": True, "reference__mode": "live", "loss": settings("simpo")},
        )
    ),
    (
        {"optim__schedule": "cosine_with_min_lr"},
        "optim.schedule=cosine_with_min_lr needs optim.min_lr_ratio, the share of optim.lr that it ends at",
    ),
    (
        {"optim__min_lr_ratio": 0.1},
        "optim.min_lr_ratio=0.1 has no effect with optim.schedule=linear: it is for cosine_with_min_lr",
    ),
    (
        {"optim__warmup_steps": 150},
        "optim.warmup_steps=150 and optim.warmup_ratio=0.1 both say how long the warm-up is: set optim.warmup_ratio=0, "
        "or optim.warmup_steps=null",
    ),
    ({"resume": "auto"}, "resume=auto needs run_dir, the folder to go on in"),
    ({"resume": "runs/old"}, "resume=runs/old needs run_dir, the folder to go on in"),
]


def test_a_mixture_is_checked_source_by_source() -> None:
    mix: dict[str, Any] = {
        "a": {"path": "a.jsonl", "weight": 1, "split": "train[:5%]"},
        "b": {"path": "b", "weight": 0.5},
    }
    config = read_config(tree_of(data__path=None, data__mix=mix), TrainConfig)
    assert config.data.mix is not None
    assert (config.data.mix["a"].weight, config.data.mix["b"].split) == (1.0, None)
    mix["b"] |= {"pth": "x", "weight": 0}
    assert problems_of(tree_of(data__path=None, data__mix=mix)) == [
        "unknown key data.mix.b.pth; did you mean data.mix?",
        "data.mix.b.weight=0: expected greater than 0",
    ]


@pytest.mark.parametrize(("changes", "problem"), CONFLICTS, ids=[problem for _, problem in CONFLICTS])
def test_keys_that_conflict_are_refused(changes: dict[str, Any], problem: str) -> None:
    assert problems_of(tree_of(**changes)) == [problem]


def test_all_conflicts_are_reported_at_once() -> None:
    tree = tree_of(train__eval_every=5, train__keep_best="loss", resume="auto", eval__samples=1)
    assert len(problems_of(tree)) == 4


def test_held_out_data_has_no_effect_in_an_evaluation_of_a_model() -> None:
    assert problems_of(tree_of("eval", data__eval=0.1), "eval") == [
        "data.eval has no effect in `dpo eval` of a model: name the rows to evaluate with data.path"
    ]
    assert read_config(tree_of("eval", data__eval=0.1, run="runs/a"), EvaluateConfig).run == "runs/a"


def test_a_generator_needs_something_to_answer() -> None:
    problem = "eval.generator=vllm has no effect without eval.samples: it answers so many"
    assert problems_of(tree_of("eval", eval__generator="vllm"), "eval") == [problem]
    config = read_config(tree_of("eval", eval__generator="vllm", eval__samples=2), EvaluateConfig)
    assert config.eval.generator == "vllm"


def test_nothing_is_sharded_in_an_evaluation() -> None:
    changes = {"reference__mode": "live", "reference__sharded": True}
    assert problems_of(tree_of("eval", **changes), "eval") == [
        "reference.sharded has no effect in `dpo eval`: nothing is sharded there"
    ]
    assert read_config(tree_of("eval", **changes, run="runs/a"), EvaluateConfig).run == "runs/a"


LORA = {"name": "lora", "r": 16, "alpha": 32, "dropout": 0.05, "target_modules": "all-linear"}


def test_each_kind_of_adapter_has_its_own_keys() -> None:
    adapter = read_config(tree_of(model__adapter=LORA), TrainConfig).model.adapter
    assert adapter.model_dump() == LORA
    assert adapter.quantization is None
    assert read_config(tree_of(), TrainConfig).model.adapter.model_dump() == {"name": "none"}
    for kind, more, held in (
        ("qlora", {"double_quant": True}, "nf4_double"),
        ("qlora", {"double_quant": False}, "nf4"),
        ("qlora_8bit", {}, "int8"),
    ):
        chosen = {**LORA, "name": kind, **more}
        assert read_config(tree_of(model__adapter=chosen), TrainConfig).model.adapter.quantization == held


@pytest.mark.parametrize(
    ("adapter", "problem"),
    [
        (
            {**LORA, "double_quant": True},
            "unknown key model.adapter.double_quant: model/adapter=lora makes no use of double_quant; its keys are r, "
            "alpha, dropout, target_modules",
        ),
        (
            {"name": "none", "r": 4},
            "unknown key model.adapter.r: model/adapter=none makes no use of r; its keys are none",
        ),
        ({**LORA, "rank": 4}, "unknown key model.adapter.rank; did you mean model.adapter.r?"),
        ({**LORA, "r": 0}, "model.adapter.r=0: expected greater than 0"),
        ({**LORA, "dropout": 1.0}, "model.adapter.dropout=1.0: expected less than 1"),
        (
            {**LORA, "name": "lorra"},
            "model.adapter.name=lorra: expected one of none, existing, lora, dora, rslora, qlora_8bit, qlora",
        ),
    ],
)
def test_wrong_keys_of_an_adapter(adapter: dict[str, Any], problem: str) -> None:
    assert problems_of(tree_of(model__adapter=adapter)) == [problem]


def test_a_new_adapter_has_no_effect_in_an_evaluation() -> None:
    (problem,) = problems_of(tree_of("eval", model__adapter=LORA), "eval")
    assert problem.startswith("model/adapter=lora has no effect in `dpo eval`")
    assert read_config(tree_of("eval", model__adapter=LORA, run="a-run"), EvaluateConfig)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"reference__path": "x"}, "reference.path has no effect with reference.mode=adapter_off"),
        ({"reference__cache_dir": "x"}, "reference.cache_dir has no effect with reference.mode=adapter_off"),
    ],
)
def test_what_has_no_effect_with_the_adapter_off(changes: dict[str, Any], problem: str) -> None:
    (found,) = problems_of(tree_of(model__adapter=LORA, reference__mode="adapter_off", **changes))
    assert found.startswith(problem)


def test_a_configuration_cannot_be_changed_afterwards() -> None:
    config = read_config(tree_of(), TrainConfig)
    with pytest.raises(ValueError, match="frozen"):
        config.loss.beta = 0.5


def test_nearest_key_of_another_command() -> None:
    assert nearest_key("output_dir", EvaluateConfig) == "; did you mean output?"
    assert nearest_key("qqqq", EvaluateConfig) == ""


def test_checking_needs_neither_torch_nor_hydra() -> None:
    code = (
        "import sys, dpo_cli.config; print(sorted({'torch', 'transformers', 'hydra', 'deepspeed'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
