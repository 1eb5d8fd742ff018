"""Every ZeRO stage, precision and adapter, on two and on four processes, against one process and a plain loop."""

from __future__ import annotations

import importlib.util
import json
import math
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from helpers import grid
from helpers import training_case as case
from helpers.families import build
from helpers.ranks import run_ranks
from safetensors.torch import save_file

ADAPTERS = ["none", "lora", *(["qlora"] if importlib.util.find_spec("bitsandbytes") else [])]
BUDGET = 48
"""Tokens a micro-batch: two or three of them an update on each of two processes."""
SPLITS = [(1, 1), (BUDGET, 1), (96, 1), (4096, 1), (BUDGET, 2), (BUDGET, 4)]
"""Into micro-batches, by their tokens and by how many processes they were made for: from one group each to all in one.
"""


def curves(folder: Path, runs: list[grid.Run], world: int, out: Path) -> dict[grid.Run, grid.Curve]:
    """Runs by so many processes, which must agree."""
    out.mkdir()
    run_ranks(Path(__file__).with_name("grid_worker.py"), [str(folder), runs, str(out)], world, out)
    found = [json.loads((out / f"curves-{rank}.json").read_text()) for rank in range(world)]
    assert all(each == found[0] for each in found)
    return {run: grid.Curve(*curve) for run, curve in zip(runs, found[0], strict=True)}


def gap(one: list[float], other: list[float]) -> float:
    """The largest of any update, relative."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the model."""
    path = tmp_path_factory.mktemp("grid") / "model"
    build(case.shape(), "eager", torch.float32).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, grid.Curve]:
    """The plain loop's curve with each adapter. Leaves the reference's log-probs with the model."""
    found, reference = {}, {}
    for adapter in ADAPTERS:
        found[adapter], known = grid.plain_curve(folder, adapter)
        reference |= {f"{adapter}/{source}": logps for source, logps in known.items()}
    save_file(reference, folder / grid.REFERENCE)
    return found


@pytest.fixture(scope="module")
def rounded(folder: Path, plain: object) -> dict[str, list[list[float]]]:
    """Losses in bf16 with each adapter, by one process with every split into micro-batches."""
    runs = [grid.Run(0, "bf16", adapter, *split) for adapter in ADAPTERS for split in SPLITS]
    found = curves(folder, runs, 1, folder.parent / "one")
    return {adapter: [curve.losses for run, curve in found.items() if run.adapter == adapter] for adapter in ADAPTERS}


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.faults)])
def test_the_curve_is_that_of_one_plain_process(
    folder: Path, plain: dict[str, grid.Curve], rounded: dict[str, list[list[float]]], world: int
) -> None:
    """In fp32 to rounding. In bf16, where rounding changes with what is run together, it lies among those of one
    process: no further from the nearest than these are from each other. Before the first update it is the same to the
    bit at every stage."""
    runs = [
        grid.Run(stage, precision, adapter, BUDGET, world)
        for stage, precision, adapter in product(range(4), ("fp32", "bf16"), ADAPTERS)
        if (stage, adapter) != (3, "qlora")  # refused
    ]
    found = curves(folder, runs, world, folder.parent / f"several-{world}")
    for run in runs:
        assert found[run].losses[0] == found[run._replace(stage=0)].losses[0], run
    for run in runs:
        losses, norms = found[run]
        if run.precision == "fp32":
            assert gap(losses, plain[run.adapter].losses) <= 1e-5, run
            assert gap(norms, plain[run.adapter].norms) <= 1e-5, run
        else:
            ones = rounded[run.adapter]
            spread = max(gap(one, other) for one, other in combinations(ones, 2))
            assert min(gap(losses, one) for one in ones) <= spread, run


@pytest.mark.slow
def test_it_is_a_demanding_one(plain: dict[str, grid.Curve], rounded: dict[str, list[list[float]]]) -> None:
    """Or the comparison would prove little: the model learns, clipping bites at times, and bf16 is no wide bound."""
    for adapter, (losses, norms) in plain.items():
        assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
        assert min(losses) < 0.55
        assert min(norms) < grid.CLIP[adapter] < max(norms)
        ones = rounded[adapter]
        assert 0 < max(gap(one, other) for one, other in combinations(ones, 2)) < 5e-3
