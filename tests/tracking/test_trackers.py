"""Trackers get every line once, whenever they come by; what they fail to do is said."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.wandb_server import KEY, serving

from dpo_cli.errors import DpoError
from dpo_cli.tracking import progress
from dpo_cli.tracking.backends import KINDS, Kind, without_secrets
from dpo_cli.tracking.progress import Progress
from dpo_cli.tracking.trackers import Tracker, check_usable, finish, wandb_mode

# Progress


def test_a_line_counts_as_sent_by_its_step_and_its_names() -> None:
    sent = Progress()
    sent.add(3, ["b", "a"])
    sent.add(4, ["a"])
    assert [sent.has(2, ["z"]), sent.has(3, ["z"]), sent.has(4, ["a"])] == [True, True, True]
    assert [sent.has(4, ["a", "b"]), sent.has(5, ["a"])] == [False, False]


def test_what_is_not_sent_is_counted(tmp_path: Path) -> None:
    write(tmp_path, *({"step": step, "loss": 1.0} for step in range(5)), {"step": 4, "eval/loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    sent = Progress(step=3, lines=[["loss"]])
    assert [progress.unsent(tmp_path, each) for each in (Progress(), sent)] == [6, 2]
    assert progress.unsent(tmp_path / "none", sent) == 0


# What is needed


def test_a_tracker_that_is_not_installed_names_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(KINDS, "tensorboard", Kind("TensorBoard", "no_such_package", "tensorboard", ""))
    with pytest.raises(DpoError, match="tracker=tensorboard needs TensorBoard: pip install"):
        check_usable(["tensorboard"])


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs dpo-cli[mlflow]")
def test_mlflow_without_a_server_says_so(monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(DpoError, match="set MLFLOW_TRACKING_URI"):
        check_usable(["mlflow"])


def test_errors_are_said_without_secrets(monkeypatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hunter22")
    assert without_secrets("401 for hunter22 at https://me:pass@host/x") == "401 for *** at https://***@host/x"


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


# Trackers


def write(folder: Path, *lines: dict[str, Any], name: str = "metrics.jsonl") -> None:
    with (folder / name).open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def follow(name: str, folder: Path, *, exit_code: int = 0, seconds: float = 60, **changes: Any) -> list[str]:
    """Send what is new of a run; returns the warnings."""
    warnings: list[str] = []
    settings = {"project": "dpo", "run_name": "a run", "group": "sweep", "config": {"loss": {"beta": 0.1}}}
    tracker = Tracker(
        name, folder, **{**settings, "mode": "online", **changes}, say=lambda text: None, warn=warnings.append
    )
    finish([tracker], exit_code, seconds=seconds, warn=warnings.append)
    return warnings


def make_run(folder: Path) -> None:
    """A run of three updates with samples and an alert."""
    write(folder, *({"step": step, "loss": step / 8, "odd": None} for step in (1, 2, 3)), {"step": 3, "eval/loss": 0.5})
    answers = [{"step": 3, "prompt": "a | b", "answer": "c", "true_reward": 0.5}]
    write(folder, *answers, name="samples.jsonl")
    alert = {"step": 3, "name": "overconfident", "text": "it is"}
    (folder / "run.json").write_text(json.dumps({"alerts": [alert], "final": {"eval/loss": 0.5}, "updates": 3}))


@pytest.fixture
def server(nothing_set_up: Path, monkeypatch) -> Iterator[Any]:
    with serving() as heard:
        for name, value in heard.environment.items():
            monkeypatch.setenv(name, value)
        yield heard


@pytest.mark.slow
def test_wandb_gets_every_line_once_however_often_it_is_cut_off(server: Any, tmp_path: Path) -> None:
    make_run(tmp_path)
    assert follow("wandb", tmp_path, exit_code=75) == []
    sent = progress.load(tmp_path, "wandb")
    run = str(sent.run_id)
    assert (sent.finished, sent.step, sent.sampled, sent.alerts) == (True, 3, 3, 1)
    assert server.steps(run, "loss") == [1, 2, 3]
    assert server.steps(run, "eval/loss") == server.steps(run, "samples") == [3]
    assert all("odd" not in line for line in server.history[run])
    asked = [variables for name, variables in server.operations if name == "UpsertBucket"]
    assert {(each.get("groupName"), each.get("jobType")) for each in asked if each.get("groupName")} == {
        ("sweep", "train")
    }
    assert any("NotifyScriptableRunAlert" in name for name, _ in server.operations)
    # The run goes on, and writes its last update again.
    write(tmp_path, {"step": 3, "loss": 3 / 8, "odd": None}, {"step": 4, "loss": 4 / 8})
    assert follow("wandb", tmp_path) == []
    assert server.steps(run, "loss") == [1, 2, 3, 4]
    assert server.summary[run]["eval/loss"] == 0.5
    # Cut off: what has arrived is asked of the server, whatever is believed here.
    progress.save(tmp_path, "wandb", Progress(run_id=run, step=9, sampled=3, alerts=1))
    write(tmp_path, {"step": 5, "loss": 5 / 8})
    assert follow("wandb", tmp_path) == []
    assert server.steps(run, "loss") == [1, 2, 3, 4, 5]
    assert KEY not in "".join(path.read_text() for path in (tmp_path / "trackers").iterdir())


@pytest.mark.slow
def test_wandb_that_refuses_is_said_once_and_stops_nothing(nothing_set_up: Path, tmp_path: Path) -> None:
    make_run(tmp_path)
    said, rest = follow("wandb", tmp_path, mode="offline", project="a/b")
    assert said.startswith("Weights & Biases: UsageError: ")
    assert rest == f"Weights & Biases: 4 lines of metrics.jsonl were not sent; `dpo sync {tmp_path}` sends them"


def test_a_tracker_whose_process_dies_is_said(tmp_path: Path, monkeypatch) -> None:
    make_run(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # where there is no such module
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dpo_cli.py").write_text("raise SystemExit(3)")
    start = time.monotonic()
    (said,) = follow("wandb", tmp_path)
    assert "4 lines of metrics.jsonl were not sent" in said
    assert time.monotonic() - start < 30


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs dpo-cli[tensorboard]")
def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make_run(tmp_path)
    assert follow("tensorboard", tmp_path, exit_code=75) == []
    write(tmp_path, {"step": 3, "loss": 3 / 8, "odd": None}, {"step": 4, "loss": 4 / 8})
    assert follow("tensorboard", tmp_path) == []
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(n, n / 8) for n in (1, 2, 3, 4)]
    assert [(event.step, event.value) for event in read.Scalars("eval/loss")] == [(3, 0.5)]
    texts = {tag: read.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in read.Tags()["tensors"]}
    assert "beta: 0.1" in texts["config/text_summary"] if "config/text_summary" in texts else texts["config"]
    assert any("a \\| b" in text for text in texts.values())


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs dpo-cli[mlflow]")
def test_mlflow_reads_back_what_was_logged(tmp_path: Path, monkeypatch) -> None:
    from mlflow.tracking import MlflowClient

    place = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    make_run(tmp_path)
    assert follow("mlflow", tmp_path, exit_code=75) == []
    client, run = MlflowClient(place), str(progress.load(tmp_path, "mlflow").run_id)
    assert client.get_run(run).info.status == "KILLED"
    write(tmp_path, {"step": 3, "loss": 3 / 8, "odd": None}, {"step": 4, "loss": 4 / 8})
    assert follow("mlflow", tmp_path) == []
    assert progress.load(tmp_path, "mlflow").run_id == run
    assert [(m.step, m.value) for m in client.get_metric_history(run, "loss")] == [(n, n / 8) for n in (1, 2, 3, 4)]
    found = client.get_run(run)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "a run")
    assert found.data.params["loss.beta"] == "0.1"
    assert found.data.tags["group"] == "sweep"
    assert found.data.tags["alert.overconfident"] == "after update 3: it is"
    assert [file.path for file in client.list_artifacts(run, "samples")] == ["samples/step-000003.json"]
