"""Experiment files by strangers: what is wrong with one is a line, and none takes the memory or hangs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_cli.cli import main

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
STRANGE = {
    "ten lines for a billion values": (BOMB, "line 2: not valid YAML (more than 100,000 values, by aliases)"),
    "a mapping that holds itself": ("train: &t\n  epochs: *t\n", "(more than 100,000 values, by aliases)"),
    "lists in lists": (f"seed: {'[' * 5000}{']' * 5000}\n", "lists or mappings too deep in each other"),
    "a number of 5000 digits": (f"seed: {'9' * 5000}\n", "line 2: not valid YAML (Exceeds the limit (4300 digits)"),
    "a number alone": ("5", "line 2: not valid YAML (expected a mapping, found a value alone)"),
    "code": ("seed: !!python/object/apply:os.getpid []\n", "could not determine a constructor for the tag"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_experiment_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, says = STRANGE[name]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "odd.yaml").write_text(f"# @package _global_\n{text}")
    assert main(["train", "+experiment=odd", f"--config-dir={tmp_path}", "--cfg", "job"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


def test_aliases_are_ordinary_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "even.yaml").write_text("# @package _global_\nseed: &s 7\ntrain: {max_steps: *s}\n")
    assert main(["train", "+experiment=even", f"--config-dir={tmp_path}", "--cfg", "job"]) == 0
    assert "max_steps: 7" in capsys.readouterr().out
