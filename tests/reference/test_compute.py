"""The reference pass: what it computes, in which micro-batches, and that cutting it off changes no bit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dpo_cli.data.collate import FlatBatch
from dpo_cli.data.types import Group
from dpo_cli.errors import StorageError
from dpo_cli.reference import compute
from dpo_cli.reference.compute import ReferenceCounts, fill
from dpo_cli.reference.store import ReferenceStore, distinct

IDENTITY = {"model": "a"}
BUDGET = 40


class Touchy(nn.Module):
    """A model whose log-probs depend on all that is in a micro-batch, as rounding has them do."""

    groups = True

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.cut_off_at: int | None = None

    def forward(self, batch: FlatBatch) -> Tensor:
        self.looks += 1
        if self.looks == self.cut_off_at:
            raise KeyboardInterrupt
        everything = torch.from_numpy(np.asarray(batch.input_ids)).double()
        weighted = everything @ torch.arange(1.0, len(everything) + 1, dtype=torch.float64)
        return -1 / (2 + torch.from_numpy(batch.targets).double()) - 1 / (2 + weighted)


def make_groups(count: int, seed: int = 0) -> list[Group]:
    """Groups of one to three answers; some prompts and answers come again."""
    draw = np.random.default_rng(seed)

    def ids(low: int, high: int, size: int) -> np.ndarray:
        return draw.integers(low, high, size, dtype=np.int32)

    return [
        Group(
            ids(0, 4, int(draw.integers(1, 3))),
            tuple(ids(0, 5, int(draw.integers(1, 12))) for _ in range(int(draw.integers(1, 4)))),
            (),
            f"row {number}",
        )
        for number in range(count)
    ]


def run(folder: Path, groups: Sequence[Group], model: Touchy) -> ReferenceCounts:
    return fill(ReferenceStore(folder, IDENTITY), groups, lambda: model, token_budget=BUDGET)  # type: ignore[arg-type,return-value]


def stored(folder: Path, groups: Sequence[Group]) -> bytes:
    return ReferenceStore(folder, IDENTITY).lookup(groups).tobytes()


def test_every_answer_comes_once() -> None:
    groups = make_groups(200)
    every = {(g.prompt_ids.tobytes(), a.tobytes()) for g in groups for a in g.answers}
    once = [(g.prompt_ids.tobytes(), a.tobytes()) for g in distinct(groups).values() for a in g.answers]
    assert len(once) == len(every) < sum(len(g.answers) for g in groups)
    assert set(once) == every
    found = [*distinct(groups).values()]
    assert [*distinct(found).values()] == found


def test_tokens_are_counted_once(tmp_path: Path) -> None:
    groups = make_groups(50)
    total = sum(len(a) for g in groups for a in g.answers)
    computed = sum(len(a) for g in distinct(groups).values() for a in g.answers)
    assert run(tmp_path, groups, Touchy()) == ReferenceCounts(computed, total - computed)
    assert run(tmp_path, groups, Touchy()) == ReferenceCounts(0, total)


@pytest.mark.parametrize("portion", [7, 1024])
def test_a_pass_that_was_cut_off_ends_with_the_same_bits(tmp_path: Path, monkeypatch, portion: int) -> None:
    monkeypatch.setattr(compute, "_GROUPS_PACKED_AT_ONCE", portion)
    groups = make_groups(60)
    whole = Touchy()
    run(tmp_path / "whole", groups, whole)
    assert whole.looks > 5
    for place in range(1, whole.looks + 1):
        folder = tmp_path / str(place)
        model = Touchy()
        model.cut_off_at = place
        with pytest.raises(KeyboardInterrupt):
            run(folder, groups, model)
        run(folder, groups, model)
        assert model.looks == whole.looks + 1  # the one that was cut off, again
        assert stored(folder, groups) == stored(tmp_path / "whole", groups)


def test_the_number_of_ranks_changes_no_bit(tmp_path: Path, monkeypatch) -> None:
    groups = make_groups(60)
    run(tmp_path / "one", groups, Touchy())
    monkeypatch.setattr(compute, "world_size", lambda: 3)
    monkeypatch.setattr(compute, "data_ranks", lambda: 3)
    monkeypatch.setattr(compute, "wait_for_all", lambda: None)
    monkeypatch.setattr(compute, "from_first", lambda _: [*distinct(groups)])
    for rank in (2, 0, 1):
        monkeypatch.setattr(compute, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(compute, "data_rank", lambda rank=rank: rank)
        if rank == 1:
            run(tmp_path / "three", groups, Touchy())
        else:
            with pytest.raises(StorageError, match="does not see the log-probs of"):
                run(tmp_path / "three", groups, Touchy())
    assert stored(tmp_path / "three", groups) == stored(tmp_path / "one", groups)


def test_other_rows_leave_what_is_known_as_it_is(tmp_path: Path) -> None:
    first, both = make_groups(30), make_groups(30) + make_groups(40, seed=1)
    run(tmp_path, first, Touchy())
    before = stored(tmp_path, first)
    model = Touchy()
    counts = run(tmp_path, both, model)
    assert counts.tokens_computed == sum(len(a) for g in distinct(both).values() for a in g.answers) - sum(
        len(a) for g in distinct(first).values() for a in g.answers
    )
    assert stored(tmp_path, first) == before


def test_ranks_that_share_weights_look_equally_often(tmp_path: Path, monkeypatch) -> None:
    groups = make_groups(60)
    monkeypatch.setattr(compute, "world_size", lambda: 4)
    monkeypatch.setattr(compute, "data_ranks", lambda: 4)
    monkeypatch.setattr(compute, "wait_for_all", lambda: None)
    monkeypatch.setattr(compute, "from_first", lambda _: [*distinct(groups)])
    looks = []
    for rank in range(4):
        monkeypatch.setattr(compute, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(compute, "data_rank", lambda rank=rank: rank)
        model, store = Touchy(), ReferenceStore(tmp_path, IDENTITY)
        with nullcontext() if rank == 3 else pytest.raises(StorageError, match="does not see the log-probs of"):
            fill(store, groups, lambda model=model: model, token_budget=BUDGET, together=True)
        looks.append(model.looks)
    assert len(set(looks)) == 1
    assert ReferenceStore(tmp_path, IDENTITY).missing(groups) == []
