"""``dpo doctor``: what is well is called so, and what is not is named with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers.run_folders import make_run
from safetensors.torch import save_file

from dpo_cli import versions
from dpo_cli.cli import main
from dpo_cli.data.store import TableWriter, to_batch
from dpo_cli.data.types import Group, Pair
from dpo_cli.errors import DpoError
from dpo_cli.reference.store import ReferenceStore
from dpo_cli.training import checkpoint
from dpo_cli.versions import Needed, check_versions, needed

GROUP = Group(np.array([1, 2], np.int32), (np.array([3], np.int32), np.array([4], np.int32)), (Pair(0, 1),), "row 1")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a reference's chunk and a table."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DPO_CACHE", str(folder))
    store = ReferenceStore(folder / "reference", {"a": 1})
    store.add([GROUP], [[np.array([-1.0], np.float32), np.array([-2.0], np.float32)]])
    table = folder / "tokens" / "abc"
    table.mkdir(parents=True)
    writer = TableWriter(table)
    writer.add(to_batch([GROUP], [1], [1]))
    writer.close()
    writer.finish({})
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints and a model."""
    folder = make_run(tmp_path / "run", steps=8)
    for step in (4, 8):
        tensors = [("a", torch.full((3,), float(step)))]
        checkpoint.write(
            folder / "checkpoints", checkpoint.TrainingState(step, "data", {}), tensors, tensors, first=True
        )
    (folder / "final" / "config.json").write_text("{}")
    save_file({"a": torch.ones(1500, 1000)}, folder / "final" / "model.safetensors", metadata={"format": "pt"})
    return folder


Asked = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Asked:
    """The exit code, what was found by name, and what was said."""

    def asked(*words: str) -> tuple[int, dict[str, Any], str]:
        code = main(["doctor", "--json", *words])
        out, err = capsys.readouterr()
        found = {f"{each['part']}/{each['name']}/{each['right']}": each for each in json.loads(out or "[]")}
        return code, found, err

    return asked


def test_a_machine_that_is_well(cache: Path, ask: Asked) -> None:
    code, found, err = ask()
    assert (code, err) == (0, "")
    assert {"packages/torch/True", "devices/between processes/True", "disk/cache/True", "network/hub/True"} <= set(
        found
    )
    assert found["cache/reference/True"]["found"].startswith("1 references, ")
    assert found["cache/tokens/True"]["found"].startswith("1 tables, ")


def test_it_is_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(run)]) == 0
    out = capsys.readouterr().out
    assert "step-8" in out
    assert "whole: update 8, every hash compared" in out
    assert "a model of 1.50 million numbers, all finite" in out


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_damaged_caches_are_named(cache: Path, ask: Asked) -> None:
    (chunk,) = cache.glob("reference/*/chunk-*")
    rows = cache / "tokens" / "abc" / "rows.arrow"
    damage(chunk)
    damage(rows)
    cache.chmod(0o777)
    (cache / "tokens" / "abc.lock").touch()
    with FileLock(cache / "tokens" / "abc.lock", is_singleton=False):
        code, found, err = ask()
    assert code == 2
    assert found["cache/reference/False"]["found"] == f"{chunk} is damaged"
    assert found["cache/reference/False"]["advice"] == f"rm {chunk}; it is computed again"
    assert found["cache/tokens/False"]["found"] == f"{rows} is not as it was written"
    assert found["cache/folder/False"]["found"].endswith("can be written to by everybody")
    assert "cache/lock/True" in found
    assert "are not right (cache: folder, cache: reference, cache: tokens)" in err


def lose_config(run: Path) -> None:
    (run / "config.yaml").unlink()


def spoil_weights(run: Path) -> None:
    save_file({"a": torch.tensor([1.0, float("nan")])}, run / "final" / "model.safetensors")


def cut_weights(run: Path) -> None:
    file = run / "final" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def repeat_a_line(run: Path) -> None:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, next(line for line in lines if '"loss"' in line)]))


WRONG = {
    "a bit of a checkpoint": (
        lambda run: damage(run / "checkpoints" / "step-4" / "weights.safetensors"),
        "checkpoints/step-4/False",
        "weights.safetensors has changed since it was written",
    ),
    "no manifest": (
        lambda run: (run / "checkpoints" / "step-8" / "manifest.json").unlink(),
        "checkpoints/step-8/False",
        "is not a complete checkpoint",
    ),
    "weights that are not finite": (spoil_weights, "run/final/False", "a holds numbers that are not finite"),
    "weights that are cut": (cut_weights, "run/final/False", "and the file has"),
    "half a line": (
        lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"st'),
        "run/metrics.jsonl/False",
        "line 2 is no metrics",
    ),
    "an update twice": (repeat_a_line, "run/metrics.jsonl/False", "updates are there twice, or not in order"),
    "no configuration": (lose_config, "run/config.yaml/False", "missing or damaged"),
    "no record": (
        lambda run: (run / "run.json").write_text("{"),
        "run/run.json/False",
        "broken: run.json is missing or",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_run_is_named(name: str, run: Path, ask: Asked) -> None:
    spoil, key, says = WRONG[name]
    assert ask(str(run))[0] == 0
    spoil(run)
    code, found, err = ask(str(run))
    assert code == 2
    assert says in found[key]["found"]
    assert found[key]["advice"]
    assert [each for each in found if each.endswith("False")] == [key]
    assert err.startswith("dpo: doctor: 1 of ")


def test_what_is_no_run_is_refused(tmp_path: Path, ask: Asked) -> None:
    code, _, err = ask(str(tmp_path))
    assert code == 2
    assert err == f"dpo: {tmp_path} is not a run's folder: it holds neither run.json nor config.yaml\n"


def test_versions_are_those_of_the_package() -> None:
    found = {package.name: package for package in needed()}
    assert {"torch", "transformers", "jinja2", "hydra-core"} <= set(found)
    assert all(package.right for package in found.values())
    assert not {"ruff", "optuna", "pytest"} & set(found)
    assert "pytest" not in {package.name for package in needed(extras=True)}
    check_versions()


def test_an_old_version_stops_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"jinja2": "3.1.5", "torch": "2.10.0+cu128"}
    monkeypatch.setattr(versions, "requires", lambda _: ["jinja2>=3.1.6", "torch>=2.10", "gone>=1; extra == 'x'"])
    monkeypatch.setattr(versions, "version", installed.__getitem__)
    assert list(needed()) == [
        Needed("jinja2", "3.1.5", ">=3.1.6", False),
        Needed("torch", "2.10.0+cu128", ">=2.10", True),
    ]
    with pytest.raises(
        DpoError, match=r"jinja2 3.1.5 \(expected >=3.1.6\); install them: pip install 'jinja2>=3.1.6'$"
    ):
        check_versions()
