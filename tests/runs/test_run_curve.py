"""One curve, whatever way it is computed: reference, micro-batches, processes, ZeRO stages, attention, precision."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.runs import (
    EPOCH,
    SHARD_ALL,
    UPDATES,
    Place,
    assert_same_bits,
    assert_same_curve,
    distance,
    evaluations,
    make_rows,
    metrics,
    record,
    saved,
    steps,
    updates,
    weights,
    write_rows,
)
from safetensors.torch import load_file


def test_the_first_update_starts_at_ln_2_and_zero_margins(whole: Path) -> None:
    assert abs(record(whole)["zero_margin"]["gap"]) <= 1e-6
    first, at_start = updates(whole)[0], evaluations(whole)[0]
    assert at_start["step"] == 0
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert at_start["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert abs(first[name]) <= 1e-5
        assert abs(at_start[f"eval/{name}"]) <= 1e-5
    assert first["rewards/accuracies"] == 0.5


def test_the_usual_run_is_a_demanding_one(place: Place, whole: Path) -> None:
    """Or the comparisons below would prove little: weights move, clipping bites at times, losses leave ln 2."""
    lines = updates(whole)
    assert len(lines) == UPDATES
    assert [line["epoch"] for line in lines] == pytest.approx([(n + 1) / EPOCH for n in range(UPDATES)])
    assert distance(weights(whole), load_file(place.model / "model.safetensors")) > 1e-2
    assert min(line["loss"] for line in lines) < 0.6
    assert [line["step"] for line in evaluations(whole)] == [0, 4, 8, 12]


def test_the_same_seed_is_the_same_run_to_the_bit_whatever_is_looked_at(place: Place, whole: Path, tmp_path) -> None:
    """Evaluations, samples and checkpoints leave no trace in the updates. Of checkpoints, the newest and the best
    remain."""
    changes = {"train.save_every": 1, "train.eval_every": 1, "train.keep_best": "logps/chosen"}
    changes |= {"train.sample_every": 1, "eval.samples": 3, "eval.max_new_tokens": 6, "train.stop.kl": 1e9}
    again = place.run(tmp_path / "again", changes)
    assert updates(again) == updates(whole)
    assert_same_bits(weights(again), weights(whole))
    assert_same_bits(saved(again, 10), saved(whole, 10))
    by_step = {line["step"]: line for line in evaluations(again)}
    assert [by_step[line["step"]] for line in evaluations(whole)] == evaluations(whole)
    # Nothing is saved after the last update: final/ is that.
    best = max(range(1, UPDATES), key=lambda step: by_step[step]["eval/logps/chosen"])
    assert steps(again) == sorted({best, UPDATES - 2, UPDATES - 1})
    answers = [json.loads(line) for line in (again / "samples.jsonl").read_text().splitlines()]
    prompts = [[row["prompt"] for row in answers if row["step"] == step] for step in range(UPDATES + 1)]
    assert prompts == [prompts[0]] * (UPDATES + 1)
    assert len(prompts[0]) == 3
    kl = {line["step"]: line["samples/kl"] for line in metrics(again) if "samples/kl" in line}
    assert list(kl) == list(range(1, UPDATES + 1))
    # The second run over the same rows computes no reference.
    assert record(again)["reference"]["tokens_computed"] == 0
    assert record(again)["reference"]["tokens_read"] > 0


def test_a_live_reference_gives_the_same_run(place: Place, whole: Path, tmp_path: Path) -> None:
    live = place.run(tmp_path / "live", {"reference.mode": "live"}, cache=tmp_path / "cache")
    assert_same_curve(live, whole, 1e-6)
    assert record(live)["reference"]["store"] is None
    assert not (tmp_path / "cache" / "reference").exists()


@pytest.mark.parametrize("budget", [4096, pytest.param(1, marks=pytest.mark.slow)])
def test_micro_batches_of_any_size_give_the_same_run(place: Place, whole: Path, tmp_path: Path, budget: int) -> None:
    assert_same_curve(place.run(tmp_path / "run", {"train.tokens_per_micro_batch": budget}), whole, 1e-5)


def test_two_processes_give_the_same_run(place: Place, whole: Path, tmp_path: Path) -> None:
    """Every pair counts once: 22 to train on and 5 held out can't be shared out evenly. Other numbers and stages are in
    test_run_resume.py and tests/engine/test_grid.py."""
    found = place.run(tmp_path / "run", {"launch.num_processes": 2, "engine.zero_stage": 2})
    assert_same_curve(found, whole, 1e-5)
    assert distance(saved(found, 10), saved(whole, 10)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("stage", [3, 2])
def test_a_live_reference_that_is_shared_out_gives_the_same_run(place: Place, tmp_path: Path, stage: int) -> None:
    """Its log-probs in training, evaluation, and of the samples at the end."""
    changes = {"reference.mode": "live", "launch.num_processes": 2, "engine.zero_stage": stage}
    changes |= {"engine.deepspeed": SHARD_ALL, "train.epochs": 1, "eval.samples": 4, "eval.max_new_tokens": 6}
    changes |= {"train.sample_every": 2}
    whole = place.run(tmp_path / "whole", {**changes, "reference.sharded": "false"})
    ended = place.try_run(tmp_path / "shared", {**changes, "reference.sharded": "auto" if stage == 3 else "true"})
    assert ended.code == 0, ended.err[-3000:]
    assert "a second model in memory shared out over the processes" in ended.err
    assert_same_curve(tmp_path / "shared", whole, 1e-6)
    final = [record(run)["final"] for run in (tmp_path / "shared", whole)]
    assert final[0]["samples/kl"] == pytest.approx(final[1]["samples/kl"], abs=1e-6)


@pytest.mark.slow
def test_processes_without_a_row_of_their_own(place: Place, tmp_path: Path) -> None:
    """A batch, and a held-out set, smaller than the number of processes."""
    changes = {
        "data.path": write_rows(tmp_path / "one.jsonl", make_rows(1, seed=5)),
        "data.eval": write_rows(tmp_path / "other.jsonl", make_rows(1, seed=6)),
        "train.epochs": 3,
        "train.eval_every": 1,
    }
    one = place.run(tmp_path / "one", changes)
    assert_same_curve(place.run(tmp_path / "two", changes | {"launch.num_processes": 2}), one, 1e-5)
    assert [line["rewards/accuracies"] for line in updates(one)] == [0.5, 1.0, 1.0]


@pytest.mark.slow
def test_plain_attention_gives_the_same_run(place: Place, whole: Path, tmp_path: Path) -> None:
    plain = place.run(tmp_path / "plain", {"model.attention": "plain", "reference.cache_dir": tmp_path / "cache"})
    assert record(whole)["reference"]["identity"]["attention"] == "groups"
    assert record(plain)["reference"]["identity"]["attention"] == "plain"
    assert record(whole)["attention"].startswith("groups through blocks (")
    assert record(plain)["attention"].startswith("plain, one sequence per answer")
    assert record(plain)["reference"]["tokens_computed"] > 0
    assert_same_curve(plain, whole, 1e-5)


@pytest.mark.slow
def test_another_seed_is_another_order(place: Place, whole: Path, tmp_path: Path) -> None:
    other = place.run(tmp_path / "other", {"seed": 1})
    assert len(updates(other)) == UPDATES
    assert updates(other)[0]["logps/chosen"] != updates(whole)[0]["logps/chosen"]
    assert distance(weights(other), weights(whole)) > 1e-3
    # The same rows are held out, and the reference is not another.
    assert metrics(other)[0] == metrics(whole)[0]
    assert record(other)["reference"]["tokens_computed"] == 0


def test_bf16_moves_every_tensor_at_the_smallest_learning_rates(place: Place, tmp_path: Path) -> None:
    """Weights in bfloat16 would not move at all: its numbers next to 1 are 8e-3 apart."""
    changes = {
        "train.precision": "bf16",
        "train.max_steps": 3,
        "train.eval_every": None,
        "optim.lr": 5e-7,
        "optim.eps": 1e-8,
        "optim.schedule": "constant",
    }
    run_dir = place.run(tmp_path / "bf16", changes)
    assert record(run_dir)["reference"]["identity"]["precision"] == "bf16"
    before, after = load_file(place.model / "model.safetensors"), weights(run_dir)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert before.keys() == after.keys()
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert len(still) < 0.01 * len(before), still
    # And not just somewhere: nearly every entry that has a gradient (not the embeddings of unused tokens).
    moved = torch.cat([(before[n] != after[n]).flatten() for n in before if "embed_tokens" not in n])
    assert moved.double().mean() > 0.99
    # At most three full steps of Adam each.
    assert max(float((before[n] - after[n]).abs().max()) for n in before) < 3 * 5e-7 + 2e-7
    assert updates(run_dir)[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)


BF16_GAP = 2e-3
"""Nats of loss: five times the largest gap measured (4e-4), and a fiftieth of what the run gains."""


@pytest.mark.slow
def test_the_curve_in_bf16_follows_the_one_in_fp32(place: Place, whole: Path, tmp_path: Path) -> None:
    rounded = place.run(tmp_path / "bf16", {"train.precision": "bf16"})
    gaps = [abs(a["loss"] - b["loss"]) for a, b in zip(updates(rounded), updates(whole), strict=True)]
    assert 0 < max(gaps) <= BF16_GAP, gaps
    assert abs(evaluations(rounded)[-1]["eval/loss"] - evaluations(whole)[-1]["eval/loss"]) <= BF16_GAP
