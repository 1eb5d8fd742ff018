"""docs/migrating.md says what the converters do."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
from helpers.scripts import load_script

from dpo_cli.importing.losses import CPO_LOSSES, DPO_LOSSES, KTO_LOSSES

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs" / "migrating.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("make_migrating_tables")


def test_the_tables_are_the_converters(script: ModuleType) -> None:
    """If not: python scripts/make_migrating_tables.py."""
    assert script.with_tables(DOCUMENT) == DOCUMENT
    assert script.with_tables(DOCUMENT.replace("| `beta` |", "| `betta` |")) == DOCUMENT


def test_every_table_has_its_place(script: ModuleType) -> None:
    assert set(re.findall(r"<!-- table: (\S+) -->", DOCUMENT)) == script.TABLES.keys()


def test_every_option_is_in_the_document(script: ModuleType) -> None:
    for options in script.TABLES.values():
        for name in options:
            assert f"`{name}`" in DOCUMENT, name


def test_every_loss_is_in_the_document() -> None:
    section = DOCUMENT.partition("## TRL's losses")[2].partition("\n## ")[0]
    words = set(re.findall(r"\w+", section))
    assert {*DPO_LOSSES, *CPO_LOSSES, *KTO_LOSSES} <= words
    for name in DPO_LOSSES.keys() - set(DPO_LOSSES.values()):
        assert f"`loss={DPO_LOSSES[name]}`" in section, name
