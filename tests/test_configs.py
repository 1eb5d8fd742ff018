"""The configuration files that are shipped: each composes, each key is explained, none is without effect."""

from __future__ import annotations

import ast
import inspect
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import torch
from helpers.configs import composed
from omegaconf import OmegaConf
from pydantic import BaseModel

import dpo_cli
from dpo_cli import launch
from dpo_cli.compose import SCHEMAS, config_folder, run_command
from dpo_cli.config import EvaluateConfig, TrainConfig, sections, valid_keys
from dpo_cli.errors import ConfigError

CONFIGS = config_folder()
PACKAGE = Path(dpo_cli.__file__).parent
EXPERIMENTS = sorted((CONFIGS / "experiment").rglob("*.yaml"))
GROUPS = sorted(folder for folder in CONFIGS.iterdir() if folder.is_dir() and folder.name != "experiment")
OPTIONS = [
    f"{file.parent.relative_to(CONFIGS)}={file.stem}" for group in GROUPS for file in sorted(group.rglob("*.yaml"))
]
PRIMARY = sorted(name.replace("-", "_") for name in SCHEMAS)
GIVEN = ["model.path=some-model", "data.path=rows.jsonl"]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch):
    """Compose and check a command line as ``dpo`` does, and give back what would be run."""
    found: list[tuple[str, TrainConfig | EvaluateConfig]] = []

    def instead(command: str, config: TrainConfig | EvaluateConfig) -> int:
        found.append((command, config))
        return 0

    monkeypatch.setattr(launch, "run_once", instead)

    def compose(command: str, *words: str) -> TrainConfig | EvaluateConfig:
        assert run_command(command, list(words)) == 0
        (ran, config) = found.pop()
        assert ran == command
        assert not found
        return config

    return compose


def test_the_folder_is_the_checkouts() -> None:
    assert Path(__file__).parents[1] / "configs" == CONFIGS


def test_every_experiment_is_found() -> None:
    listed = [path for path in (CONFIGS / "experiment").rglob("*") if path.is_file()]
    assert len(EXPERIMENTS) == len(listed) > 0
    assert {path.suffix for path in listed} == {".yaml"}


