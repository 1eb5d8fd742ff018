"""The reference pass in parts that know nothing of each other: who computes what is a pure function of the rows."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from dpo_cli.data.types import Group
from dpo_cli.reference.store import answer_key


def distinct(groups: Sequence[Group]) -> list[int]:
    """Indices of the groups that one pass over an empty store would compute: those with an answer not seen before."""
    seen: set[bytes] = set()
    found = []
    for index, group in enumerate(groups):
        keys = {answer_key(group.prompt_ids, answer) for answer in group.answers}
        if not keys <= seen:
            found.append(index)
            seen |= keys
    return found


def share_out(groups: Sequence[Group], cost: Callable[[Group], float], shards: int) -> list[list[int]]:
    """Indices of the groups of each shard, each group that has to be computed in one of them.

    The costliest group goes first, always to the shard that has least by then.

    Args:
        groups: all groups of the run.
        cost: FLOPs of one, in any unit.
        shards: how many.
    """
    costs = {index: cost(groups[index]) for index in distinct(groups)}
    shares: list[list[int]] = [[] for _ in range(shards)]
    least = [(0.0, number) for number in range(shards)]
    for index in sorted(costs, key=lambda index: (-costs[index], index)):
        total, number = heapq.heappop(least)
        shares[number].append(index)
        heapq.heappush(least, (total + costs[index], number))
    return [sorted(share) for share in shares]
