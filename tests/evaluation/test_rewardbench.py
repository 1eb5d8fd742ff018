"""RewardBench's weights and RewardBench 2's scores, against their definitions written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpo_cli.errors import DataError
from dpo_cli.evaluation.rewardbench import SECTIONS, rewardbench, rewardbench2, ties


def test_sections_weigh_subsets_by_their_counts_and_math_like_code() -> None:
    right = {"alpacaeval-easy": 1.0, "mt-bench-med": 0.5, "math-prm": 0.25, "hep-python": 1.0}
    margins, subsets = [], []
    for name, share in right.items():
        margins += [1.0] * int(4 * share) + [-1.0] * (4 - int(4 * share))
        subsets += [name] * 4
    found = rewardbench(np.array(margins), subsets)
    assert found["sections"]["Chat"] == pytest.approx((100 * 1.0 + 40 * 0.5) / 140)
    assert found["sections"]["Reasoning"] == pytest.approx((984 * 0.25 + 164 * 1.0) / 1148)
    assert found["score"] == pytest.approx(np.mean(list(found["sections"].values())))
    assert found["subsets"]["math-prm"] == {"value": 0.25, "rows": 4}
    assert sum(SECTIONS["Reasoning"].values()) == 2 * 984
    assert sum(len(weights) for weights in SECTIONS.values()) == 23


def test_prior_sets_weigh_half_and_a_tie_is_wrong() -> None:
    found = rewardbench(np.array([1.0, 0.0, 2.0]), ["donotanswer", "donotanswer", "shp"])
    assert found["sections"] == {"Safety": 0.5, "Prior Sets": 1.0}
    assert found["score"] == pytest.approx((2 * 0.5 + 1.0) / 3)
    with pytest.raises(DataError, match="'mine' is none of RewardBench's"):
        rewardbench(np.array([1.0]), ["mine"])


def test_best_of_four_shares_a_tie_for_first() -> None:
    rewards = [np.array(each, dtype=float) for each in ([3, 1, 2, 0], [1, 3, 2, 0], [2, 2, 1, 0])]
    found = rewardbench2(rewards, [1, 1, 1], ["Math"] * 2 + ["Focus"], ["1", "2", "3"])
    assert found["sections"] == {"Math": 0.5, "Focus": 0.5}
    assert found["score"] == 0.5


def test_ties_by_hand() -> None:
    """Prompt 1: spread 1, gap 3, and 0.5 for its twin. Prompt 2: spread 2, gap -1, and 4 for its twin. Prompt 3 is
    tied alone: spread 0, gap 1."""
    rows = {
        "tied:1": ([5.0, 4.0, 1.0, 0.0], 2),
        "ref:1": ([1.0, 0.5, 0.0], 1),
        "tied:2": ([5.0, 3.0, 4.0], 2),
        "ref:2": ([5.0, 1.0], 1),
        "tied:3": ([2.0, 2.0, 1.0], 2),
    }
    found = ties([np.array(values) for values, _ in rows.values()], [count for _, count in rows.values()], list(rows))
    accuracy = 0.3 * (2 / 3) + 0.3 * 1.0
    preferred = 0.2 * (1 / 2) + 0.2 * 0.0  # the hard gap of prompt 1 is 0.5, of prompt 2 -1
    closeness = (math.tanh(0.5 / 1 - 1) + math.tanh(-1 / 2 - 1)) / 2
    assert found == pytest.approx(accuracy + preferred + 0.01 * closeness)


@pytest.mark.parametrize(("name", "says"), [("7", "expected ref:NUMBER"), ("tied:1", "no prompt with both")])
def test_ties_without_twins_are_refused(name: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        ties([np.array([2.0, 1.0, 0.0])], [2], [name])
