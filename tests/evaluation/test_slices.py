from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.comparisons import made

from dpo_cli.data.types import Group, Pair
from dpo_cli.evaluation.intervals import Bootstrap
from dpo_cli.evaluation.measures import right
from dpo_cli.evaluation.slices import MOST, slice_table, slices_of

TOKENS = np.array([1], dtype=np.int32)


def groups(count: int, file: str = "a.jsonl") -> list[Group]:
    return [Group(TOKENS, (TOKENS, TOKENS), (Pair(0, 1),), f"{file}, line {n}") for n in range(1, count + 1)]


def test_slices_split_all_comparisons_and_measure_each_part() -> None:
    found = replace(made(), labelled=np.arange(60) / 10)
    rows = [*groups(40), *groups(20, "b.jsonl")]
    facts = {row.source: {"category": "ab"[n % 2], "turns": 1 + n % 5} for n, row in enumerate(rows)}
    ways = slices_of(found, rows, facts)
    assert set(ways) == {"category", "turns", "file", "length", "labelled margin"}
    table = slice_table(found, ways, Bootstrap(100, 0))
    for way, parts in table.items():
        assert sum(part["comparisons"] for part in parts) == 60, way
        assert {part["value"] for part in parts} == set(ways[way])
    assert [part["comparisons"] for part in table["labelled margin"]] == [15] * 4
    assert [part["value"] for part in table["turns"]] == ["1 user turn", "2 user turns", "3 user turns", "4 or more"]
    first = next(part for part in table["category"] if part["value"] == "a")
    assert first["accuracy"].value == pytest.approx(right(found.margins)[::2].mean())
    ratios = found.lengths[:, 0] / found.lengths[:, 1]
    by_length = {part["value"]: part["comparisons"] for part in table["length"]}
    assert by_length["chosen under half as long"] == (ratios < 0.5).sum()
    assert by_length["about equal (0.8-1.25x)"] == ((ratios >= 0.8) & (ratios < 1.25)).sum()
    assert by_length["chosen over 2x as long"] == (ratios >= 2).sum()


def test_what_does_not_tell_rows_apart_is_left_out_and_rare_values_are_put_together() -> None:
    found, rows = made(), groups(60)
    facts = {row.source: {"category": "all", "id": n} for n, row in enumerate(rows)}
    ways = slices_of(found, rows, facts)
    assert "category" not in ways
    assert "file" not in ways
    assert len(set(ways["id"])) == MOST + 1
    assert ways["id"].count("(others)") == 60 - MOST
