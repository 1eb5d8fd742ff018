"""metrics.jsonl keeps everything; Weights & Biases never stops a run."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
import wandb

from dpo_cli.tracking.trackers import JsonLines, WandB, wandb_mode

# JsonLines


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_object_per_step_readable_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonLines(path)
    tracker.log(1, {"train/loss": 0.6931471805599453, "train/lr": 5e-7})
    assert lines(path) == [{"step": 1, "train/loss": 0.6931471805599453, "train/lr": 5e-7}]
    tracker.log(2, {"eval/loss": 0.5})
    tracker.finish(0)
    assert lines(path)[1] == {"step": 2, "eval/loss": 0.5}


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    JsonLines(path).log(3, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.0})
    assert path.read_text() == '{"step": 3, "a": null, "b": null, "c": null, "d": 0.0}\n'


FULL = '{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n{"step": 2, "b": 0.5}\n{"step": 3, "a": 3.0}\n'
DROPPED = ['{"step": 4, "a"', '{"st', "", "[1]", '"step"', "{}", '{"step": null}', '{"step": "x"}', '{"step": NaN}']


@pytest.mark.parametrize(
    ("content", "resume_after", "kept"),
    [
        (FULL, 3, [1, 2, 2, 3]),
        (FULL, 2, [1, 2, 2]),
        (FULL, 0, []),
        ("", 5, []),
        *((FULL + half, 9, [1, 2, 2, 3]) for half in DROPPED),
        *((half + "\n" + FULL, 9, [1, 2, 2, 3]) for half in DROPPED),
    ],
)
def test_resume_drops_later_and_half_lines(tmp_path: Path, content: str, resume_after: int, kept: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    JsonLines(path, resume_after=resume_after).log(resume_after + 1, {"a": 9.0})
    assert [line["step"] for line in lines(path)] == [*kept, resume_after + 1]
    assert lines(path)[: len(kept)] == [json.loads(line) for line in FULL.splitlines()[: len(kept)]]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resume_without_a_file_starts_one(tmp_path: Path) -> None:
    JsonLines(tmp_path / "metrics.jsonl", resume_after=3).log(4, {"a": 1.0})
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 4, "a": 1.0}]


# wandb_mode


@pytest.fixture
def nothing_set_up(tmp_path: Path, monkeypatch) -> Path:
    """A home folder without a key, and no variables of wandb's."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NETRC", raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {}, "disabled"),
        ("auto", {"WANDB_API_KEY": KEY}, "online"),
        ("auto", {"WANDB_API_KEY": ""}, "disabled"),
        ("auto", {"WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "online"}, "online"),
        ("auto", {"WANDB_MODE": "disabled", "WANDB_API_KEY": KEY}, "disabled"),
        ("auto", {"WANDB_MODE": "dryrun"}, "disabled"),
        ("online", {"WANDB_MODE": "disabled"}, "online"),
        ("offline", {"WANDB_API_KEY": KEY}, "offline"),
        ("disabled", {"WANDB_API_KEY": KEY}, "disabled"),
    ],
)
def test_mode_follows_the_environment_unless_given(nothing_set_up, monkeypatch, mode, environment, expected) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(mode) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"machine api.wandb.ai\n  login user\n  password {KEY}\n", "online"),
        (f"machine example.org\n  login user\n  password {KEY}\n", "disabled"),
        ("not a netrc file", "disabled"),
    ],
)
def test_a_wandb_login_counts_as_a_key(nothing_set_up: Path, content: str, expected: str) -> None:
    netrc = nothing_set_up / ".netrc"
    netrc.write_text(content)
    netrc.chmod(0o600)
    assert wandb_mode("auto") == expected


# WandB


@pytest.fixture
def fresh_wandb(nothing_set_up):
    """wandb reads the environment once per process."""
    wandb.teardown()
    yield
    wandb.teardown()


def make(folder: Path, warnings: list[str], **options: Any) -> WandB:
    defaults = {"mode": "offline", "project": "dpo", "name": "a run", "group": None, "run_id": None}
    config = {"seed": 0, "loss": {"name": "dpo", "beta": 0.1}}
    return WandB(**(defaults | options), folder=folder, config=config, warn=warnings.append)


def test_offline_writes_a_run(fresh_wandb, tmp_path: Path) -> None:
    warnings: list[str] = []
    tracker = make(tmp_path, warnings, run_id="abc123")
    tracker.log(1, {"train/loss": 0.69, "train/odd": math.nan})
    tracker.log(2, {"train/loss": 0.5})
    tracker.finish(0)
    wandb.teardown()  # as at the end of the process; until then the file may still be on its way
    assert warnings == []
    assert tracker.run_id == "abc123"
    (written,) = tmp_path.glob("wandb/offline-run-*-abc123/run-abc123.wandb")
    data = written.read_bytes()
    assert all(word in data for word in (b"train/step", b"train/loss", b"a run", b"beta"))


def test_a_new_run_gets_an_id(fresh_wandb, tmp_path: Path) -> None:
    trackers = [make(tmp_path, []) for _ in range(2)]
    for tracker in trackers:
        tracker.finish(0)
    assert len({tracker.run_id for tracker in trackers}) == 2
    assert all(len(list(tmp_path.glob(f"wandb/offline-run-*-{tracker.run_id}"))) == 1 for tracker in trackers)


LOST = "Weights & Biases: {}; going on without it, metrics.jsonl has every metric"


@pytest.mark.parametrize(
    ("environment", "options", "error"),
    [
        ({}, {"project": "a/b"}, "UsageError"),
        ({"WANDB_INIT_TIMEOUT": "soon"}, {}, "ValidationError"),
    ],
)
def test_wandb_that_refuses_is_said_once(
    fresh_wandb, tmp_path: Path, monkeypatch, environment, options, error: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    warnings: list[str] = []
    tracker = make(tmp_path, warnings, **options)
    tracker.log(1, {"a": 1.0})
    tracker.log(2, {"a": 1.0})
    tracker.finish(1)
    assert warnings == [LOST.format(error)]


def test_a_run_that_breaks_on_the_way_is_said_once(fresh_wandb, tmp_path: Path) -> None:
    warnings: list[str] = []
    tracker = make(tmp_path, warnings)
    tracker.log(1, {"a": 1.0})
    tracker._run.finish()  # behind its back
    for step in (2, 3):
        tracker.log(step, {"a": 1.0})
    tracker.finish(0)
    assert warnings == [LOST.format("UsageError")]


@pytest.mark.slow
def test_a_server_that_refuses_connections_costs_half_a_minute_once(fresh_wandb, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    warnings: list[str] = []
    start = time.monotonic()
    tracker = make(tmp_path, warnings, mode="online")
    for step in range(3):
        tracker.log(step, {"a": 1.0})
    tracker.finish(0)
    assert time.monotonic() - start < 40
    assert warnings == [LOST.format("CommError")]
