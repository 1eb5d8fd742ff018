"""What keeps libraries from being loaded is said in one line, and is no bug of ours."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers.command import dpo, environment

from dpo_cli.environment import loading_libraries
from dpo_cli.errors import DpoError

TRAIN = ("train", "+experiment=quickstart", "run_dir=run")


def refused(cwd: Path, variables: Mapping[str, str], *more: str) -> str:
    """The one line, without a traceback; nothing is made."""
    job = dpo(*TRAIN, *more, cwd=cwd, variables=variables)
    assert job.returncode == 2, job.stderr[-3000:]
    [line] = [line for line in job.stderr.splitlines() if line.startswith("dpo: ")]
    assert "Traceback" not in job.stderr
    assert not (cwd / "run").exists()
    return line


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("TORCH_LOGS", "rubbish", "must be a comma separated list"),
        ("TORCH_DISTRIBUTED_DEBUG", "rubbish", "must be OFF, INFO, or DETAIL"),
        pytest.param("DS_ACCELERATOR", "rubbish", "must be one of", marks=pytest.mark.slow),
        pytest.param("DS_ACCELERATOR", "npu", "requires torch_npu", marks=pytest.mark.slow),
        pytest.param("HF_HUB_DOWNLOAD_TIMEOUT", "soon", "invalid literal for int()", marks=pytest.mark.slow),
    ],
)
def test_a_variable_that_a_library_refuses_is_named_with_its_value(
    name: str, value: str, says: str, tmp_path: Path
) -> None:
    line = refused(tmp_path, {name: value})
    assert f"dpo: {name}={value}: " in line
    assert says in line
    assert line.endswith("Set it right, or unset it")


@pytest.mark.slow
def test_of_several_processes_it_is_said_once(tmp_path: Path) -> None:
    line = refused(tmp_path, {"TORCH_LOGS": "rubbish"}, "launch.num_processes=2", "launch=local")
    assert "TORCH_LOGS=rubbish: torch refuses it" in line


@pytest.mark.parametrize(
    ("module", "error", "says"),
    [
        (
            "hydra",
            "ModuleNotFoundError(\"No module named 'hydra'\", name='hydra')",
            "hydra can't be imported (No module",
        ),
        (
            "safetensors",
            "ImportError('libc.so.9: no such file', name='safetensors')",
            "safetensors can't be imported (libc",
        ),
    ],
)
def test_a_package_that_can_not_be_loaded_is_named(module: str, error: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / f"{module}.py").write_text(f"raise {error}")
    path = os.pathsep.join([str(tmp_path / "lib"), *filter(None, [os.environ.get("PYTHONPATH")])])
    assert says in refused(tmp_path, {"PYTHONPATH": path})


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            "raise ValueError('Wrong: ' + os.environ['LIB_LOGS'])",
            r"^LIB_LOGS=soon: lib refuses it \(Wrong: soon\)\. Set",
        ),
        ("raise RuntimeError('LIB_LOGS must be a number')", r"^LIB_LOGS=soon: lib refuses it \(LIB_LOGS must be"),
        (
            "def read():\n    return int(os.environ['LIB_LOGS'])\nread()",
            r"^LIB_LOGS=soon: lib refuses it \(invalid lit",
        ),
        ("import lib_that_is_gone", r"lib_that_is_gone can't be imported"),
        ("raise ValueError('Wrong, and not because of what it is told: soon')", None),
        ("raise ValueError('Wrong')", None),
    ],
)
def test_what_a_library_says_while_it_is_imported(
    code: str, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib.py").write_text(f"import os\n{code}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LIB_LOGS", "soon")
    monkeypatch.setenv("OTHER_LOGS", "soon")
    with pytest.raises(ValueError if says is None else DpoError, match=says), loading_libraries():
        importlib.import_module("lib")


def test_what_is_missing_by_our_own_metadata_is_named_as_pip_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise DpoError("these packages will not do: yes")

    monkeypatch.setattr("dpo_cli.versions.check_versions", missing)
    with pytest.raises(DpoError, match="these packages will not do: yes"), loading_libraries():
        raise RuntimeError("transformers has a word of its own") from ImportError(name="regex")


def test_what_is_not_of_the_environment_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    with pytest.raises(RuntimeError, match="for debugging"), loading_libraries():
        raise RuntimeError("for debugging consider CUDA_LAUNCH_BLOCKING=1")  # not while anything is imported
    with pytest.raises(ImportError, match="ours"), loading_libraries():
        raise ImportError("ours", name="dpo_cli.nothing")


@pytest.mark.parametrize(
    ("flags", "variables", "says"),
    [
        ([], {"PYTHONOPTIMIZE": "2"}, "dpo: PYTHONOPTIMIZE=2 has Python leave out"),
        ([], {"PYTHONOPTIMIZE": "1"}, "dpo: PYTHONOPTIMIZE=1 has Python leave out"),
        (["-OO"], {}, "dpo: -OO has Python leave out"),
    ],
)
@pytest.mark.parametrize("command", ["train", "merge"])
def test_python_that_leaves_things_out_is_refused(
    flags: list[str], variables: dict[str, str], says: str, command: str, tmp_path: Path
) -> None:
    kept = environment(tmp_path / "cache")
    kept.pop("PYTHONOPTIMIZE", None)
    job = subprocess.run(
        [sys.executable, *flags, "-m", "dpo_cli", command, "model"],
        env={**kept, **variables},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert job.returncode == 2
    assert job.stderr.startswith(says)
    assert len(job.stderr.splitlines()) == 1
