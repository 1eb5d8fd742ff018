"""No configuration runs code, writes where dpo does not, or changes the environment, whatever Hydra itself would do.

All that an experiment could do wrong is said at once, a line for each; so one experiment tries many doors.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.command import Outcome, dpo_each

import dpo_cli
from dpo_cli.cli import main

CODE = " would run code: not supported in a configuration"
NAMED = " names code: no configuration runs any"
OURS = " is decided by dpo: folders are run_dir and reference.cache_dir"

HYDRA = """
hydra:
  callbacks: {one: {_target_: joblib.load, filename: evil.pkl}, two: {_target_: numpy.load, file: evil.pkl}}
  launcher: {_target_: os.system}
  sweeper: {_target_: hydra.utils.get_method}
  job_logging: {handlers: {x: {(): pathlib.Path.touch, self: pwned}}}
  hydra_logging: {formatters: {x: {(): pathlib.Path.touch, self: pwned}}}
  run: {dir: ../pwned}
  sweep: {subdir: pwned}
  output_subdir: pwned
  job: {chdir: true, env_set: {PYTHONPATH: mine}, env_copy: [HOME]}
"""
HYDRA_REFUSED = [
    *(f"hydra.{key}{CODE}" for key in ("callbacks", "job_logging", "hydra_logging", "launcher", "sweeper")),
    *(f"hydra.callbacks.{key}{CODE}" for key in ("one", "two")),
    *(f"hydra.{key}{OURS}" for key in ("run.dir", "sweep.subdir", "output_subdir")),
    *(f"hydra.job.{key}{OURS}" for key in ("chdir", "env_set", "env_copy")),
]
TARGETS = """
_target_: os.system
loss: {_target_: pathlib.Path.touch, self: pwned}
model: {_target_: logging.os.system, command: touch pwned}
optim: {_target_: subprocess.run, _partial_: true, args: [touch, pwned]}
reference: {_target_: joblib.load, filename: evil.pkl}
tracker: {_target_: pathlib.Path.write_text, self: pwned, data: x}
engine: {deepspeed: {x: {_target_: builtins.open, file: pwned, mode: w}}}
data:
  template_args:
    a: {b: {_target_: posix.system, command: touch pwned}}
    list: [1, [{_target_: builtins.eval}, {_target_: shutil.copyfile, src: evil.pkl, dst: pwned}]]
    copied: ${data.template_args.a}
"""
TARGETS_REFUSED = [
    *(f"{key}_target_{NAMED}" for key in ("", "loss.", "model.", "optim.", "reference.", "tracker.")),
    f"engine.deepspeed.x._target_{NAMED}",
    *(f"data.template_args.{key}._target_{NAMED}" for key in ("a.b", "list.1.0", "list.1.1", "copied.b")),
]
TAGS = "seed: !!python/object/apply:os.system ['touch pwned']"
SEARCH = ["hydra.searchpath would import a package, which is code; expected folders alone"]
RERUN = ["--experimental-rerun reads a pickle, which can run code: not supported"]

# Words of the command line, and the lines that refuse them.
TRIED: dict[str, tuple[list[str], Sequence[str]]] = {
    "hydra": (["+experiment=hydra"], HYDRA_REFUSED),
    "hydra, sweep": (["+experiment=hydra", "-m", "seed=1,2"], HYDRA_REFUSED),
    "targets": (["+experiment=targets"], TARGETS_REFUSED),
    "targets, sweep": (["+experiment=targets", "-m", "seed=1,2"], TARGETS_REFUSED),
    "tags": (["+experiment=tags"], []),
    "rerun": (["--experimental-rerun", "evil.pkl"], RERUN),
    "rerun, cut short": (["--experimental-re=evil.pkl"], RERUN),
    "callback": (
        ["+hydra.callbacks.x={_target_:joblib.load,filename:evil.pkl}", "hydra.launcher._target_=os.system"],
        [f"hydra.{key}{CODE}" for key in ("callbacks", "launcher", "callbacks.x")],
    ),
    "search path": (["hydra.searchpath=[pkg://evil]"], SEARCH),
    "primary configuration": (["--config-name", "primary"], SEARCH),
    "primary configuration, cut short": (["--config-na=primary"], SEARCH),
    "target": (["+data.template_args={x:{_target_:os.system}}"], [f"data.template_args.x._target_{NAMED}"]),
}


class _Payload:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    root = tmp_path_factory.mktemp("doors") / "here"
    experiments = root / "mine" / "experiment"
    experiments.mkdir(parents=True)
    (root / "evil.pkl").write_bytes(pickle.dumps(_Payload()))
    (root / "evil").mkdir()
    (root / "evil" / "__init__.py").write_text("open('pwned', 'w')")
    primary = "defaults: [train, _self_]\nevil: pkg://evil\nhydra: {searchpath: ['${evil}']}\n"
    (root / "mine" / "primary.yaml").write_text(primary)
    for name, text in (("hydra", HYDRA), ("targets", TARGETS), ("tags", TAGS)):
        (experiments / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    commands = [["train", "--config-dir", "mine", "model.path=x", "data.path=y", *words] for words, _ in TRIED.values()]
    outcomes = dpo_each(commands, cwd=root, variables={"PYTHONPATH": f"{Path(__file__).parents[1]}:{root}"})
    assert not list(root.parent.rglob("pwned")), "a payload ran"
    return dict(zip(TRIED, outcomes, strict=True))


@pytest.mark.parametrize("name", TRIED)
def test_no_configuration_runs_code(name: str, ended: dict[str, Outcome]) -> None:
    found, expected = ended[name], TRIED[name][1]
    assert found.code == 2
    if name == "tags":
        assert "tags.yaml, line 2: not valid YAML (could not determine a constructor" in found.err
    else:
        points = {"seed=1: failed", "seed=2: failed"}  # of a sweep, each of which says all of it
        assert set(found.problems) - points == set(expected)
    assert not found.torch


def test_a_module_beside_the_rows_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the processes that are started from a folder: ranks, trackers, those that tokenise."""
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('a module of the folder ran')")
    started = [sys.executable, "-c", "import json"]
    assert subprocess.run(started, capture_output=True).returncode == 1
    assert main(["--version"]) == 0
    assert subprocess.run(started, capture_output=True).returncode == 0


def test_a_checkout_is_run_from_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.chdir(Path(dpo_cli.__file__).parents[1])
    assert main(["--version"]) == 0
    assert os.environ["PYTHONSAFEPATH"] == ""