def commands_of(file: Path) -> list[list[str]]:
    """The command lines in the comment that opens a file; what stands after two blanks is a remark."""
    lines = [line.removeprefix("#").strip() for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    return [shlex.split(line.partition("  ")[0]) for line in lines if line.startswith("dpo ")]


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_an_experiment_opens_with_its_command(file: Path) -> None:
    package, first, *_ = file.read_text(encoding="utf-8").splitlines()
    assert package == "# @package _global_"
    name = file.relative_to(CONFIGS / "experiment").with_suffix("").as_posix()
    assert first.startswith(f"# dpo train +experiment={name}")
    for command in commands_of(file):
        assert command[:3] == ["dpo", "train", f"+experiment={name}"]


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_an_experiments_commands_compose(file: Path, typed) -> None:
    commands = [command for command in commands_of(file) if "-m" not in command]  # sweeps: see test_recipes.py
    for _, command, *words in commands:
        config = typed(command, *words)
        assert isinstance(config, TrainConfig)
        given = OmegaConf.load(file)
        given.pop("defaults", None)
        given.pop("hydra", None)
        overridden = [word.partition("=")[0] for word in words]
        assert_holds(config, given, overridden)


def assert_holds(section: BaseModel, given, overridden: list[str], prefix: str = "") -> None:
    """What the file says is what is run."""
    for name in given:
        key, value = f"{prefix}{name}", getattr(section, str(name))
        if isinstance(value, BaseModel):
            assert_holds(value, given[name], overridden, f"{key}.")
        elif key not in overridden and "${" not in str(OmegaConf.to_container(given, resolve=False)[name]):
            assert value == given[name], key


def test_the_quickstart_needs_nothing_from_outside(typed) -> None:
    config = typed("train", "+experiment=quickstart")
    assert Path(config.model.path, "config.json").is_file()
    assert Path(config.data.path).is_file()
    assert Path(config.data.eval).is_file()
    assert PACKAGE in Path(config.model.path).parents


def test_there_are_options_of_every_group() -> None:
    assert len(OPTIONS) >= len(GROUPS) > 0
    assert {group.name for group in GROUPS} == {
        name
        for schema in (TrainConfig, EvaluateConfig)
        for name, field in schema.model_fields.items()
        if sections(field.annotation) and name != "train"
    }


COMPOSED = [(command, option) for command in ("train", "eval") for option in OPTIONS]
# The others take the same groups by the same schema: the last option of each will do.
LAST = {option.partition("=")[0]: option for option in OPTIONS}.values()
COMPOSED += [(command, option) for command in ("precompute-ref", "inspect", "plan") for option in LAST]
COMPOSED += [("score", option) for option in OPTIONS if option.startswith(("model", "reference"))]


@pytest.mark.parametrize(("command", "option"), COMPOSED)
def test_every_option_composes(command: str, option: str) -> None:
    """By Hydra and the schema alone: nothing that the command does between is looked at."""
    if option.partition("=")[0] in SCHEMAS[command].model_fields:
        if option == "eval=harness" and command != "eval":
            with pytest.raises(ConfigError, match=r"eval\.tasks has no effect in `dpo train`"):
                composed(command, [option, *GIVEN])
            return
        needed = ["output=scored.jsonl"] if command == "score" else []
        if "=rpo_" in option:
            needed = ["data.margin=gap"]
        if option == "loss=sum":
            needed += ["+loss@loss.terms.dpo=dpo", "+loss.weights.dpo=1.0"]
        if option in ("judge=reward_model", "judge=openai"):
            needed = ["eval.samples=1", "reference.path=r", f"judge.{'path' if 'reward' in option else 'model'}=j"]
        assert isinstance(composed(command, [option, *GIVEN, *needed]), SCHEMAS[command])


def keys_of(tree, prefix: str = "") -> Iterator[str]:
    for name in tree:
        yield f"{prefix}{name}"
        if OmegaConf.is_dict(tree._get_node(name)):
            yield from keys_of(tree[name], f"{prefix}{name}.")


@pytest.mark.parametrize("command", SCHEMAS)
def test_every_key_of_the_schema_has_a_default_in_yaml(command: str) -> None:
    """Looked up in the files themselves, so that a default given nowhere but in Python would be found out."""
    found: set[str] = set()
    names = [f"{command.replace('-', '_')}.yaml", *([] if command == "eval" else ["base.yaml"])]
    for file in [CONFIGS / name for name in names]:
        found |= set(keys_of(OmegaConf.load(file)))
    for group in GROUPS:
        for file in sorted(group.rglob("*.yaml")):
            tree = OmegaConf.load(file)
            prefix = ".".join(file.parent.relative_to(CONFIGS).parts)
            if group.name in SCHEMAS[command].model_fields:
                found |= {prefix, *keys_of(tree, f"{prefix}.")}
    found.add("loss.terms")  # put together from the losses' own files
    assert set(valid_keys(SCHEMAS[command])) - found == set()
    assert all(field.is_required() for _, field in fields(SCHEMAS[command]))


def fields(schema: type[BaseModel]) -> Iterator[tuple[str, object]]:
    for name, field in schema.model_fields.items():
        yield name, field
        for section in sections(field.annotation):
            yield from fields(section)


def readers() -> dict[str, set[str]]:
    """Attributes read anywhere but in config.py, and of what: ``beta`` of ``loss`` for ``config.loss.beta``. The
    losses' parameters count as read of ``loss``, which they are given whole, and so do those of optimizers."""
    optimizers = (torch.optim.AdamW, torch.optim.RMSprop)
    found = {name: {"optim"} for optimizer in optimizers for name in inspect.signature(optimizer).parameters}
    for file in PACKAGE.rglob("*.py"):
        if file == PACKAGE / "config.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                name = getattr(owner, "attr", None) or getattr(owner, "id", "")
                found.setdefault(node.attr, set()).add(name)
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                found.setdefault(str(node.slice.value), set()).add(ast.unparse(node.value).rpartition(".")[2])
            elif isinstance(node, ast.arg) and file.parent.name == "losses":
                found.setdefault(node.arg, set()).add("loss")
    return found


def test_no_knob_is_dead() -> None:
    """Each is read, by the name of its section or by what a section is called where it is passed on."""
    read = readers()
    assert "no_such_knob" not in read
    for schema in (TrainConfig, EvaluateConfig):
        for section, field in schema.model_fields.items():
            models = sections(field.annotation)
            if not models:
                assert "config" in read[section], section
                continue
            for name, knob in [item for model in models for item in model.model_fields.items()]:
                if get_origin(knob.annotation) is Literal and len(get_args(knob.annotation)) == 1:
                    continue  # the group's only option, by name: there is nothing to choose yet
                assert read.get(name, set()) & {section, "config", "settings", "modifiers"}, f"{section}.{name}"


def shipped() -> list[Path]:
    return sorted(path for path in CONFIGS.rglob("*.yaml") if "experiment" not in path.parts)


@pytest.mark.parametrize("file", shipped(), ids=lambda file: str(file.relative_to(CONFIGS)))
def test_every_key_is_explained(file: Path) -> None:
    """A comment stands above each key, or above the few that belong together."""
    skipped = False  # the defaults list and Hydra's own section
    since = 100  # keys since the last comment
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        if line.lstrip().startswith("#"):
            since = 0
            continue
        if not line.startswith((" ", "-")):
            skipped = line.startswith(("defaults:", "hydra:"))
            if line.rstrip().endswith(":"):  # a section; its keys are what counts
                continue
        if not skipped:
            since += 1
            assert since <= 4, line


def test_there_is_a_primary_file_for_each_command() -> None:
    assert set(PRIMARY) <= {file.stem for file in CONFIGS.glob("*.yaml")}
