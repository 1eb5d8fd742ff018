"""Configurations of other tools, and what becomes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_cli.importing import import_config
from dpo_cli.importing.draft import Draft

Convert = Callable[..., "Result"]


FIELDS = """
import dataclasses, json, os
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from transformers import TrainingArguments
from trl import DPOConfig, KTOConfig, ModelConfig, ScriptArguments
from trl.experimental.cpo import CPOConfig
from trl.experimental.orpo import ORPOConfig
from trl.scripts.utils import DatasetMixtureConfig

def default(field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()

classes = [TrainingArguments, DPOConfig, KTOConfig, CPOConfig, ORPOConfig]
found = {c.__name__: {f.name: default(f) for f in dataclasses.fields(c)} for c in classes}
script = [ModelConfig, ScriptArguments, DatasetMixtureConfig]
found["script"] = {f.name: default(f) for c in script for f in dataclasses.fields(c)}
found["saved"] = json.loads(DPOConfig(output_dir="x", use_cpu=True).to_json_string())
print(json.dumps(found, default=str))
"""


class Result:
    """An experiment's text; the draft that it was made from; its keys."""

    def __init__(self, text: str, draft: Draft) -> None:
        self.text = text
        self.draft = draft
        self.tree: dict[str, Any] = yaml.safe_load(text)

    @property
    def keys(self) -> dict[str, Any]:
        """Full keys with their values, and each overridden group with its option."""
        groups = {}
        for entry in self.tree.get("defaults", []):
            ((key, option),) = entry.items()
            groups[key.removeprefix("override /")] = option
        return groups | {key: value for key, value in flat(self.tree) if not key.startswith("defaults")}

    def section(self, title: str) -> str:
        """The remarks under a heading that starts so, on one line; empty if there are none."""
        lines = [line for line in self.text.splitlines() if line.startswith("#")]
        starts = [number for number, line in enumerate(lines) if line.startswith("# -- ")]
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            if lines[start].startswith(f"# -- {title}"):
                return " ".join(line.lstrip("#").strip() for line in lines[start + 1 : end])
        return ""

    @property
    def remarks(self) -> str:
        """All remarks after the keys."""
        return " ".join(
            self.section(title) for title in ("Not the same", "Not converted, and", "Unknown", "Not converted, w")
        )


def flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Full keys with their values."""
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found += flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


@pytest.fixture(scope="session")
def installed_trl() -> dict[str, dict[str, Any]]:
    """Options and defaults of the TRL that is installed, by class; ``saved``: a DPOConfig as it writes itself to JSON.

    Asked in a process of its own, because importing TRL warns.
    """
    pytest.importorskip("trl")
    job = subprocess.run([sys.executable, "-W", "ignore", "-c", FIELDS], capture_output=True, text=True, check=False)
    assert job.returncode == 0, job.stderr
    return json.loads(job.stdout.splitlines()[-1])


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    """Options of a file, converted."""

    def result(given: dict[str, Any], *, trainer: str | None = None, processes: int = 1) -> Result:
        file = tmp_path / "given.yaml"
        file.write_text(yaml.safe_dump(given), encoding="utf-8")
        return Result(*import_config(file, trainer=trainer, processes=processes, heading=[]))

    return result
