"""Tables are made once, of what was asked for, or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from helpers.tokenizers import quickstart, with_bos, without_bos

import dpo_cli.data.build
import dpo_cli.data.pool
from dpo_cli.data.build import Recipe, build, encode_rows
from dpo_cli.data.formats import Reading
from dpo_cli.data.pool import by_chunks
from dpo_cli.data.sources import Row, Source
from dpo_cli.data.store import Table
from dpo_cli.data.tokenize import Encoding
from dpo_cli.errors import DataError, DpoError

TOKENIZER = without_bos()
RECIPE = Recipe(Reading(), Encoding(max_length=64), "pairs", "raise")


def pair(prompt: str, chosen: str = "yes", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": "no"} | more


@dataclass
class Bench:
    """A folder of tables, and what was said while they were made."""

    folder: Path
    read: int = 0
    """Times that rows were read."""
    phases: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def make(self, *rows: dict[str, Any], recipe: Recipe = RECIPE, tokenizer: Any = TOKENIZER, **options: Any) -> Table:
        source = Source("pairs.jsonl", options.pop("identity", repr(rows)), lambda: self.rows(rows), len(rows))
        return build(
            source,
            recipe,
            tokenizer,
            folder=self.folder,
            phase=self.phase,
            warn=self.warnings.append,
            **{"workers": 1} | options,
        )

    def rows(self, rows: tuple[dict[str, Any], ...]) -> Iterator[Row]:
        self.read += 1
        return (Row(f"line {number}", values) for number, values in enumerate(rows, start=1))

    @contextmanager
    def phase(self, name: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        self.phases.append(name)
        yield lambda units: None

    def left(self) -> set[str]:
        return {file.suffix or "table" for file in self.folder.iterdir()} - {".lock"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "tokens")


def questions(table: Table) -> list[str]:
    return [table[row].question for row in range(len(table))]


def test_a_table_is_made_once(bench: Bench) -> None:
    first = bench.make(pair("p"), pair("q"))
    assert questions(first) == ["p", "q"]
    assert first.facts["counts"]["read"] == 2
    assert questions(bench.make(pair("p"), pair("q"))) == ["p", "q"]
    assert (bench.read, bench.phases, bench.warnings) == (1, ["tokenise pairs.jsonl"], [])


def test_what_would_change_it_makes_another(bench: Bench) -> None:
    other_template = quickstart()
    other_template.chat_template += " "
    ways: list[dict[str, Any]] = [
        {},
        {"tokenizer": with_bos()},
        {"tokenizer": quickstart()},
        {"tokenizer": other_template},
        {"identity": "other rows"},
        *(
            {"recipe": replace(RECIPE, **change)}
            for change in (
                {"kind": "answers"},
                {"limit": 5},
                {"on_bad_row": "skip"},
                {"reading": Reading(loss_on="differing")},
                *(
                    {"encoding": Encoding(**change)}
                    for change in ({"max_length": 63}, {"max_length": 64, "text": "plain"})
                ),
            )
        ),
    ]
    for made, way in enumerate(ways, start=1):
        bench.make(pair("p"), **{"identity": "rows"} | way)
        assert bench.read == made, way


def test_another_version_makes_another(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.make(pair("p"))
    monkeypatch.setattr(dpo_cli.data.build, "_code", lambda: "changed")
    bench.make(pair("p"))
    assert bench.read == 2


def test_a_damaged_table_is_made_again(bench: Bench) -> None:
    table = bench.make(pair("p"))
    rows = table.folder / "rows.arrow"
    rows.write_bytes(rows.read_bytes()[:-9])
    assert questions(bench.make(pair("p"))) == ["p"]
    assert bench.warnings == [f"{rows} is not as it was written; it is made again"]
    bench.make(pair("p"))
    assert bench.read == 2


def test_what_a_killed_process_left_is_in_nobodys_way(bench: Bench) -> None:
    place = bench.make(pair("p")).folder
    place.rename(place.with_suffix(".new"))
    assert questions(bench.make(pair("p"))) == ["p"]
    assert bench.left() == {"table"}


def test_waiting_for_another_process_is_shown(bench: Bench) -> None:
    place = bench.make(pair("p")).folder
    lock = FileLock(place.with_suffix(".lock"), thread_local=False)
    lock.acquire()
    waited: list[str] = []

    @contextmanager
    def phase(name: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        waited.append(name)
        lock.release()
        yield lambda units: None

    bench.phase = phase  # type: ignore[method-assign]
    assert questions(bench.make(pair("p"))) == ["p"]
    assert waited == ["wait for another process to tokenise pairs.jsonl"]


BAD = {"prompt": "p", "chosen": "yes"}


def test_bad_rows_stop_it_and_nothing_is_left(bench: Bench) -> None:
    with pytest.raises(DataError) as error:
        bench.make(pair("p"), BAD, pair("q"), BAD)
    first, second, summary = str(error.value).splitlines()
    assert first.startswith("line 2: no shape has the columns")
    assert second.startswith("line 4: ")
    assert summary == "... 2 bad rows in the first 4; data.on_bad_row=skip leaves such rows out and counts them"
    assert bench.left() == set()


def test_bad_rows_are_left_out_and_counted(bench: Bench) -> None:
    recipe = replace(RECIPE, on_bad_row="skip")
    table = bench.make(*[BAD] * 12, pair("p"), pair("q"), recipe=recipe)
    counts = table.facts["counts"]
    assert (questions(table), counts["read"], counts["bad"]) == (["p", "q"], 14, 12)
    assert [message.partition(":")[0] for message in counts["first_bad"]] == [f"line {n}" for n in range(1, 11)]
    with pytest.raises(DataError, match=r"pairs.jsonl: no usable row: 2 read, 2 bad$"):
        bench.make(BAD, BAD, recipe=recipe)
    with pytest.raises(DataError, match=r"^pairs.jsonl: no usable row: 0 read, 0 bad$"):
        bench.make(recipe=recipe)


def test_reading_ends_with_the_tenth_bad_row(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpo_cli.data.pool, "CHUNK", 4)
    with pytest.raises(DataError, match="10 bad rows in the first 12") as error:
        bench.make(*[BAD] * 10, *[pair("p")] * 90)
    assert len(str(error.value).splitlines()) == 11


def test_a_set_that_begins_with_bad_rows_alone_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpo_cli.data.pool, "CHUNK", 1)
    recipe = replace(RECIPE, on_bad_row="skip")
    with pytest.raises(DataError, match=r"(?s)line 1: no shape has.*no usable row: 8 read, 8 bad") as error:
        bench.make(*[BAD] * 8, pair("p"), recipe=recipe)
    assert len(str(error.value).splitlines()) == 9
    assert len(bench.make(*[BAD] * 7, pair("p"), recipe=recipe)) == 1


def test_long_rows(bench: Bench) -> None:
    rows = [pair("p"), pair("p" * 90), pair("p", "a" * 99)]
    limits = "data.max_length=64, data.max_prompt_length=null"
    strict = replace(RECIPE, encoding=Encoding(max_length=64, on_too_long="raise"))
    with pytest.raises(DataError) as error:
        bench.make(*rows, recipe=strict)
    first, second, summary = str(error.value).splitlines()
    assert first == "line 2: prompt of 90 tokens, answers of 4 and 3"
    assert second == "line 3: prompt of 1 tokens, answers of 100 and 3"
    assert summary.startswith(f"... 2 of 3 rows are too long, the longest 101 ({limits}); data.on_too_long=truncate")
    dropping = replace(RECIPE, encoding=Encoding(max_length=64, on_too_long="drop"))
    assert questions(bench.make(*rows, recipe=dropping)) == ["p"]
    with pytest.raises(DataError) as nothing:
        bench.make(*rows[1:], recipe=dropping)
    assert str(nothing.value) == f"pairs.jsonl: no row is left of 2: 2 too long ({limits})"


def test_rows_that_the_template_refuses_are_bad_rows(bench: Bench) -> None:
    tokenizer = quickstart()
    refuses = "{% for m in messages %}{% if m.content == 'stop' %}{{ raise_exception('never') }}{% endif %}{% endfor %}"
    tokenizer.chat_template = refuses + tokenizer.chat_template
    rows = [pair("stop"), pair("p"), pair("q"), pair("stop")]
    table = bench.make(*rows, recipe=replace(RECIPE, on_bad_row="skip"), tokenizer=tokenizer)
    assert (questions(table), table.facts["counts"]["bad"]) == (["p", "q"], 2)
    with pytest.raises(DataError) as error:
        bench.make(*rows, tokenizer=tokenizer)
    first, second, summary = str(error.value).splitlines()
    assert first == "line 1: the chat template refuses this dialogue (never)"
    assert second.startswith("line 4: ")
    assert "2 bad rows in the first 4" in summary
    with pytest.raises(DataError, match="no usable row: 1 read, 1 bad"):
        bench.make(pair("stop"), recipe=replace(RECIPE, on_bad_row="skip"), tokenizer=tokenizer)


def test_rows_of_another_kind_stop_it(bench: Bench) -> None:
    judged = {"prompt": "p", "completion": "a", "label": True}
    with pytest.raises(DataError, match=r"^line 2: the loss compares answers: .*loss=kto"):
        bench.make(pair("p"), judged, recipe=replace(RECIPE, on_bad_row="skip"))


def test_ties_are_left_out(bench: Bench) -> None:
    tie = {"prompt": "t", "completions": ["a", "b"], "scores": [1, 1]}
    better = {"prompt": "b", "completions": ["a", "b"], "scores": [1, 2]}
    table = bench.make(tie, better, tie)
    assert (questions(table), table.facts["counts"]["without_preference"]) == (["b"], 2)
    with pytest.raises(DataError, match=r"no row is left of 1: 1 with equal scores, so that nothing is preferred$"):
        bench.make(tie)


def test_the_limit_is_of_rows_read(bench: Bench) -> None:
    recipe = replace(RECIPE, limit=2, on_bad_row="skip")
    assert questions(bench.make(BAD, pair("p"), pair("q"), recipe=recipe)) == ["p"]


def test_keys_are_of_prompts_and_of_rows(bench: Bench) -> None:
    as_messages = [{"role": "user", "content": "p"}]
    table = bench.make(pair("p"), pair("p"), pair("p", "other"), pair("q"), tokenizer=quickstart())
    messages = bench.make({"prompt": as_messages, "chosen": "yes", "rejected": "no"}, tokenizer=quickstart())
    one, same, other, another = table.keys("prompt_key").tolist()
    assert one == same == other == messages.keys("prompt_key")[0]
    assert another != one
    rows = table.keys("content_key").tolist()
    assert rows[0] == rows[1]
    assert len(set(rows)) == 3


def test_chunks_do_not_show(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [pair("p" * number, "y" * number) for number in range(1, 20)]
    whole = bench.make(*rows)
    monkeypatch.setattr(dpo_cli.data.pool, "CHUNK", 3)
    parts = bench.make(*rows, identity="again")
    assert whole.facts == parts.facts
    for row in range(19):
        assert plain(whole, row) == plain(parts, row)


def plain(table: Table, row: int) -> list[Any]:
    group = table[row]
    return [group.source, group.prompt_ids.tolist(), [answer.tolist() for answer in group.answers]]


@pytest.mark.slow
def test_other_processes_make_the_same_table(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpo_cli.data.pool, "CHUNK", 2)
    monkeypatch.setattr(dpo_cli.data.pool, "ALONE", 1)
    rows = [pair("p" * number) for number in range(1, 30)]
    alone = bench.make(*rows, BAD, recipe=replace(RECIPE, on_bad_row="skip"))
    together = bench.make(*rows, BAD, recipe=replace(RECIPE, on_bad_row="skip"), identity="again", workers=2)
    assert alone.facts == together.facts
    assert [plain(alone, row) for row in range(29)] == [plain(together, row) for row in range(29)]
    with pytest.raises(DataError, match="line 30: no shape has the columns"):  # raised over there, told here
        bench.make(*rows, BAD, workers=2)
    with pytest.raises(DataError, match="line 30: the loss compares answers"):
        bench.make(*rows, {"prompt": "p", "completion": "a", "label": True}, workers=2)


def _die(rows: Sequence[Row]) -> None:
    if parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_that_was_killed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpo_cli.data.pool, "CHUNK", 1)
    monkeypatch.setattr(dpo_cli.data.pool, "ALONE", 1)
    rows = [Row(f"row {number}", {}) for number in range(4)]
    with pytest.raises(DpoError, match="a process that was tokenising rows was ended from outside"):
        list(dpo_cli.data.pool.by_chunks(rows, _die, 2))


_RACE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_build_tables import RECIPE, Bench, pair
bench = Bench(Path(sys.argv[1]))
table = bench.make(*[pair("p" * (n % 50 + 1)) for n in range(400)], identity="same")
print(json.dumps([bench.read, len(table)]))
"""


