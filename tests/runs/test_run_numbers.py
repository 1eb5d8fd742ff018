"""A run whose numbers go bad ends, says where, and is not called done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.runs import Ended, Place, record
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def assert_numbers_went_bad(ended: Ended, run_dir: Path) -> str:
    """Exit code 76 and one line; the line."""
    assert ended.code == 76, ended.err
    assert "Traceback" not in ended.err
    assert record(run_dir)["status"] == "failed"
    assert record(run_dir)["exit_code"] == 76
    assert not (run_dir / "final").exists()
    line = ended.err.strip().splitlines()[-1]
    assert line.startswith("dpo: ")
    return line


WILD: dict[str, object] = {"optim.lr": 1e30, "optim.max_grad_norm": None, "train.eval_every": None}


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_rows(place: Place, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    line = assert_numbers_went_bad(place.try_run(run_dir, WILD), run_dir)
    assert "train.jsonl, line " in line
    assert "optim.lr" in line


@pytest.mark.slow
def test_on_two_processes_it_is_said_once(place: Place, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    ended = place.try_run(run_dir, {**WILD, "launch.num_processes": 2})
    assert_numbers_went_bad(ended, run_dir)
    assert ended.err.count("not finite") == 3  # updates, of which the third ends the run


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [True, False])
def test_a_last_update_that_spoils_the_model_is_no_success(place: Place, tmp_path: Path, held_out: bool) -> None:
    run_dir = tmp_path / "run"
    changes = {**WILD, "train.max_steps": 1}
    if not held_out:
        changes["data.eval"] = None
    assert_numbers_went_bad(place.try_run(run_dir, changes), run_dir)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "value"), [("cached", torch.inf), ("live", torch.nan)])
def test_a_model_that_is_not_finite_to_begin_with(place: Place, tmp_path: Path, mode: str, value: float) -> None:
    model = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(place.model).save_pretrained(model)
    AutoTokenizer.from_pretrained(place.model).save_pretrained(model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][3, 5] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    run_dir = tmp_path / "run"
    changes = {"model.path": model, "reference.mode": mode}
    assert_numbers_went_bad(place.try_run(run_dir, changes, cache=tmp_path / "cache"), run_dir)
    # Nothing that is not a number was kept for later runs.
    assert not list((tmp_path / "cache").rglob("chunk-*"))
