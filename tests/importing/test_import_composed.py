"""Whole files: each converts, composes with our own configuration, and is the run that it was."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from dpo_cli import launch
from dpo_cli.compose import config_folder, run_command
from dpo_cli.config import TrainConfig
from dpo_cli.data.tokenize import cut
from dpo_cli.importing import import_config

FIXTURES = Path(__file__).parent / "fixtures"
FILES = sorted(file for file in FIXTURES.rglob("*") if file.suffix in (".yaml", ".yml", ".json"))
NAMES = ["-".join(file.relative_to(FIXTURES).with_suffix("").parts) for file in FILES]
TRAINER = {"trl-orpo": "orpo"}
"""Which can't be guessed."""
GIVEN = {"path": "some.jsonl", "eval": "held_out.jsonl"}
"""What is given for places to fill in, by the ends of their keys."""


@pytest.fixture
def compose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A file of options as what ``dpo train`` would run: converted, composed, checked; full keys and their values."""
    found: list[TrainConfig] = []

    def instead(command: str, config: TrainConfig) -> int:
        assert command == "train"
        found.append(config)
        return 0

    monkeypatch.setattr(launch, "run_once", instead)

    def composed(file: Path, trainer: str | None = None) -> dict[str, Any]:
        text, _ = import_config(file, trainer=trainer, processes=2, heading=[])
        (tmp_path / "experiment").mkdir()
        (tmp_path / "experiment" / "it.yaml").write_text(text, encoding="utf-8")
        given = yaml.safe_load(text)
        more = [f"{key}={GIVEN[key.rpartition('.')[2]]}" for key, value in leaves(given).items() if value == "???"]
        assert run_command("train", ["--config-dir", str(tmp_path), "+experiment=it", *more]) == 0
        ran = leaves(found.pop().model_dump(mode="json"))
        for key, value in leaves(given).items():  # what the file says is what is run
            assert key == "defaults" or value == "???" or "${" in str(value) or ran[key] == value, key
        return ran

    return composed


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Full keys and their values."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_converted_file_composes(name: str, compose) -> None:
    """Every key in it is one of ours, of the right type and range, and is what would run."""
    assert compose(FILES[NAMES.index(name)], TRAINER.get(name))


def test_a_file_that_says_nothing_is_trls_own_run(compose, installed_trl: dict[str, dict[str, Any]]) -> None:
    trl = installed_trl["saved"]
    ours = compose(FIXTURES / "trl" / "minimal.yaml")
    assert ours["optim.lr"] == trl["learning_rate"]
    assert ours["optim.betas"] == [trl["adam_beta1"], trl["adam_beta2"]]
    assert ours["optim.eps"] == trl["adam_epsilon"]
    assert ours["optim.weight_decay"] == trl["weight_decay"]
    assert ours["optim.schedule"] == trl["lr_scheduler_type"]
    assert ours["optim.warmup_ratio"] == trl["warmup_steps"] == 0
    assert ours["optim.max_grad_norm"] == trl["max_grad_norm"]
    assert ours["train.epochs"] == trl["num_train_epochs"]
    assert ours["train.max_steps"] is None
    assert trl["max_steps"] == -1
    processes = 2
    assert ours["train.batch_size"] == (
        trl["per_device_train_batch_size"] * trl["gradient_accumulation_steps"] * processes
    )
    assert ours["train.precision"] == ("bf16" if trl["bf16"] else "fp32")
    assert ours["data.max_length"] == trl["max_length"]
    assert ours["data.eval"] is None
    assert trl["eval_strategy"] == "no"
    assert ours["loss.beta"] == trl["beta"]
    assert ours["loss.label_smoothing"] == trl["label_smoothing"]
    assert ours["seed"] == trl["seed"]
    assert trl["loss_type"] == ["sigmoid"]


def test_a_saved_config_is_the_run_that_it_was(compose) -> None:
    saved = json.loads((FIXTURES / "trl" / "args.json").read_text(encoding="utf-8"))
    ours = compose(FIXTURES / "trl" / "args.json")
    assert ours["optim.lr"] == saved["learning_rate"] == 2e-6
    assert ours["train.precision"] == "fp32"
    assert ours["run_dir"] == saved["output_dir"]
    assert ours["tracker.mode"] == "disabled"


def test_a_chat_run_of_trl(compose) -> None:
    ours = compose(FIXTURES / "trl" / "dpo.yaml")
    expected = {
        "model.path": "Qwen/Qwen2.5-0.5B-Instruct",
        "data.path": "trl-lib/ultrafeedback_binarized",
        "data.split": "train",
        "data.eval": "test",
        "data.max_length": 2048,
        "data.max_prompt_length": 2047,
        "loss.beta": 0.05,
        "optim.lr": 5e-7,
        "optim.schedule": "cosine",
        "optim.warmup_ratio": 0.1,
        "train.epochs": 1,
        "train.batch_size": 32,
        "train.eval_every": 50,
        "train.log_every": 25,
        "train.save_every": None,
        "tracker.run_name": "qwen-dpo",
        "run_dir": "runs/qwen-dpo",
    }
    assert {key: ours[key] for key in expected} == expected


def test_the_handbooks_zephyr_is_our_recipe(compose) -> None:
    """configs/experiment/zephyr.yaml was written by hand from the same file."""
    ours = compose(FIXTURES / "trl" / "handbook.yaml")
    recipe = leaves(yaml.safe_load((config_folder() / "experiment" / "zephyr.yaml").read_text(encoding="utf-8")))
    same = ["model.path", "data.path", "data.split", "data.eval", "data.max_length", "data.max_prompt_length"]
    same += ["loss.beta", "optim.lr", "optim.schedule", "optim.warmup_ratio", "train.epochs", "train.precision"]
    same += ["train.eval_every", "train.save_every", "seed"]
    assert {key: ours[key] for key in same} == {key: recipe[key] for key in same}
    assert ours["train.batch_size"] * 4 == recipe["train.batch_size"]  # 2 processes here, 8 there
    assert ours["train.keep_best"] == "loss"


def test_axolotls_defaults(compose) -> None:
    """Those of its schema, and what it hands on to transformers: 3 % warm-up, cosine, 512 tokens, one epoch."""
    ours = compose(FIXTURES / "axolotl" / "defaults.yml")
    expected = {
        "model.chat_template": "chatml",
        "data.path": "data/pairs.jsonl",
        "data.max_length": 512,
        "data.on_too_long": "drop",
        "loss.beta": 0.1,
        "optim.lr": 1e-6,
        "optim.schedule": "cosine",
        "optim.warmup_ratio": 0.03,
        "optim.weight_decay": 0.0,
        "optim.max_grad_norm": 1.0,
        "train.epochs": 1,
        "train.batch_size": 8,
        "train.precision": "auto",
        "seed": 42,
    }
    assert {key: ours[key] for key in expected} == expected


def test_rows_are_cut_where_trl_cuts_them(compose) -> None:
    """TRL keeps the first ``max_length`` tokens of prompt and answer, and leaves out what has no answer then."""
    ours = compose(FIXTURES / "trl" / "minimal.yaml")
    length, longest = ours["data.max_length"], ours["data.max_prompt_length"]
    random = Random(0)
    for _ in range(200):
        prompt = list(range(random.randrange(1, length)))
        answers = [[-number] * random.choice((1, 5, 700, 1500)) for number in (1, 2)]
        kept, cut_answers = cut(prompt, answers, length, longest, None)
        for answer, cut_answer in zip(answers, cut_answers, strict=True):
            assert kept + cut_answer == (prompt + answer)[:length]


def test_a_name_is_a_name_and_nothing_else(tmp_path: Path, compose) -> None:
    """Not an interpolation, which would put a secret of the environment in its place; not a class to call."""
    given = {"model_name_or_path": "${oc.env:HOME}", "dataset_name": "x\ny: 1", "_target_": "os.system", "beta": 0.1}
    file = tmp_path / "given.yaml"
    file.write_text(yaml.safe_dump(given), encoding="utf-8")
    ours = compose(file)
    assert ours["model.path"] == "${oc.env:HOME}"
    assert ours["data.path"] == "x\ny: 1"
