"""``dpo inspect`` as users start it: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command import Outcome, dpo_each

import dpo_cli.quickstart
from dpo_cli.cli import as_overrides
from dpo_cli.errors import DpoError

MODEL = f"model.path={Path(dpo_cli.quickstart.__file__).parent / 'assets' / 'model'}"
ROWS = [
    {"prompt": "sort b a", "chosen": "a b", "rejected": "b a"},
    {"prompt": "sort b a", "chosen": "a b", "rejected": "b a"},
    {"prompt": "sort d c", "chosen": "c d"},
]
COMMANDS = {
    "screen": [MODEL, "data.path=rows.jsonl", "inspect.rows=1"],
    "json": [MODEL, "data.path=rows.jsonl", "--json"],
    "page": ["+experiment=quickstart", "data.limit=50", "inspect.rows=2", "--html", "out/it's a page.html"],
    "fails by level": [MODEL, "data.path=rows.jsonl", "--fail-on=warning", "--json"],
    "fails by name": [MODEL, "data.path=rows.jsonl", "--fail-on", "longer-wins,duplicates", "--json"],
    "does not fail": [MODEL, "data.path=rows.jsonl", "data.on_bad_row=skip", "--fail-on", "error", "--json"],
    "no such finding": [MODEL, "data.path=rows.jsonl", "--fail-on", "duplicate"],
    "no data": [MODEL],
    "sweep": [MODEL, "data.path=rows.jsonl", "-m", "loss.beta=1,2"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return folder


@pytest.fixture(scope="module")
def ended(folder: Path) -> dict[str, Outcome]:
    outcomes = dpo_each([["inspect", *words] for words in COMMANDS.values()], cwd=folder)
    return dict(zip(COMMANDS, outcomes, strict=True))


def test_rows_and_findings_are_shown(ended: dict[str, Outcome]) -> None:
    out = ended["screen"].out.replace("|", "")  # which stands between tokens
    assert ended["screen"].code == 0
    order = [out.index(words) for words in ("prompt, ", "sort", "chosen, ", "training ", "bad-rows", "1 error")]
    assert order == sorted(order)
    assert "rows.jsonl, line 2" in out  # as an example of duplicates
    assert "rows.jsonl, line 3" in out


def test_json_is_all_there_is_on_stdout(ended: dict[str, Outcome]) -> None:
    result = json.loads(ended["json"].out)
    assert result["version"] == 1
    assert result["train"]["rows"] == 2
    assert result["findings"][0]["name"] == "bad-rows"
    assert result["train"]["counts"]["first_bad"][0].startswith("rows.jsonl, line 3: ")


def test_a_page_of_a_recipe(ended: dict[str, Outcome], folder: Path) -> None:
    assert ended["page"].code == 0
    page = (folder / "out" / "it's a page.html").read_text(encoding="utf-8")
    assert "50 rows" in page
    assert page.count("<svg") == 8  # prompt, chosen, rejected and the gap, of both sides


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("fails by level", 1, "--fail-on warning: found bad-rows, duplicates"),
        ("fails by name", 1, "--fail-on longer-wins,duplicates: found duplicates"),
        ("does not fail", 0, ""),
        ("no such finding", 2, "--fail-on duplicate: expected error, warning, note, or some of bad-rows, "),
        ("no data", 2, "data.path has no value"),
        ("sweep", 2, "dpo inspect does not take -m"),
    ],
)
def test_exit_codes(ended: dict[str, Outcome], name: str, code: int, words: str) -> None:
    assert ended[name].code == code
    assert words in ended[name].err
    if name.startswith("fails"):
        json.loads(ended[name].out)  # and nothing else


def test_nothing_is_loaded_or_left_but_the_page(ended: dict[str, Outcome], folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} <= {"rows.jsonl", "out", "cache"}
    assert "load " not in "".join(outcome.err for outcome in ended.values())


def test_flags_are_keys() -> None:
    assert as_overrides("inspect", ["--json", "a=b", "--fail-on=x,y", "--html", "a b'c.html"]) == [
        *("inspect.as_json=true", "a=b", "inspect.fail_on=[x,y]", "inspect.html='a b\\'c.html'")
    ]
    for flag in ("--html", "--fail-on"):
        with pytest.raises(DpoError, match=f"{flag} needs a value"):
            as_overrides("inspect", ["a=b", flag])
