"""A checkpoint is gone on from under the settings it was made with, and others are named first."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, cast

import pytest
from helpers.configs import composed

from dpo_cli.commands.resume import check_same_run, update_settings
from dpo_cli.config import TrainConfig
from dpo_cli.errors import DpoError
from dpo_cli.training.checkpoint import TrainingState

CONFIG = cast(TrainConfig, composed("train", ["model.path=m", "data.path=d"]))
SETTINGS = update_settings(CONFIG, "fp32", {"model.safetensors": "a" * 64})
FIXED = {"loss.name", "optim.name", "reference.update"}
"""Settings that weights and moments only fit the same of."""


def keys() -> list[str]:
    """Of all settings, those of sections with their section."""
    return [
        name
        for key, value in SETTINGS.items()
        for name in ([f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [key])
    ]


def state(changed: str | None = None, data: str = "b" * 64) -> TrainingState:
    """Of a checkpoint made under other settings in one key."""
    settings: dict[str, Any] = deepcopy(SETTINGS)
    if changed is not None:
        section, _, inner = changed.partition(".")
        place, name = (settings, changed) if changed in settings else (settings[section], inner)
        place[name] = "another"
    return TrainingState(7, data, settings)


def check(found: TrainingState, *may_differ: str) -> list[str]:
    return check_same_run(found, "b" * 64, SETTINGS, may_differ)


def test_the_same_settings_are_taken() -> None:
    assert check(state()) == []
    assert check(state(), "optim.lr", "data") == []


@pytest.mark.parametrize("key", keys())
def test_every_setting_counts_and_may_be_named(key: str) -> None:
    with pytest.raises(DpoError, match=f"{key} was another, now") as refused:
        check(state(key))
    assert ("resume_force=" in str(refused.value)) == (key not in FIXED)
    if key in FIXED:
        with pytest.raises(DpoError, match=f"{key} was another, now" if "." in key else "resume_force names"):
            check(state(key), key.partition(".")[0])
        return
    assert f"resume_force=[{key}]" in str(refused.value)
    for named in (key, key.partition(".")[0]):
        assert [said.split(" was ")[0] for said in check(state(key), named)] == [key]
    other = "seed" if key != "seed" else "optim.lr"
    with pytest.raises(DpoError, match=f"{key} was another"):
        check(state(key), other)


def test_rows_count_and_may_be_named() -> None:
    with pytest.raises(DpoError, match=r"rows .* were cccccccccccc, now bbbbbbbbbbbb.*resume_force=\[data\]"):
        check(state(data="c" * 64))
    assert check(state(data="c" * 64), "data")[0].startswith("rows (")


@pytest.mark.parametrize("key", ["optim.rate", "lr", "optim.l", "optim.name", "", "run_dir"])
def test_a_name_that_is_none_of_them_is_refused(key: str) -> None:
    with pytest.raises(DpoError, match=r"resume_force names .*; expected some of data, loss\."):
        check(state("optim.lr"), "optim.lr", key)


def test_with_an_adapter_its_shape_and_the_model_under_it_stay(tmp_path) -> None:
    with pytest.raises(DpoError, match=r"adapter\.rank was 8, now 16") as refused:
        check_same_run(
            TrainingState(7, "b", {**SETTINGS, "adapter": {"rank": 8}}),
            "b",
            {**SETTINGS, "adapter": {"rank": 16}},
            ["optim"],
        )
    assert "resume_force" not in str(refused.value)
