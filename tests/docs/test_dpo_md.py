"""docs/dpo.md names code that exists and commands that compose, and its tables are those that the study makes."""

from __future__ import annotations

import ast
import json
import re
import shlex
import statistics
from pathlib import Path
from types import ModuleType

import pytest
from helpers.command import dpo_each
from helpers.scripts import load_script

from dpo_cli.config import TrainConfig, valid_keys
from dpo_cli.losses import LOSSES

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs" / "dpo.md").read_text(encoding="utf-8")
CODE = re.compile(r"`([\w./]+\.(?:py|yaml))(?:::([\w.]+))?`")
"""A file, from the repository or from dpo_cli; after two colons a name in it."""
NAMED = sorted(set(CODE.findall(DOCUMENT)))


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return load_script("study_quickstart")


def defined(tree: ast.Module | ast.ClassDef, names: list[str]) -> bool:
    """Whether a function, class, constant or field of this dotted name is defined."""
    first, *others = names
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == first:
            return not others or (isinstance(node, ast.ClassDef) and defined(node, others))
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not others and any(isinstance(target, ast.Name) and target.id == first for target in targets):
            return True
    return False


def test_the_document_names_code() -> None:
    """Or the next test would pass on an empty list."""
    assert len(NAMED) > 12
    assert ("losses/dpo.py", "dpo") in NAMED


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_the_document_names_exists(file: str, name: str) -> None:
    found = [folder / file for folder in (REPOSITORY, REPOSITORY / "dpo_cli") if (folder / file).is_file()]
    assert found, f"{file}: no such file"
    if name:
        assert defined(ast.parse(found[0].read_text(encoding="utf-8")), name.split(".")), f"{file} has no {name}"


def test_every_loss_has_its_step_and_every_key_exists() -> None:
    table = DOCUMENT.partition("| loss or key |")[2].partition("\n\n")[0]
    first_cells = " ".join(line.split("|")[1] for line in table.splitlines()[2:])
    names = re.findall(r"`([a-z_]+)`", first_cells)
    assert sorted(names) == sorted([*LOSSES, "sum", "mpo"])
    keys = set(re.findall(r"`((?:model|data|loss|reference|optim|train|eval)\.[a-z_]+)", DOCUMENT))
    assert len(keys) > 15
    assert keys - set(valid_keys(TrainConfig)) == set()


def test_relative_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", DOCUMENT) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (REPOSITORY / "docs" / link).exists()] == []


def test_every_table_is_made_by_the_study(study: ModuleType) -> None:
    """Marker by marker, with the study's own columns and rows, and a figure in every cell."""
    marked = dict(re.findall(r"<!-- study: ([\w-]+) -->\n(.*?)\n<!-- end -->", DOCUMENT, re.DOTALL))
    assert marked.keys() == {*study.TABLES, "when"}
    for name, table in study.TABLES.items():
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in marked[name].splitlines()]
        assert head == [table.heading, *table.columns], name
        assert [row[0] for row in rows] == list(table.rows), name
        assert all(re.search(r"\d", cell) for row in rows for cell in row[1:]), name


def test_every_table_row_has_as_many_cells_as_its_head() -> None:
    """A bar inside a formula would split a cell."""
    for block in re.findall(r"(?:^\|.*\|\n)+", DOCUMENT, re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1, block


@pytest.mark.slow
def test_settings_and_commands_compose(study: ModuleType, tmp_path: Path) -> None:
    commands = [["train", *study.ALWAYS, *overrides.split()] for overrides in study.settings()]
    lines = re.findall(r"^\$ dpo (.*)$", DOCUMENT, re.MULTILINE)
    assert lines
    commands += [shlex.split(line, comments=True) for line in lines]
    tried = [[*words, "--cfg", "job"] for words in commands if words[0] == "train"]
    for words, outcome in zip(tried, dpo_each(tried, cwd=tmp_path), strict=True):
        assert outcome.code == 0, (words, outcome.err)


def test_the_study_reads_what_runs_leave(study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "RUNS", tmp_path)
    for name, margin in (("recipe", 2.5), ("loss.beta-0.1-seed-1", 0.8)):
        run = tmp_path / name
        run.mkdir()
        lines = [
            {"step": 0, "eval/rewards/margins": 0.0},
            {"step": 4, "loss": 0.5},
            {"step": 4, "eval/rewards/margins": margin, "samples/kl": 1.25, "samples/kl_error": 0.26},
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        prompt = "Sort A to Z: fig bell desk"
        answers = [
            (0, "fig bell", 0.1),
            (4, "bell fig desk", 0.5),
            (4, "bell desk fig", 1.0),
            (4, "fig fig bell fig fig fig", 0.0),
        ]
        rows = [{"step": step, "prompt": prompt, "answer": text, "true_reward": r} for step, text, r in answers]
        (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run / "run.json").write_text(json.dumps({"status": "done", "updates": 4}))
    columns = ("updates", "h", "margin", "KL", "true reward", "right words", "too long")
    error = statistics.stdev([0.5, 1.0, 0.0]) / 3**0.5
    before = study.read(study.BEFORE)
    assert [sample["answer"] for sample in before.samples] == ["fig bell"]
    before.samples.append({**before.samples[0], "true_reward": 0.3})
    assert study.COLUMNS["true reward"](before) == "0.200 ± 0.100"
    table = study.Table("run", columns, {"recipe": "", "other": "loss.beta=0.1 seed=1"})
    assert study.markdown(table).splitlines()[2:] == [
        f"| recipe | 4 | 2.5 | 2.50 | 1.2 ± 0.3 | 0.500 ± {error:.3f} | 0.67 | 0.33 |",
        f"| other | 4 | 8.0 | 0.80 | 1.2 ± 0.3 | 0.500 ± {error:.3f} | 0.67 | 0.33 |",
    ]


def test_blocks_are_replaced_and_nothing_else(study: ModuleType) -> None:
    text = "a\n<!-- study: x -->\nold\nold\n<!-- end -->\nb\n<!-- study: y -->\nz\n<!-- end -->\n"
    assert study.rewrite(text, {"x": r"new \1"}) == text.replace("old\nold", r"new \1")
    with pytest.raises(SystemExit, match="expected one place for w, found 0"):
        study.rewrite(text, {"w": ""})
