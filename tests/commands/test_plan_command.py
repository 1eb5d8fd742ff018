"""``dpo plan``: what it says of the recipes, of a model of 70 billion weights, and of what does not fit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import runs
from helpers.configs import composed
from hydra.core.global_hydra import GlobalHydra

from dpo_cli.cli import as_overrides, main
from dpo_cli.commands.layout import HEADROOM
from dpo_cli.commands.plan import Result, plan, prepare
from dpo_cli.commands.plan_fit import _changes
from dpo_cli.commands.rows import load_rows
from dpo_cli.data.collate import flat_length
from dpo_cli.errors import DpoError
from dpo_cli.losses import make_loss
from dpo_cli.model import devices
from dpo_cli.tracking.console import Console


@pytest.fixture(autouse=True)
def _fresh_hydra() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()


def planned(*words: str) -> Result:
    return plan(composed("plan", words), Console(silent=True))


# -- the recipes, where their authors ran them


@pytest.mark.parametrize(
    ("recipe", "device", "count"),
    [("zephyr", "a100_80gb", 8), ("zephyr_qlora", "a100_80gb", 1), ("tulu3_8b", "h100", 8)],
)
def test_a_recipe_fits_where_its_authors_ran_it(recipe: str, device: str, count: int) -> None:
    """With activation checkpointing, as they did."""
    found = planned(f"+experiment={recipe}", f"plan.device={device}", f"launch.num_processes={count}")
    assert found.chosen.fits
    assert found.chosen.estimate.peak.total > 0.2 * found.room  # and is no small matter
    assert found.fix is None


def test_without_checkpointing_it_is_what_is_proposed() -> None:
    """The default of tokens in a micro-batch is too many then, and half or a quarter of it is not."""
    words = ["+experiment=zephyr", "plan.device=a100_80gb", "launch.num_processes=8"]
    alone = planned(*words, "train.activation_checkpointing=none")
    assert not alone.chosen.fits
    assert alone.fix is not None
    assert alone.fix.fits


def test_processes_that_share_rows_hold_a_part_of_the_activations_each() -> None:
    words = ["+experiment=zephyr", "plan.device=a100_80gb", "launch.num_processes=8", "train.batch_size=512"]
    words += ["train.activation_checkpointing=none", "train.tokens_per_micro_batch=8192"]
    alone, shared = (planned(*words, f"engine.sequence_parallel={size}") for size in (1, 4))
    before, after = (result.chosen.estimate.backward for result in (alone, shared))
    assert alone.batches.tokens == shared.batches.tokens == 8192
    assert 0.25 < after.activations / before.activations < 0.28
    assert after.logits < before.logits
    assert (after.weights, after.gradients, after.optimizer) == (before.weights, before.gradients, before.optimizer)
    assert shared.batches.micro_batches > 3 * alone.batches.micro_batches
    assert all(count % 4 == 0 for count in shared.smallest.values())


@pytest.mark.parametrize(
    ("processes", "size", "problem"), [(8, 3, "and there are 8"), (6, 3, "does not divide the 32 attention heads")]
)
def test_rows_that_cant_be_shared_are_refused_as_by_the_run(processes: int, size: int, problem: str) -> None:
    with pytest.raises(DpoError, match=rf"^engine\.sequence_parallel={size}: .*{problem}"):
        planned("+experiment=zephyr", f"launch.num_processes={processes}", f"engine.sequence_parallel={size}")


LONG = ["+experiment=zephyr", "plan.device=a100_40gb", "launch.num_processes=8", "data.max_length=65536"]
LONG += ["data.max_prompt_length=null", "plan.prompt_tokens=60000", "plan.answer_tokens=2000"]


def test_a_row_too_long_for_a_device_is_proposed_to_be_shared() -> None:
    """Fewer tokens a micro-batch are of no use then, as it has one row; with the proposal the run fits, and with fewer
    processes to a row it does not."""
    alone = planned(*LONG)
    assert alone.batches.tokens == 64000 - 2 > 16384
    assert alone.chosen.checkpointing == "full"
    assert not alone.chosen.fits
    assert alone.fix is not None
    assert alone.fix.choice.sequence_parallel > 1
    assert f"engine.sequence_parallel={alone.fix.choice.sequence_parallel}" in alone.words
    there = planned(*LONG, *alone.words)
    assert there.chosen.fits
    assert there.chosen.estimate == alone.fix.estimate
    less = [word for word in alone.words if "sequence_parallel" not in word]
    assert not planned(*LONG, *less, f"engine.sequence_parallel={alone.fix.choice.sequence_parallel // 2}").chosen.fits


def test_only_as_many_are_proposed_to_share_a_row_as_the_model_allows() -> None:
    """Qwen2.5 0.5B has 14 heads, so of 8 processes two may; Llama 3 8B has 32, and 8 key heads."""
    for path, sizes in (("Qwen/Qwen2.5-0.5B", {1, 2}), ("princeton-nlp/Llama-3-Base-8B-SFT", {1, 2, 4, 8})):
        words = ["data.path=x/y", "plan.device=h100", "launch.num_processes=8", f"model.path={path}"]
        prepared = prepare(composed("plan", words), Console(silent=True))
        tried = {choice.sequence_parallel for choice in _changes(prepared.run, prepared.choice, gpu=True)}
        assert tried == sizes
        alone = replace(prepared.choice, processes=1)
        assert {c.sequence_parallel for c in _changes(prepared.run, alone, gpu=True) if c.processes == 1} == {1}


def test_left_open_it_is_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """With the tokens of a micro-batch as they are; and a proposal leaves it open as well."""
    words = ["+experiment=zephyr", "plan.device=a100_80gb", "launch.num_processes=8"]
    open_, *fixed = (
        planned(*words, f"train.activation_checkpointing={kind}") for kind in ("auto", "none", "selective", "full")
    )
    first = next(result for result in fixed if result.chosen.fits)
    assert first.chosen.checkpointing != "none"
    assert open_.chosen.estimate == first.chosen.estimate
    assert open_.chosen.checkpointing == first.chosen.checkpointing
    assert open_.costs == first.costs
    assert planned(*words, "train.activation_checkpointing=auto", "plan.memory_gib=1000").chosen.checkpointing == "none"
    small = planned(*words, "train.activation_checkpointing=auto", "plan.memory_gib=24")
    assert small.chosen.checkpointing == "full"
    assert not small.chosen.fits
    assert small.fix is not None
    assert not any("checkpointing" in word for word in small.words)
    assert main(["plan", *words, "train.activation_checkpointing=auto"]) == 0
    assert f"activation checkpointing {first.chosen.checkpointing} (auto)" in " ".join(capsys.readouterr().out.split())


def test_a_run_decides_by_the_headroom_that_a_plan_has() -> None:
    assert composed("plan", ["+experiment=zephyr"]).plan.headroom == HEADROOM


def test_samples_under_zero_3_need_a_whole_model_in_each_process() -> None:
    words = ["+experiment=tulu3_70b", "plan.device=h100", "launch.num_processes=8", "plan.hosts=8"]
    found = planned(*words, "eval.samples=8", "data.eval=0.01")
    assert not found.chosen.fits
    assert found.chosen.estimate.worst == "sample"
    assert found.chosen.estimate.sample.weights > 4 * found.weights


def test_without_sharing_zephyr_does_not_fit() -> None:
    result = planned("+experiment=zephyr", "plan.device=a100_80gb", "engine.zero_stage=0")
    assert not result.chosen.fits
    # Weights, gradients and moments alone are 16 bytes a weight.
    assert result.chosen.estimate.peak.total > 16 * 7.24e9
    assert {one.choice.zero_stage for one in result.stages} == {0, 1, 2, 3}
    assert result.fix is not None
    assert result.fix.estimate.peak.total < result.room
    away = result.fix.choice.offload != "none" or result.fix.choice.optimizer.startswith("paged_")
    assert result.fix.choice.processes > 1 or away
    assert result.smallest["h200"] <= result.smallest["h100"]


def test_tulu_70b_starts_and_trains_on_64_gpus() -> None:
    """No device ever has all weights: ZeRO 3 shares them out while they are read."""
    words = ["+experiment=tulu3_70b", "plan.device=h100", "launch.num_processes=8", "plan.hosts=8"]
    prepared = prepare(composed("plan", words), Console(silent=True))
    assert prepared.choice.checkpointing == "full"
    found = prepared.run.look(prepared.choice, prepared.room, gpu=True)
    assert prepared.run.shape.weights == 70_553_837_568
    assert prepared.choice.world_size == 64
    ends = 2 * 128_264 * 8192  # embeddings and head
    copies = found.estimate.start.weights - 4 * (70.553837568e9 / 64 + ends)
    assert 0 <= copies < 2 * 70.55e9 / 80  # of one layer in bfloat16
    assert found.fits
    # Under an adapter, or at another stage, each has all of them.
    other = prepared.run.look(replace(prepared.choice, zero_stage=2), prepared.room, gpu=True)
    assert other.estimate.start.weights == pytest.approx(4 * 70.55e9, rel=0.02)
    assert not other.fits


def test_512_gpus_hold_a_512th_each_and_it_is_said_in_seconds() -> None:
    words = ["+experiment=tulu3_70b", "plan.device=h100", "launch.num_processes=8", "plan.hosts=64"]
    start = time.process_time()
    result = planned(*words, "plan.price_per_hour=2")
    assert time.process_time() - start < 10
    state = result.chosen.estimate.backward
    assert state.optimizer == 8 * result.weights / 512
    assert state.gradients == 4 * result.weights / 512
    assert result.costs.hours is not None
    assert result.costs.price == pytest.approx(result.costs.hours * 512 * 2)


# -- costs


def test_time_is_work_over_what_the_devices_make_of_it() -> None:
    words = ["+experiment=zephyr", "plan.device=h100", "launch.num_processes=8", "plan.mfu=0.25"]
    words += ["train.activation_checkpointing=none"]  # or a third of it is made again
    costs, batches = planned(*words).costs, planned(*words).batches
    assert costs.hours == pytest.approx((costs.update_flops + costs.reference_flops) / (8 * 989e12 * 0.25) / 3600)
    # By hand: 6 x weights outside the embeddings for each of 200 + 2 x 299 tokens; attention and what is not read off
    # the last layer are a few per cent.
    body = 7_241_732_096 - 2 * 32000 * 4096
    by_hand = 60_000 * 6 * (body * (200 + 2 * 299) + 32000 * 4096 * 2 * 300)
    assert costs.update_flops == pytest.approx(by_hand, rel=0.05)
    assert costs.reference_flops == pytest.approx(costs.update_flops / 3, rel=0.01)
    assert (batches.comparisons, batches.updates) == (60_000, 469)


def test_disk_is_for_what_is_kept() -> None:
    result = planned("+experiment=zephyr", "plan.device=h100", "launch.num_processes=8")
    weights = result.weights
    assert result.disk.final == 4 * weights
    assert result.disk.checkpoints == 3 * 12 * weights  # the two that are kept and the one being written
    assert result.disk.reference == 60_000 * 2 * (24 + 4 * 300)


# -- what it is made of


def test_rows_that_were_read_before_are_planned_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPO_CACHE", str(tmp_path / "cache"))
    place = runs.make_place(tmp_path)
    words = [f"model.path={place.model}", f"data.path={place.train}", "train.batch_size=6", "train.precision=fp32"]
    words += ["train.tokens_per_micro_batch=96", "plan.device=cpu", "plan.memory_gib=8"]
    assumed = planned(*words)
    assert assumed.assumed
    assert not (tmp_path / "cache" / "tokens").exists()  # nothing is made for a plan
    config = composed("plan", words)
    rows = load_rows(config.model, config.data, make_loss(config.loss.settings()), 0, Console(silent=True))
    real = planned(*words)
    assert not real.assumed
    assert (real.batches.comparisons, real.batches.updates) == (22, 4)
    # The longest row, which is a micro-batch of its own.
    assert real.batches.tokens == max(flat_length(group) for group in rows.data.train) == 133
    assert assumed.batches.tokens == 200 + 2 * 299


def test_an_adapter_that_goes_on_is_read_off_its_folder(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    settings["base_model_name_or_path"] = "HuggingFaceTB/SmolLM2-135M"
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    result = planned(f"model.path={tmp_path}", "data.path=x/y", "plan.device=l40s", "reference.mode=adapter_off")
    width, key_width, layers = 576, 192, 30
    assert result.trained == layers * 8 * ((width + width) + (width + key_width))
    assert result.chosen.estimate.backward.optimizer == 8 * result.trained
    assert result.chosen.estimate.backward.reference > 4 * result.trained  # the adapter as it was, and its logits


def test_what_it_can_not_plan_is_said() -> None:
    with pytest.raises(DpoError, match=r"plan\.device=h900: expected auto, cpu or one of .*h100"):
        planned("+experiment=zephyr", "plan.device=h900")
    with pytest.raises(DpoError, match="downloads nothing"):
        planned("model.path=nobody/nothing", "data.path=x/y", "plan.device=h100")


def test_a_control_groups_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "own" / "memory.current").write_text(f"{2**28}\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("0\n")
    monkeypatch.setattr(devices, "_group_folders", lambda: [tmp_path / "own", tmp_path])
    assert devices.free_memory() == 2**30 - 2**28


# -- what is shown


def test_what_does_not_fit_is_said_first_with_the_command_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "+experiment=zephyr", "plan.device=h100", "launch.num_processes=1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("does not fit: ")
    (command,) = [line.strip() for line in out.splitlines() if line.strip().startswith("dpo train ")]
    assert command.startswith("dpo train +experiment=zephyr launch.num_processes=")
    assert "plan." not in command
    assert all(len(line) <= 80 or line.strip().startswith("dpo train") for line in out.splitlines())


def test_json_holds_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    words = as_overrides("plan", ["--json", "+experiment=smollm2_135m", "plan.device=rtx4090"])
    assert main(["plan", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["model"]["weights"] == found["model"]["trained"] == 134_515_008
    assert [(stage["zero_stage"], stage["offload"]) for stage in found["stages"]][:4] == [
        (stage, "none") for stage in range(4)
    ]
    memory = found["chosen"]["memory"]["backward"]
    parts = ("weights", "gradients", "optimizer", "activations", "logits", "reference", "buffers")
    assert memory["total"] == pytest.approx(sum(memory[part] for part in parts))
