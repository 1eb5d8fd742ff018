"""Runs of the real command in which processes share rows are those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.runs import SHARD_ALL, Place, assert_same_curve, record, steps
from safetensors.torch import load_file

SHARED: dict[str, object] = {"launch.num_processes": 2, "engine.sequence_parallel": 2}
SHARDED: dict[str, object] = {"engine.zero_stage": 3, "engine.deepspeed": SHARD_ALL}
RESUME: dict[str, object] = {"resume": "auto"}


def test_two_processes_share_rows(place: Place, whole: Path, tmp_path: Path) -> None:
    """And score the reference so."""
    run_dir = tmp_path / "run"
    ended = place.try_run(run_dir, SHARED, cache=tmp_path / "cache")
    assert ended.code == 0, ended.err
    assert_same_curve(run_dir, whole, 2e-6)
    assert "each row shared by 2 processes (tokens differ from plain sequences by at most" in ended.err
    assert "12 updates of 6 pairs (the last of each epoch smaller: 4), 2 processes, 2 to a row, ZeRO 2" in ended.err
    found, expected = (record(folder)["reference"] for folder in (run_dir, whole))
    assert found["tokens_computed"] == expected["tokens_computed"] + expected["tokens_read"] > 0
    assert found["identity"] == expected["identity"]


def stored(cache: Path) -> dict[bytes, torch.Tensor]:
    """Log-probs by answer, each of which must be there once."""
    found: dict[bytes, torch.Tensor] = {}
    for chunk in (cache / "reference").rglob("chunk-*"):
        tensors = load_file(chunk)
        start = 0
        for key, end in zip(tensors["keys"], tensors["ends"].tolist(), strict=True):
            assert bytes(key.tolist()) not in found
            found[bytes(key.tolist())] = tensors["logps"][start:end]
            start = end
    return found


def test_the_reference_pass_gives_the_same_log_probs(place: Place, tmp_path: Path) -> None:
    """Of weights that the processes share out as well."""
    some = ("model.path", "data.path", "data.eval", "train.precision", "train.tokens_per_micro_batch")
    arguments = {name: place.arguments()[name] for name in some}
    for name, changes in (("alone", {}), ("shared", {**SHARED, **SHARDED})):
        ended = place.dpo("precompute-ref", {**arguments, **changes}, cache=tmp_path / name)
        assert ended.code == 0, ended.err
    found, expected = stored(tmp_path / "shared"), stored(tmp_path / "alone")
    assert found.keys() == expected.keys()
    assert len(found) == 54  # two answers to each of 27 prompts
    assert all(float((found[key] - tensor).abs().max()) < 2e-5 for key, tensor in expected.items())


@pytest.mark.parametrize(
    ("processes", "size", "problem"),
    [
        (2, 4, "engine.sequence_parallel=4: so many processes share each row, and there are 2"),
        (3, 3, "engine.sequence_parallel=3: it does not divide the 4 attention heads of llama"),
    ],
)
def test_what_does_not_come_out_even_is_refused(
    place: Place, tmp_path: Path, processes: int, size: int, problem: str
) -> None:
    run_dir = tmp_path / "run"
    ended = place.try_run(run_dir, {"launch.num_processes": processes, "engine.sequence_parallel": size})
    assert ended.code == 2
    assert f"dpo: {problem}" in ended.err
    assert not run_dir.exists()


@pytest.mark.slow
def test_a_run_goes_on_with_rows_shared_otherwise(place: Place, whole: Path, tmp_path: Path) -> None:
    """Begun by two processes that share rows, gone on with by one alone, ended by two again."""
    run_dir = tmp_path / "run"
    assert place.try_run(run_dir, SHARED, fault="micro-batch:5.1=term").code == 75
    assert steps(run_dir)[-1] == 5
    assert place.try_run(run_dir, RESUME, fault="micro-batch:9.1=term").code == 75
    assert steps(run_dir)[-1] == 9
    assert_same_curve(place.run(run_dir, {**SHARED, **RESUME}), whole, 2e-6)


OTHERS: dict[str, dict[str, object]] = {
    "adapter": {"model/adapter": "lora", "reference.mode": "adapter_off", "model.adapter.dropout": 0.1},
    "live": {"reference.mode": "live", "reference.update_every": 2, "reference.update_mix": 0.5},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_reference_in_memory_shares_rows_as_well(place: Place, tmp_path: Path, name: str) -> None:
    """With the adapter switched off; or a second model that follows, its weights shared out, without groups."""
    changes = {**OTHERS[name], "train.epochs": 1, "train.save_every": None}
    shared = SHARED if name == "adapter" else {**SHARED, **SHARDED}
    plain = {} if name == "adapter" else {"model.attention": "plain"}
    found = place.run(tmp_path / "shared", {**changes, **plain, **shared})
    expected = place.run(tmp_path / "alone", {**changes, **plain})
    assert_same_curve(found, expected, 4e-6, of_weights=1e-4)
