"""Losses through the real command: each trains, the split of a batch changes nothing, no knob is without effect."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.loss_cases import JUDGED, PAIRWISE, RANKED
from helpers.runs import (
    Place,
    assert_identical_runs,
    assert_same_curve,
    distance,
    evaluations,
    make_rows,
    record,
    saved,
    updates,
    weights,
    write_rows,
)
from safetensors.torch import load_file

REWARD_AWARE = ["rpo_bwd_kl", "rpo_fwd_kl", "rpo_sq"]
SHORT = {"train.epochs": 1, "train.save_every": None, "train.eval_every": None, "optim.lr": 3e-4}
SHARD_ALL = "{zero_optimization:{stage3_param_persistence_threshold:0}}"
"""Stage 3 would leave parameters as small as these whole on every rank."""
BATCHWIDE = ["aot", "aot_unpaired", "bco_pair", "bco", "kto"]


_ENDS = ("apple", "bell", "cloud", "drum")


@pytest.fixture(scope="module")
def rows(place: Place) -> dict[str, Path]:
    """More columns, judged answers one by one, rankings."""
    plain = make_rows(22)
    more = [{**row, "gap": number % 5 - 1.5, "weight": 0.5 + number % 3} for number, row in enumerate(plain)]
    judged = [
        {"prompt": row["prompt"], "completion": row["chosen" if number % 3 else "rejected"], "label": number % 3 > 0}
        for number, row in enumerate(plain)
    ]
    others = make_rows(44, seed=1)
    ranked = [
        {
            "prompt": row["prompt"],
            # Each ends in another word, so that no two are the same.
            "completions": [
                f"{answer[side][0]['content']} {word}"
                for answer, side, word in zip(
                    (row, row, others[2 * n], others[2 * n]), ("chosen", "rejected") * 2, _ENDS, strict=True
                )
            ],
            "scores": [2, n % 2, 1, 0],
        }
        for n, row in enumerate(plain)
    ]
    tables = {"more": more, "judged": judged, "ranked": ranked}
    return {name: write_rows(place.root / f"{name}.jsonl", table) for name, table in tables.items()}


def changes_for(name: str, rows: dict[str, Path]) -> dict[str, Any]:
    if name in REWARD_AWARE:
        return {"loss": name, "data.path": rows["more"], "data.eval": 0.2, "data.margin": "gap"}
    if name == "sppo":  # its targets are 500 nats away
        return {"loss": name, "loss.beta": 0.1}
    return {"loss": name}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PAIRWISE, *JUDGED, *RANKED, "mpo"])
def test_every_loss_trains(name: str, place: Place, rows: dict[str, Path], tmp_path: Path) -> None:
    """Finite, at its own value at the start where there is a reference, lower on the rows it has seen."""
    run_dir = place.run(tmp_path / "run", {**SHORT, **changes_for(name, rows), "train.epochs": 3})
    lines = updates(run_dir)
    assert len(lines) >= 8
    first, last = lines[:3], lines[-3:]
    assert sum(line["loss"] for line in last) < sum(line["loss"] for line in first)
    assert distance(weights(run_dir), load_file(place.model / "model.safetensors")) > 1e-4
    needs_reference = name not in ("slic", "simpo", "alphapo", "cpo", "orpo", "sft")
    assert ("zero_margin" in record(run_dir)) == needs_reference
    if needs_reference:
        assert abs(record(run_dir)["zero_margin"]["gap"]) <= max(1e-6, 4 * record(run_dir)["zero_margin"]["noise"])
    else:
        assert record(run_dir)["reference"]["tokens_computed"] == record(run_dir)["reference"]["tokens_read"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", BATCHWIDE)
def test_batch_wide_losses_do_not_depend_on_the_split(name: str, place: Place, tmp_path: Path) -> None:
    """One pair a micro-batch, all at once, two processes: one curve."""
    start = {**SHORT, "loss": name, "loss.beta": 0.3, "train.eval_every": 2}
    whole = place.run(tmp_path / "whole", {**start, "train.tokens_per_micro_batch": 4096})
    for label, change in {"small": {"train.tokens_per_micro_batch": 1}, "two": {"launch.num_processes": 2}}.items():
        assert_same_curve(place.run(tmp_path / label, {**start, **change}), whole, 2e-5)


@pytest.mark.slow
def test_bco_goes_on_with_its_running_mean(place: Place, tmp_path: Path) -> None:
    """A run stopped in its third update and gone on with is bitwise the run that was not."""
    start = {**SHORT, "loss": "bco_pair", "train.save_every": 1, "loss.beta": 0.5, "loss.sft_weight": 0.1}
    whole = place.run(tmp_path / "whole", start)
    fault = "micro-batch:3.1=term"
    assert place.try_run(tmp_path / "cut", start, fault=fault).code == 75
    assert_identical_runs(place.run(tmp_path / "cut", {**start, "resume": "auto"}), whole)
    state = json.loads((tmp_path / "cut" / "checkpoints" / "step-3" / "state.json").read_text())
    assert state["loss"]["bco_pair"]["count"] == 3.0


@pytest.mark.slow
def test_a_reference_that_moves_is_in_the_checkpoint(place: Place, tmp_path: Path) -> None:
    """TR-DPO: after every second update the reference moves half way; stopped and gone on with, it is the same run."""
    moving = {**SHORT, "reference.mode": "live", "train.save_every": 1}
    moving |= {"reference.update_every": 2, "reference.update_mix": 0.5}
    whole = place.run(tmp_path / "whole", moving)
    still = place.run(tmp_path / "still", {**SHORT, "reference.mode": "live"})
    losses = [[line["loss"] for line in updates(run)] for run in (whole, still)]
    assert losses[0][:2] == losses[1][:2]
    assert all(abs(one - other) > 1e-5 for one, other in zip(losses[0][2:], losses[1][2:], strict=True))
    # Half of the way from where it was to where the policy is.
    start = {f"model.{name}": tensor for name, tensor in load_file(place.model / "model.safetensors").items()}
    policy = saved(whole, 2)
    moved = load_file(tmp_path / "whole" / "checkpoints" / "step-2" / "reference.safetensors")
    expected = {name: (start[name] + policy[name]) / 2 for name in moved}
    assert distance(moved, expected) < 1e-6
    fault = "micro-batch:3.1=term"
    assert place.try_run(tmp_path / "cut", moving, fault=fault).code == 75
    assert_identical_runs(place.run(tmp_path / "cut", {**moving, "resume": "auto"}), whole)


@pytest.mark.slow
def test_rows_judged_one_by_one_and_ranked_rows(place: Place, rows: dict[str, Path], tmp_path: Path) -> None:
    kto = place.run(tmp_path / "kto", {**SHORT, "loss": "kto", "data.path": rows["judged"], "data.eval": 0.2})
    assert all({"rewards/chosen", "rewards/rejected"} & line.keys() for line in updates(kto))
    assert all("rewards/accuracies" not in line for line in updates(kto))
    ranked = {**SHORT, "data.path": rows["ranked"], "data.eval": 0.2}
    pairs = place.run(tmp_path / "pairs", {**ranked, "train.batch_size": 12})
    assert record(pairs)["data"]["train"]["rows"]["without_preference"] == 0
    ranking = place.run(tmp_path / "ranking", {**ranked, "loss": "plackett_luce"})
    # Even rows have places 0, 2, 1, 2, odd ones 0, 1, 1, 2: equal ones don't meet.
    even, odd = math.log(4) + math.log(3), math.log(4) + 2 * math.log(2)
    assert even - 1e-4 <= evaluations(ranking)[0]["eval/loss"] <= odd + 1e-4


KNOBS: list[tuple[str, dict[str, Any]]] = [
    ("dpo", {"loss.beta": 0.3}),
    ("dpo", {"loss.label_smoothing": 0.2}),
    ("dpo", {"loss.sft_weight": 0.5}),
    ("dpo", {"loss.wpo": "true"}),
    ("dpo", {"loss.ld_alpha": 0.3}),
    ("dpo", {"loss.humanline": "[-0.01,0.01]"}),
    ("dpo", {"loss.reference_free": "true"}),
    ("dpo", {"loss.divergence": "forward_kl"}),
    ("dpo", {"loss.divergence": "js"}),
    ("dpo", {"loss.divergence": "alpha", "loss.divergence_alpha": 0.5}),
    ("dpo", {"data.weight": "weight"}),
    ("dpo", {"data.margin": "gap"}),
    ("ipo", {"loss.normalise": "sum"}),
    ("discopop", {"loss.tau": 0.5}),
    ("slic", {"loss.delta": 5.0}),
    ("simpo", {"loss.gamma_ratio": 1.0}),
    ("alphapo", {"loss.alpha": 0.5}),
    ("orpo", {"loss.nll": "full"}),
    ("kto", {"loss.desirable_weight": 2.0}),
    ("kto", {"loss.undesirable_weight": 2.0}),
    ("mpo", {"loss.weights.dpo": 0.2}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), KNOBS)
def test_no_knob_is_without_effect(
    name: str, change: dict[str, Any], place: Place, rows: dict[str, Path], tmp_path: Path
) -> None:
    start = {**SHORT, "loss": name, "data.path": rows["more"], "data.eval": None, "train.max_steps": 2}
    curves = [
        [line["loss"] for line in updates(place.run(tmp_path / label, {**start, **more}))]
        for label, more in (("without", {}), ("with", change))
    ]
    assert curves[0][1] != pytest.approx(curves[1][1], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kto", "aot_unpaired"])
def test_batch_wide_losses_under_zero_3(name: str, place: Place, tmp_path: Path) -> None:
    start = {**SHORT, "loss": name, "loss.beta": 0.3, "train.eval_every": 2}
    sharded = {"launch.num_processes": 2, "engine.zero_stage": 3}
    found = place.run(tmp_path / "sharded", {**start, **sharded})
    assert_same_curve(found, place.run(tmp_path / "whole", start), 2e-5)


@pytest.mark.slow
def test_a_reference_that_moves_under_zero_3(place: Place, tmp_path: Path) -> None:
    """On two processes, which share it out or not, as on one; what a checkpoint of two holds, one goes on from."""
    moving = {**SHORT, "reference.mode": "live", "train.save_every": 1, "train.eval_every": 2}
    moving |= {"reference.update_every": 2, "reference.update_mix": 0.5}
    sharded = {**moving, "launch.num_processes": 2, "engine.zero_stage": 3, "engine.deepspeed": SHARD_ALL}
    whole = place.run(tmp_path / "whole", moving)
    both = place.run(tmp_path / "sharded", sharded)
    assert_same_curve(both, whole, 2e-5)
    unsharded = place.run(tmp_path / "unsharded", {**sharded, "reference.sharded": "false"})
    assert_same_curve(both, unsharded, 1e-6)
    kept = [load_file(run / "checkpoints" / "step-3" / "reference.safetensors") for run in (both, unsharded)]
    assert distance(*kept) <= 1e-6
    fault = "micro-batch:3.1=term"
    assert place.try_run(tmp_path / "cut", sharded, fault=fault).code == 75
    shutil.copytree(tmp_path / "cut", tmp_path / "again")
    assert_same_curve(place.run(tmp_path / "cut", {**moving, "resume": "auto"}), whole, 2e-5)
    assert_identical_runs(place.run(tmp_path / "again", {**sharded, "resume": "auto"}), both)


def test_keep_best_wants_a_metric_that_there_is(place: Place, rows: dict[str, Path], tmp_path: Path) -> None:
    changes = {"loss": "kto", "data.path": rows["judged"], "data.eval": 0.2, "train.keep_best": "rewards/accuracies"}
    ended = place.try_run(tmp_path / "run", changes)
    assert ended.code == 2
    assert "train.keep_best=rewards/accuracies: with these rows there is no such metric" in ended.err
