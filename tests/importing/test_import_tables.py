"""Every option of the other tools has its place in the tables, with the default it has there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.config import TrainConfig, valid_keys
from dpo_cli.importing.axolotl_options import AXOLOTL, DATASET, NAMES, PLUGINS
from dpo_cli.importing.huggingface import OPTIMISERS, SCHEDULES
from dpo_cli.importing.llamafactory_options import LLAMAFACTORY, OWN
from dpo_cli.importing.losses import CPO_LOSSES, DIVERGENCES, DPO_LOSSES, KTO_LOSSES
from dpo_cli.importing.options import Table, lost, table
from dpo_cli.importing.trl_options import CPO, DPO, KTO, OLD_TRAINING, OLD_TRL, ORPO, SCRIPT, TRAINING

TABLES = {
    "TrainingArguments": TRAINING,
    "DPOConfig": DPO,
    "KTOConfig": KTO,
    "CPOConfig": CPO,
    "ORPOConfig": ORPO,
    "script": SCRIPT,
}


def defaults(options: Table) -> dict[str, Any]:
    return {name: option.default for name, option in options.items()}


@pytest.mark.parametrize("name", TABLES)
def test_every_option_of_trl_is_in_its_table(name: str, installed_trl: dict[str, dict[str, Any]]) -> None:
    assert defaults(TABLES[name]) == installed_trl[name]


def test_old_options_are_not_current_ones(installed_trl: dict[str, dict[str, Any]]) -> None:
    """An option that came back would have two meanings. Some are old in one trainer and current in another."""
    assert not OLD_TRAINING.keys() & installed_trl["TrainingArguments"].keys()
    assert not OLD_TRL.keys() & (installed_trl["DPOConfig"].keys() | installed_trl["script"].keys())


@pytest.mark.parametrize(
    ("file", "options"), [("axolotl_options.json", AXOLOTL), ("llamafactory_options.json", OWN | OLD_TRAINING)]
)
def test_every_option_of_the_others_is_in_its_table(file: str, options: Table) -> None:
    """Against lists that were read from their schemas; the commit stands in them."""
    listed = json.loads((Path(__file__).parent / file).read_text(encoding="utf-8"))["options"]
    assert len(listed) > 200
    named = {name: options[name].default for name in listed if name in options}
    # What only transformers had, and LLaMA-Factory has again.
    again = {"overwrite_output_dir": False}
    assert {name: value for name, value in listed.items() if name not in again} == {
        name: value for name, value in named.items() if name not in again
    }
    if options is AXOLOTL:
        assert listed.keys() == options.keys()


def test_plugins_add_options() -> None:
    assert not PLUGINS.keys() & AXOLOTL.keys()


@pytest.mark.parametrize(
    "options", [DPO, KTO, CPO, ORPO, SCRIPT, OLD_TRAINING | OLD_TRL, AXOLOTL, PLUGINS, LLAMAFACTORY]
)
def test_an_option_that_is_not_converted_has_a_reason(options: Table) -> None:
    assert all(option.note for option in options.values() if not option.ours)
    assert not any(character in option.note for option in options.values() for character in "|\n")


def test_a_name_stands_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        table(lost("x", a=1), lost("y", a=2))


def test_names_lead_to_options() -> None:
    assert set(NAMES.values()) <= AXOLOTL.keys()
    assert {"type", "ds_type", "field_messages"} <= DATASET.keys()


@pytest.mark.parametrize("options", [*TABLES.values(), OLD_TRAINING | OLD_TRL, AXOLOTL, LLAMAFACTORY])
def test_what_an_option_becomes_is_a_key_of_ours(options: Table) -> None:
    """Or a section: the keys of losses and optimisers are checked where experiments are composed."""
    keys = set(valid_keys(TrainConfig))
    sections = {"loss", "optim", "reference"}
    for option in options.values():
        for key in filter(None, option.ours.split(", ")):
            assert key in keys or key.partition(".")[0] in sections, option.name


def test_losses_optimisers_and_schedules_are_ones_of_ours() -> None:
    """By the files that choose them."""
    configs = Path(__file__).parents[2] / "configs"
    losses = {file.stem for file in (configs / "loss").glob("*.yaml")}
    assert {*DPO_LOSSES.values(), *CPO_LOSSES.values(), *KTO_LOSSES, "alphapo", "orpo", "sum"} <= losses
    assert set(OPTIMISERS.values()) <= {file.stem for file in (configs / "optim").glob("*.yaml")}
    assert set(DIVERGENCES.values()) == {"reverse_kl", "forward_kl", "js", "alpha"}
    assert "constant" in SCHEDULES.values()
