"""Which rows a run is checked on."""

from __future__ import annotations

import numpy as np

from dpo_cli.data.types import Group
from dpo_cli.training.guards import drawn, looked_at

GROUPS = [
    Group(np.arange(3, dtype=np.int32), (np.arange(length, dtype=np.int32),), (), f"row {length}")
    for length in range(1, 101)
]


def length(group: Group) -> int:
    return len(group.answers[0])


def test_rows_come_from_all_over_and_are_others_for_another_seed() -> None:
    draws = [[group.source for group in drawn(GROUPS, length, 10**6, seed)] for seed in (*range(60), 0)]
    assert len({source for sources in draws for source in sources}) > 95
    assert draws[0] == draws[-1] != draws[1]


def test_no_row_is_drawn_twice_nor_more_than_there_are() -> None:
    assert len({group.source for group in drawn(GROUPS, length, 10**6, 0)}) == 8
    assert sorted(map(length, drawn(GROUPS[:3], length, 10**6, 0))) == [1, 2, 3]


def test_no_more_than_fit_a_micro_batch_but_four_at_least() -> None:
    counts = set()
    for seed in range(20):
        some = drawn(GROUPS, length, 300, seed)
        every = drawn(GROUPS, length, 10**6, seed)
        assert some == every[: len(some)]
        assert sum(map(length, some)) <= 300 or len(some) == 4
        assert len(some) == 8 or sum(map(length, every[: len(some) + 1])) > 300
        assert drawn(GROUPS, length, 0, seed) == every[:4]
        counts.add(len(some))
    assert counts >= {5, 6, 7}


def test_at_the_end_rows_are_those_of_the_last_update_and_as_many_others() -> None:
    found = looked_at([7, 3, 9, 1, 5], 100, 0)
    assert found[:5] == [7, 3, 9, 1, 5]
    assert len(found) == len(set(found)) == 10
    others = {index for seed in range(200) for index in looked_at([7, 3, 9, 1, 5], 100, seed)}
    assert others == set(range(100))
    assert looked_at([7, 3], 100, 1) == looked_at([7, 3], 100, 1) != looked_at([7, 3], 100, 2)


def test_at_the_end_they_are_bounded_and_no_more_than_there_are() -> None:
    assert len(looked_at(range(1000), 10**9, 0)) == 64
    assert len(looked_at([2], 100, 0)) == 5
    assert sorted(looked_at([2, 0], 3, 0)) == [0, 1, 2]
    assert looked_at([0], 1, 0) == [0]