@pytest.mark.slow
def test_four_at_once_make_it_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _RACE, str(tmp_path / "tokens"), str(Path(__file__).parent)]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) for _ in range(4)]
    results = [json.loads(process.communicate(timeout=120)[0]) for process in racing]
    assert sorted(read for read, _ in results) == [0, 0, 0, 1]
    assert {rows for _, rows in results} == {400}


def test_nothing_is_kept_of_what_fails_halfway(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = np.zeros(1)

    def fail(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise OSError(28, "No space left on device")
        return encode_rows(*args, **options)

    monkeypatch.setattr(dpo_cli.data.pool, "CHUNK", 1)
    monkeypatch.setattr(dpo_cli.data.build, "encode_rows", fail)
    with pytest.raises(OSError, match="No space left"):
        bench.make(pair("p"), pair("q"))
    assert bench.left() == set()
    assert questions(bench.make(pair("p"), pair("q"))) == ["p", "q"]


def test_long_rows_go_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five hundred of a megabyte each, which pack into a few kilobytes, would take ten gigabytes."""
    sizes = [3, 4, 4, 1, 30, 1, 1]
    rows = [Row(f"row {n}", {"prompt": [{"role": "user", "content": "x" * n}], "score": 1.0}) for n in sizes]
    monkeypatch.setattr(dpo_cli.data.pool, "CHARACTERS", 3 * len("user") + 10)
    assert list(by_chunks(rows, len, 1)) == [3, 2, 2]
