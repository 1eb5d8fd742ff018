"""No prompt is on both sides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_cli.data.holdout import hold_out, overlap
from dpo_cli.errors import DataError

PROMPTS = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), min_size=2)


def keys(*prompts: int) -> np.ndarray:
    return np.array(prompts, dtype=np.int64)


@settings(deadline=None)
@given(PROMPTS.filter(lambda prompts: len(set(prompts)) > 1), st.floats(0.001, 0.999), st.integers(0, 5))
def test_all_rows_of_so_many_prompts(rows: list[int], fraction: float, seed: int) -> None:
    out = hold_out(keys(*rows), fraction, seed)
    held = {prompt for prompt, chosen in zip(rows, out, strict=True) if chosen}
    assert not held & {prompt for prompt, chosen in zip(rows, out, strict=True) if not chosen}
    total = len(set(rows))
    assert len(held) == min(max(1, round(fraction * total)), total - 1)


def test_order_does_not_matter_and_the_seed_does() -> None:
    rows = np.arange(1000)
    held = set(rows[hold_out(rows, 0.1, 0)])
    assert set(rows[::-1][hold_out(rows[::-1], 0.1, 0)]) == held
    others = [set(rows[hold_out(rows, 0.1, seed)]) for seed in range(1, 30)]
    # Of a hundred drawn from a thousand, ten are drawn again.
    assert 7 < np.mean([len(other & held) for other in others]) < 13


def test_few_change_when_rows_are_added() -> None:
    before, after = np.arange(1000), np.arange(1100)
    held = set(before[hold_out(before, 0.1, 0)])
    assert len(held & set(after[hold_out(after, 0.1, 0)])) > 85


def test_one_prompt_is_too_few() -> None:
    with pytest.raises(DataError, match="at least 2 different ones, found 1"):
        hold_out(keys(3, 3), 0.5, 0)


def test_overlap_is_what_training_gives_up() -> None:
    assert overlap(keys(1, 2, 3, 1), keys(1, 4)).tolist() == [True, False, False, True]
    with pytest.raises(DataError, match=r"nothing is left to train on: the prompts of all 2 rows are in data.eval too"):
        overlap(keys(1, 2), keys(2, 1))
