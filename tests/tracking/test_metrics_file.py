"""metrics.jsonl keeps everything."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.tracking.metrics_file import JsonLines


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_object_per_step_readable_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonLines(path)
    tracker.log(1, {"train/loss": 0.6931471805599453, "train/lr": 5e-7})
    assert lines(path) == [{"step": 1, "train/loss": 0.6931471805599453, "train/lr": 5e-7}]
    tracker.log(2, {"eval/loss": 0.5})
    tracker.close()
    assert lines(path)[1] == {"step": 2, "eval/loss": 0.5}


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    JsonLines(path).log(3, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.0})
    assert path.read_text() == '{"step": 3, "a": null, "b": null, "c": null, "d": 0.0}\n'


FULL = '{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n{"step": 2, "b": 0.5}\n{"step": 3, "a": 3.0}\n'
DROPPED = ['{"step": 4, "a"', '{"st', "", "[1]", '"step"', "{}", '{"step": null}', '{"step": "x"}', '{"step": NaN}']


@pytest.mark.parametrize(
    ("content", "resume_after", "kept"),
    [
        (FULL, 3, [1, 2, 2, 3]),
        (FULL, 2, [1, 2, 2]),
        (FULL, 0, []),
        ("", 5, []),
        *((FULL + half, 9, [1, 2, 2, 3]) for half in DROPPED),
        *((half + "\n" + FULL, 9, [1, 2, 2, 3]) for half in DROPPED),
    ],
)
def test_resume_drops_later_and_half_lines(tmp_path: Path, content: str, resume_after: int, kept: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    JsonLines(path, resume_after=resume_after).log(resume_after + 1, {"a": 9.0})
    assert [line["step"] for line in lines(path)] == [*kept, resume_after + 1]
    assert lines(path)[: len(kept)] == [json.loads(line) for line in FULL.splitlines()[: len(kept)]]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


STRANGE = [
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"step": 1e999}',
    b'{"step": ' + b"9" * 5000 + b"}",
    b'{"step": {}, "a": 1}',
]


def test_what_is_no_line_is_taken_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([*STRANGE, b'{"step": 1, "a": 1.0, "b": "x", "c": [2]}', b'{"st']))
    warnings: list[str] = []
    file = JsonLines(path, resume_after=1, warn=warnings.append)
    assert file.kept == [(1, {"a": 1.0})]
    assert lines(path) == [{"step": 1, "a": 1.0, "b": "x", "c": [2]}]
    assert warnings == [f"{path}: 5 lines could not be read, and are taken out"]


def test_resume_without_a_file_starts_one(tmp_path: Path) -> None:
    JsonLines(tmp_path / "metrics.jsonl", resume_after=3).log(4, {"a": 1.0})
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 4, "a": 1.0}]


def test_what_was_kept_is_known_and_not_said_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1.0, "b": null}\n{"step": 2, "a": 2.0}\n')
    file = JsonLines(path, resume_after=2)
    assert file.kept == [(1, {"a": 1.0}), (2, {"a": 2.0})]
    file.log(2, {"a": 2.5})
    file.log(2, {"eval/a": 3.0})
    assert lines(path)[1:] == [{"step": 2, "a": 2.0}, {"step": 2, "eval/a": 3.0}]
