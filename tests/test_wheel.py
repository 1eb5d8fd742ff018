"""The package as users get it: everything inside, nothing beside, and it trains."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.command import environment

REPOSITORY = Path(__file__).parents[1]
MOST_BYTES = 10_000_000

pytestmark = pytest.mark.slow


def run(*words: str, cwd: Path, **variables: str) -> str:
    job = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment(cwd / "cache", **variables), capture_output=True, text=True
    )
    assert job.returncode == 0, job.stdout + job.stderr
    return job.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(REPOSITORY), cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        return set(archive.namelist())


def files(folder: str, pattern: str) -> set[str]:
    return {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / folder).rglob(pattern) if path.is_file()}


def test_everything_is_inside(names: set[str]) -> None:
    expected = {f"dpo_cli/{name}" for kind in ("*.yaml", "*.json") for name in files("configs", kind)}
    expected |= files("dpo_cli", "*.py") | files("dpo_cli/quickstart/assets", "*")
    expected |= files("dpo_cli/data/templates", "*.jinja")
    assert len([name for name in expected if name.endswith(".jinja")]) >= 5
    assert expected - names == set()


def test_nothing_else_is_inside(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dpo_cli"}
    assert len(tops) == 2
    kinds = {Path(name).suffix for name in names if name.startswith("dpo_cli/")}
    assert kinds <= {".py", ".yaml", ".jinja", ".json", ".jsonl", ".safetensors", ".typed"}


def test_it_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < MOST_BYTES


def test_it_trains_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel), cwd=work)
    here = {"PYTHONPATH": str(site)}
    where = run("-c", "import dpo_cli; print(dpo_cli.__file__)", cwd=work, **here)
    assert where.strip() == str(site / "dpo_cli" / "__init__.py"), "the checkout must not stand in for the wheel"
    assert run("-m", "dpo_cli", "configs", cwd=work, **here).strip() == str(site / "dpo_cli" / "configs")
    run(
        *("-m", "dpo_cli", "train", "+experiment=quickstart", "train.max_steps=2", "eval.samples=8", "run_dir=run"),
        cwd=work,
        **here,
    )
    final = {path.name for path in (work / "run" / "final").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"} <= final
    config = (work / "run" / "config.yaml").read_text(encoding="utf-8")
    assert str(site / "dpo_cli" / "quickstart" / "assets" / "model") in config
