"""Spikes of the loss: told from what heavy tails do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from helpers.configs import composed

from dpo_cli.commands.hooks import RunHooks
from dpo_cli.config import TrainConfig
from dpo_cli.run_folder import RunRecord
from dpo_cli.tracking.console import Console
from dpo_cli.training.guards import Spikes
from dpo_cli.training.step import Update


def clean(seed: int, count: int = 1000) -> list[float]:
    """Losses of DPO's updates of eight comparisons, whose margins grow while the run goes on and have heavy tails."""
    draw = np.random.default_rng(seed)
    margins = np.linspace(0, 2, count)[:, None] + draw.standard_t(10, (count, 8))
    return list(np.logaddexp(0, -margins).mean(axis=1))


@pytest.mark.parametrize("seed", range(20))
def test_clean_runs_of_a_thousand_updates_have_none(seed: int) -> None:
    spikes = Spikes()
    assert [text for loss in clean(seed) if (text := spikes.look(loss))] == []


@pytest.mark.parametrize("place", [100, 500, 999])
def test_a_spike_is_told_with_its_numbers(place: int) -> None:
    losses = clean(0)
    before = losses[place - 100 : place]
    losses[place] = max(2.1 * max(before), np.mean(before) + 6.1 * np.std(before))
    spikes = Spikes()
    said = {number: text for number, loss in enumerate(losses) if (text := spikes.look(loss))}
    assert [*said] == [place]
    assert f"{losses[place]:.4g}; those of the 100 before it were {np.mean(before):.4g}" in said[place]
    assert f"deviation of {np.std(before):.2g}" in said[place]


def test_nothing_is_said_while_there_is_little_to_compare_with() -> None:
    spikes = Spikes()
    assert [spikes.look(loss) for loss in [*clean(0)[:99], 50.0]] == [None] * 100


def test_a_loss_that_hardly_varies_may_vary() -> None:
    spikes = Spikes()
    steady = [0.693147 + 1e-7 * (number % 2) for number in range(100)]
    assert [spikes.look(loss) for loss in [*steady, 0.70, 0.79]] == [None] * 102
    zero = Spikes()
    assert [zero.look(loss) for loss in [*100 * [0.0], 0.09]] == [None] * 101
    assert zero.look(0.2)


def test_a_run_says_its_first_spike_and_keeps_it(tmp_path: Path, capsys) -> None:
    (tmp_path / "run.json").write_text("{}")
    hooks = object.__new__(RunHooks)
    hooks.config, hooks.console = cast(TrainConfig, composed("train", ["model.path=m", "data.path=d"])), Console()
    hooks.record, hooks.spikes = RunRecord(tmp_path), Spikes()
    for step, loss in enumerate([*clean(0)[:150], 40.0, 90.0], 1):
        hooks.updated(step, Update(loss, norm=1.0, state={}))
    [alert] = json.loads((tmp_path / "run.json").read_text())["alerts"]
    assert (alert["step"], alert["name"]) == (151, "loss-spike")
    assert "after update 151: loss-spike: this update's loss is 40;" in " ".join(capsys.readouterr().err.split())
