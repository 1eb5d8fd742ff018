"""Groups on disk are the Groups that were written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_cli.data.store import Groups, Table, TableWriter, open_table, to_batch
from dpo_cli.data.types import Group, Pair

IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5).map(lambda ids: np.array(ids, dtype=np.int32))
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def groups(draw: st.DrawFn) -> Group:
    answers = tuple(draw(st.lists(IDS, min_size=1, max_size=4)))
    pair = st.builds(Pair, st.integers(0, 3), st.integers(0, 3), NUMBERS, NUMBERS, st.none() | st.floats(0, 1))
    masks = tuple(draw(st.lists(st.booleans(), min_size=len(a), max_size=len(a)).map(np.array)) for a in answers)
    return Group(
        prompt_ids=draw(IDS),
        answers=answers,
        pairs=tuple(draw(st.lists(pair, max_size=3))),
        source=draw(st.text(max_size=5)),
        question=draw(st.text(max_size=5)),
        labels=tuple(draw(st.lists(st.booleans(), max_size=3))),
        ranks=tuple(draw(st.lists(st.integers(0, 9), max_size=3))),
        weight=draw(NUMBERS),
        scored=masks if draw(st.booleans()) else (),
    )


def write(folder: Path, *batches: list[Group]) -> Table:
    folder.mkdir()
    writer = TableWriter(folder)
    for batch in batches:
        writer.add(to_batch(batch, [-number for number in range(len(batch))], [7] * len(batch)))
    writer.close()
    writer.finish({"ends": [2]})
    table, trouble = open_table(folder)
    assert not trouble
    assert table is not None
    return table


def plain(group: Group) -> list[object]:
    parts = [group.prompt_ids, *group.answers, *group.scored]
    assert all(part.dtype == np.int32 for part in parts[: 1 + len(group.answers)])
    said = [group.pairs, group.source, group.question, group.labels, group.ranks, group.weight]
    return [[part.tolist() for part in parts], *said]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(groups(), min_size=1, max_size=3), min_size=1, max_size=3))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, batches: list[list[Group]]) -> None:
    table = write(tmp_path_factory.mktemp("t") / "table", *batches)
    expected = [plain(group) for batch in batches for group in batch]
    assert len(table) == len(expected)
    assert [plain(table[row]) for row in range(len(table))] == expected
    assert table.facts == {"ends": [2]}
    assert table.keys("prompt_key").tolist() == [-number for batch in batches for number in range(len(batch))]


def some(*names: str) -> list[Group]:
    return [Group(np.array([1], np.int32), (np.array([2], np.int32),), (), name) for name in names]


def names(chosen: Groups) -> list[str]:
    return [group.source for group in chosen]


def test_groups_are_a_choice_of_several_tables(tmp_path: Path) -> None:
    tables = [write(tmp_path / "a", some("a", "b"), some("c")), some("d"), write(tmp_path / "e", some("e"))]
    everything = Groups(tables)
    assert names(everything) == list("abcde")
    assert names(everything[1:4]) == list("bcd")
    assert everything[-1].source == "e"
    assert names(everything[::-1][:2]) == ["e", "d"]
    drawn = Groups(tables, np.array([4, 0, 0, 3]))
    assert names(drawn) == list("eaad")
    assert drawn.count_by_table() == [2, 1, 1]
    assert names(drawn.select(np.array([True, False, True, False]))) == ["e", "a"]
    with pytest.raises(IndexError):
        everything[5]


def test_damage_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    assert open_table(folder) == (None, "")
    write(folder, some("a"))
    rows, about = folder / "rows.arrow", folder / "table.json"
    whole, said = rows.read_bytes(), about.read_text()

    def trouble() -> str:
        table, found = open_table(folder)
        assert table is None
        return found

    for damaged in (whole[:-1], b"", whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]):
        rows.write_bytes(damaged)
        assert trouble() == f"{rows} is not as it was written"
    rows.write_bytes(whole)
    for text in ("", "[]", json.dumps({"bytes": len(whole)})):
        about.write_text(text)
        assert "table is damaged" in trouble()
    about.unlink()
    assert trouble() == f"{about} is missing"
    about.write_text(said)
    rows.unlink()
    assert trouble() == f"{rows} is missing"
