"""The engine on real processes against a plain loop on one with torch's own optimizer, at every ZeRO stage."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import training_case as case
from helpers.ranks import run_ranks
from safetensors.torch import load_file
from torch import Tensor

from dpo_cli.training.checkpoint import folder_of, read

BITSANDBYTES = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
UPDATES = len(case.RATES)
STOP = 2
"""Updates after which a run is cut off and gone on with elsewhere."""


def run(
    out: Path, stage: int, world: int, clip: float | None, start: Path | None = None, optimizer: str = "adamw"
) -> Path:
    """A run, or the rest of the one in ``start``, by ``world`` processes."""
    out.mkdir()
    arguments = [optimizer, stage, clip, start and str(start), STOP if start else 0, str(out)]
    run_ranks(Path(__file__).with_name("engine_worker.py"), arguments, world, out)
    return out


@cache
def plain(clip: float | None, optimizer: str = "adamw") -> case.Plain:
    return case.Plain(clip, optimizer)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Uninterrupted runs, each done once."""

    def make(stage: int, world: int, clip: float | None, optimizer: str = "adamw") -> Path:
        return run(tmp_path_factory.mktemp("engine") / "whole", stage, world, clip, optimizer=optimizer)

    return cache(make)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Every tensor, relative to its own largest entry."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        difference = float((found[name] - tensor).abs().max() / tensor.abs().max())
        assert difference <= tolerance, name


