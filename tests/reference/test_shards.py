"""Which shard computes which group: a pure function of the rows, whole and even."""

from __future__ import annotations

import random

import numpy as np

from dpo_cli.data.types import Group, Pair
from dpo_cli.reference.shards import distinct, share_out
from dpo_cli.reference.store import answer_key


def group(prompt: int, *answers: int) -> Group:
    """Answers are named by a number, which is their length too."""
    ids = [np.full(length, length, dtype=np.int32) for length in answers]
    return Group(np.array([prompt], dtype=np.int32), tuple(ids), (Pair(0, 1),), f"row {prompt}")


def many(count: int) -> list[Group]:
    pick = random.Random(0)
    return [group(pick.randrange(count // 2), *pick.sample(range(1, 30), 2)) for _ in range(count)]


def cost(of: Group) -> float:
    return float(sum(len(answer) ** 2 for answer in of.answers))


def test_equal_groups_are_computed_once() -> None:
    groups = [group(1, 3, 4), group(1, 4, 3), group(1, 3, 5), group(2, 3, 4), group(1, 5, 4)]
    assert distinct(groups) == [0, 2, 3]


def test_every_answer_is_in_exactly_the_shards_of_its_groups() -> None:
    groups = many(300)
    shares = share_out(groups, cost, 7)
    members = sorted(index for share in shares for index in share)
    assert members == distinct(groups)  # each in one share
    keys = {answer_key(of.prompt_ids, answer) for of in groups for answer in of.answers}
    there = {answer_key(groups[i].prompt_ids, answer) for i in members for answer in groups[i].answers}
    assert there == keys


def test_shards_are_even_in_cost() -> None:
    """No further apart than one group, which is what giving the least the next one promises."""
    groups = many(300)
    totals = [sum(cost(groups[index]) for index in share) for share in share_out(groups, cost, 7)]
    assert max(totals) - min(totals) <= max(map(cost, groups))
    assert max(totals) < 1.02 * min(totals)


def test_shards_are_the_same_everywhere() -> None:
    assert share_out(many(100), cost, 3) == share_out(many(100), cost, 3)


def test_there_may_be_more_shards_than_rows() -> None:
    shares = share_out([group(1, 2, 3), group(2, 2, 3)], cost, 5)
    assert sorted(map(len, shares)) == [0, 0, 0, 1, 1]
