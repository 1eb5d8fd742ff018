"""docs/evaluation.md: its Python runs, and its tables name what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.evaluation import alarms

DOCUMENT = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_a_python_function_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The document's judge prefers the shorter answer: it wins 2 of 4, and one is a tie."""
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    pairs = [("a", "b c"), ("a b", "c"), ("a", "c d"), ("a", "b")]
    rows = [{"prompt": "q", "policy": policy, "reference": reference} for policy, reference in pairs]
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    file = tmp_path / "runs" / "mine" / "generations.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    said: dict[str, Any] = {}
    exec(snippet, said)
    assert said["found"]["win_rate"].value == (2 + 0.5) / 4
    assert said["found"]["agreement"] == 1.0


def test_every_alarm_is_in_the_table() -> None:
    names = set(re.findall(r'Alarm\(\s*"([\w-]+)"', Path(alarms.__file__).read_text(encoding="utf-8")))
    table = DOCUMENT.partition("## Warnings")[2].partition("## ")[0]
    assert set(re.findall(r"^\| ([\w-]+) \| (?!when)", table, re.MULTILINE)) == names