def renamed(moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """bitsandbytes' names for Adam's moments as torch's."""
    return {key.replace("state1", "exp_avg").replace("state2", "exp_avg_sq"): value for key, value in moments.items()}


def check(folder: Path, world: int, clip: float | None, first: int = 0, optimizer: str = "adamw") -> None:
    expected = plain(clip, optimizer)
    for rank in range(world):
        norms = json.loads((folder / f"norms-{rank}.json").read_text())
        assert norms == pytest.approx(expected.norms[first:], rel=2e-6)
        assert_close(load_file(folder / f"gathered-{rank}.safetensors"), expected.weights[UPDATES])
    for updates in range(first + 1, UPDATES + 1):
        found = read(folder_of(folder, updates))
        assert_close(found.weights(), expected.weights[updates])
        assert_close(renamed(found.moments()), expected.moments[updates], 5e-6)


RUNS = [
    (0, 1, case.CLIP),
    (2, 2, case.CLIP),
    (3, 2, case.CLIP),
    *(
        pytest.param(stage, world, clip, marks=pytest.mark.slow)
        for stage, world, clip in [(0, 1, None), (2, 2, None), (3, 1, None)]
    ),
]


@pytest.mark.parametrize(("stage", "world", "clip"), RUNS)
def test_any_stage_and_split_follows_plain_adamw(whole_run, stage: int, world: int, clip: float | None) -> None:
    check(whole_run(stage, world, clip), world, clip)


def test_the_plain_run_is_a_demanding_one() -> None:
    """Clipping bites in every update, and without it the run is another one."""
    assert min(plain(case.CLIP).norms) > 2 * case.CLIP
    moved = plain(case.CLIP).weights[UPDATES]["model.model.embed_tokens.weight"]
    assert not torch.allclose(moved, plain(None).weights[UPDATES]["model.model.embed_tokens.weight"], rtol=1e-4)
    assert torch.equal(plain(None).weights[0][case.FROZEN], plain(None).weights[UPDATES][case.FROZEN])


MOVES = [
    ((3, 2), (2, 1)),
    *(
        pytest.param(before, after, marks=pytest.mark.slow)
        for before, after in [
            ((0, 1), (3, 2)),
            ((2, 2), (0, 1)),
            ((2, 2), (1, 2)),
            ((0, 1), (2, 2)),
            ((3, 2), (0, 2)),
            ((0, 1), (3, 3)),  # sizes that are no multiple of the ranks
        ]
    ),
]


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_a_run_goes_on_at_another_stage_and_world_size(whole_run, tmp_path: Path, before, after) -> None:
    source = whole_run(*before, case.CLIP)
    rest = run(tmp_path / "rest", *after, case.CLIP, start=source)
    check(rest, after[1], case.CLIP, first=STOP)
    # What was put in comes out again, to the bit.
    assert_same(folder_of(rest / "set", STOP), folder_of(source, STOP))


def assert_same(found: Path, expected: Path) -> None:
    """Two checkpoints hold the same weights and moments, to the bit."""
    for one, other in (
        (read(found).weights(), read(expected).weights()),
        (read(found).moments(), read(expected).moments()),
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


OTHERS = [
    *(
        pytest.param("rmsprop", stage, world, marks=pytest.mark.slow)
        for stage, world in [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]
    ),
    *(
        pytest.param("paged_adamw_32bit", stage, world, marks=[pytest.mark.slow, BITSANDBYTES])
        for stage, world in [(0, 1), (0, 2), (1, 2), (2, 2), (3, 2)]
    ),
]


@pytest.mark.parametrize(("optimizer", "stage", "world"), OTHERS)
def test_another_optimizer_follows_its_plain_original(whole_run, optimizer: str, stage: int, world: int) -> None:
    """Paged or not makes no difference on a CPU, where bitsandbytes pages nothing."""
    check(whole_run(stage, world, case.CLIP, optimizer), world, case.CLIP, optimizer=optimizer)


OTHER_MOVES = [
    *(
        pytest.param("rmsprop", before, after, marks=pytest.mark.slow)
        for before, after in [((2, 2), (0, 1)), ((0, 1), (3, 2)), ((3, 1), (2, 2)), ((0, 2), (1, 2))]
    ),
    *(
        pytest.param("paged_adamw_32bit", before, after, marks=[pytest.mark.slow, BITSANDBYTES])
        for before, after in [((0, 1), (3, 2)), ((2, 2), (0, 1))]
    ),
]


@pytest.mark.parametrize(("optimizer", "before", "after"), OTHER_MOVES)
def test_a_run_with_another_optimizer_goes_on(whole_run, tmp_path: Path, optimizer: str, before, after) -> None:
    source = whole_run(*before, case.CLIP, optimizer)
    rest = run(tmp_path / "rest", *after, case.CLIP, start=source, optimizer=optimizer)
    check(rest, after[1], case.CLIP, first=STOP, optimizer=optimizer)
    assert_same(folder_of(rest / "set", STOP), folder_of(source, STOP))


@pytest.mark.slow
@BITSANDBYTES
@pytest.mark.parametrize("world", [1, 2])
def test_a_run_with_8_bit_moments_goes_on_to_the_bit(whole_run, tmp_path: Path, world: int) -> None:
    source = whole_run(0, world, case.CLIP, "adamw_8bit")
    moments = read(folder_of(source, STOP)).moments()
    assert {moments[f"model.model.embed_tokens.weight/{name}"].dtype for name in ("state1", "state2")} == {torch.uint8}
    rest = run(tmp_path / "rest", 0, world, case.CLIP, start=source, optimizer="adamw_8bit")
    assert_same(folder_of(rest / "set", STOP), folder_of(source, STOP))
    for updates in range(STOP + 1, UPDATES + 1):
        assert_same(folder_of(rest, updates), folder_of(source, updates))


@pytest.mark.slow
@BITSANDBYTES
def test_8_bit_moments_are_adamw_but_for_their_rounding(whole_run) -> None:
    """The first update, from moments of zero, is AdamW's; then it goes apart by a little."""
    folder, expected = whole_run(0, 2, case.CLIP, "adamw_8bit"), plain(case.CLIP, "adamw_8bit").weights
    assert_close(read(folder_of(folder, 1)).weights(), expected[1])
    last = read(folder_of(folder, UPDATES)).weights()
    key = "model.model.embed_tokens.weight"
    gone = (expected[UPDATES][key] - expected[0][key]).norm()
    apart = (last[key] - expected[UPDATES][key]).norm() / gone
    assert 1e-4 < float(apart) < 0.05
