"""The shipped model and data are what the builder makes from its seed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
BUILT_WITH = json.loads((REPOSITORY / "dpo_cli/quickstart/assets/manifest.json").read_text())["versions"]
OTHERS = [
    f"{name} {version(name)}, built with {built}"
    for name, built in BUILT_WITH.items()
    if version(name).split("+")[0] != built.split("+")[0]
]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(bool(OTHERS), reason=f"other versions draw other random numbers: {'; '.join(OTHERS)}")
def test_the_builder_makes_the_shipped_assets_again() -> None:
    words = [sys.executable, "scripts/build_quickstart.py", "--check"]
    ended = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "model/model.safetensors" in ended.stdout
    assert "train.jsonl: identical" in ended.stdout
