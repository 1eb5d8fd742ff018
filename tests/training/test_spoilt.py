"""A model that the last update has spoilt, wholly or in part, does not become ``final/``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import loss_cases, runs, tokenizers
from helpers.configs import composed
from helpers.families import FAMILIES, build
from helpers.process_group import one_process_group

from dpo_cli.commands import train, train_run
from dpo_cli.data.collate import flat_length
from dpo_cli.data.plan import Step
from dpo_cli.data.types import Group, Pair
from dpo_cli.errors import NumericsError
from dpo_cli.model.attention import GROUP_ATTENTION
from dpo_cli.model.policy import Policy
from dpo_cli.objective import Objective
from dpo_cli.training import guards, loop
from dpo_cli.training.step import Update

RARE = 23
"""A token of one group."""


@pytest.fixture(scope="module", autouse=True)
def _one_process_group() -> Iterator[None]:
    with one_process_group():
        yield


def group(number: int, token: int = 3) -> Group:
    answers = tuple(np.array([token, 4, 5 + side], dtype=np.int32) for side in range(2))
    return Group(np.array([1, 2], dtype=np.int32), answers, (Pair(0, 1),), f"row {number}")


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("budget", [1, 14, 1000])
def test_one_row_of_many_is_enough(budget: int, share: bool) -> None:
    model = build(FAMILIES["llama"](), GROUP_ATTENTION if share else "eager", torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[RARE] = float("nan")
    policy: Any = Policy(model, precision="fp32", groups=share)
    groups = [group(number, RARE if number == 6 else 3) for number in range(12)]
    objective = Objective(groups, loss_cases.loss("dpo"), None, share)

    def look(some: list[Group]) -> None:
        guards.check_finite(policy, some, objective, lambda one: flat_length(one, share=share), budget)

    look(groups[:6] + groups[7:])
    with pytest.raises(NumericsError, match=r"log-probs are not finite, of some of .*row 6\b.*not written") as caught:
        look(groups)
    if budget == 1:  # a micro-batch each
        assert "of some of row 6:" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_every_weight_is_looked_at(value: float) -> None:
    weights = [("a", torch.zeros(3)), ("empty", torch.zeros(0)), ("b", torch.ones(2, 5)), ("c", torch.ones(4))]
    assert [name for name, _ in guards.only_finite(iter(weights))] == ["a", "empty", "b", "c"]
    weights[2][1][1, 3] = value
    left = guards.only_finite(iter(weights))
    assert [next(left)[0], next(left)[0]] == ["a", "empty"]
    with pytest.raises(NumericsError, match="not finite after the last update, of b: the model is spoilt"):
        next(left)


def arguments(folder: Path, *more: str) -> list[str]:
    """Of a run on a tiny model, made for it."""
    runs.make_model(folder / "model", runs.llama(), tokenizers.quickstart())
    runs.write_rows(folder / "train.jsonl", runs.make_rows(8))
    return [
        *(f"model.path={folder / 'model'}", f"data.path={folder / 'train.jsonl'}", f"run_dir={folder / 'run'}"),
        *("data.workers=1", "tracker.mode=disabled", "train.precision=fp32", "train.batch_size=4"),
        *("train.activation_checkpointing=none", "train.save_every=1", *more),
    ]


def spoil(weight: Any, row: int) -> None:
    with torch.no_grad():
        weight[row, 2] = float("nan")


def test_no_checkpoint_is_made_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One to go back to is to be sound, also where no row has shown yet that it is not."""
    monkeypatch.setenv("DPO_CACHE", str(tmp_path / "cache"))

    def step_and_spoil(engine: Any, step: Step, *args: Any) -> Update:
        update = train_step(engine, step, *args)
        if len(known := list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 2:
            assert {path.name for path in known} == {"step-1", "step-2"}
            spoil(dict(engine._module.named_parameters())["model.lm_head.weight"], -1)
        return update

    train_step = loop.train_step
    monkeypatch.setattr(loop, "train_step", step_and_spoil)
    words = arguments(tmp_path, "train.max_steps=4", "train.epochs=2")
    with pytest.raises(NumericsError, match=r"weights are not finite after .*, of .*not written.*step-2$"):
        train.run(composed("train", words))
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"step-1", "step-2"}


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_nothing_of_it_is_written(adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here in weights that no row touches."""
    monkeypatch.setenv("DPO_CACHE", str(tmp_path / "cache"))

    def fit_and_spoil(engine: Any, plan: Any, objective: Objective, *args: Any, **options: Any) -> int:
        done = fit(engine, plan, objective, *args, **options)
        weights = dict(engine._module.named_parameters())
        name = next(name for name in weights if ("lora_A" if adapter == "lora" else "embed_tokens") in name)
        used = {int(token) for one in objective.groups for ids in (one.prompt_ids, *one.answers) for token in ids}
        row = 0 if adapter == "lora" else max(set(range(len(weights[name]))) - used)
        spoil(weights[name], row)
        return done

    fit = train_run.fit
    monkeypatch.setattr(train_run, "fit", fit_and_spoil)
    if adapter == "lora":  # every row goes through all of an adapter
        monkeypatch.setattr(train_run, "check_finite", lambda *args: None)
    words = arguments(tmp_path, f"model/adapter={adapter}", "train.max_steps=2")
    with pytest.raises(NumericsError, match=r"weights are not finite after .*, of .*not written.*step-1$"):
        train.run(composed("train", words))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("checkpoints", "config.yaml", "metrics.jsonl", "run.json")
    }
    assert runs.record(tmp_path / "run")["status"] == "failed"
    assert runs.record(tmp_path / "run")["exit_code"] == 76
