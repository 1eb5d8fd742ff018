"""Hosts, what they are given, and which rank's error is said."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dpo_cli.config_launch import HostfileConfig, launch_conflicts
from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.launchers import hostfile, lifeline
from dpo_cli.launchers.hostfile import passed_on, read_hostfile
from dpo_cli.run_folder import write_json

HOSTS = {"one": 2, "two": 2}


def test_deepspeeds_hostfile_is_read(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# ours\none slots=8\n\nuser@node-2.cluster   slots=4  # half of it\n")
    assert read_hostfile(file) == {"one": 8, "user@node-2.cluster": 4}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("one\n", r"line 1: 'one'; expected HOST slots=N"),
        ("one slots=0\n", r"line 1: .*expected HOST slots=N"),
        ("# nobody\n", "names no host"),
        ("one slots=1\none slots=2\n", "line 2: one is there twice"),
        ("-oProxyCommand=evil slots=1\n", "line 1: .*expected HOST slots=N"),
        ("one;reboot slots=1\n", "line 1: .*expected HOST slots=N"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "hosts"
    file.write_text(text)
    with pytest.raises(DpoError, match=says):
        read_hostfile(file)
    with pytest.raises(DpoError, match="No such file"):
        read_hostfile(tmp_path / "none")


def test_no_secret_is_passed_on() -> None:
    environment = {
        "HF_HOME": "/data/hf",
        "HF_TOKEN": "secret",
        "WANDB_API_KEY": "secret",
        "WANDB_MODE": "offline",
        "NCCL_SOCKET_IFNAME": "eth0",
        "TOKENIZERS_PARALLELISM": "false",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "MLFLOW_TRACKING_PASSWORD": "secret",
        "CUDA_VISIBLE_DEVICES": "3",
        "EDITOR": "vi",
        "MINE": "1",
    }
    found = passed_on(environment, ["MINE"])
    assert found.keys() == {"HF_HOME", "WANDB_MODE", "NCCL_SOCKET_IFNAME", "TOKENIZERS_PARALLELISM", "MINE"}
    launch = HostfileConfig(
        name="hostfile",
        hostfile="hosts",
        master_addr=None,
        master_port="auto",
        ssh_port=None,
        pass_env=["MINE", "HF_TOKEN"],
    )
    (problem,) = launch_conflicts(launch)
    assert "HF_TOKEN looks like a secret" in problem


def launch_with(folder: Path, *ranks: tuple[int, int, str, bool], began: int = 4, **found: object) -> hostfile._Launch:
    """A launch whose ranks have ended: number, code, text, lost."""
    for order, (rank, code, text, lost) in enumerate(ranks):
        write_json(
            folder / f"rank-{rank}.json",
            {
                "rank": rank,
                "host": "one" if rank < 2 else "two",
                "code": code,
                "text": text,
                "lost": lost,
                "time": order,
            },
        )
    for rank in range(began):
        (folder / f"began-{rank}").write_text("one" if rank < 2 else "two")
    launch = hostfile._Launch(folder, HOSTS, [])
    for name, value in found.items():
        setattr(launch, f"_{name}", value)
    return launch


LOST = "Traceback\nRuntimeError: Connection closed by peer"


def test_all_ended_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch_with(tmp_path, *[(rank, 0, "", False) for rank in range(4)])._verdict(0) == 0
    assert capsys.readouterr().err == ""


def test_the_rank_to_blame_is_heard_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = [
        (0, 70, LOST, True),
        (1, 70, LOST, True),
        (3, 75, "dpo: stopped", False),
        (2, 2, "dpo: row 7 is bad", False),
    ]
    assert launch_with(tmp_path, *ended)._verdict(1) == 2
    assert capsys.readouterr().err == "dpo: rank 2 on two: row 7 is bad\n"


def test_a_rank_that_was_killed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = [(0, 70, LOST, True), (1, 70, LOST, True), (3, 75, "dpo: stopped", False)]
    assert launch_with(tmp_path, *ended, died={"two": -9})._verdict(247) == ExitCode.INTERNAL
    said = capsys.readouterr().err
    assert said.startswith("dpo: rank 2 on two ended without a word (on two one died of signal 9")
    assert "Traceback" not in said


def test_a_stopped_launch_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = [(rank, 75, "dpo: saved at update 3", False) for rank in range(4)]
    assert launch_with(tmp_path, *ended, signals=[15])._verdict(75) == ExitCode.PREEMPTED
    assert capsys.readouterr().err == "dpo: saved at update 3\n"


def test_a_host_that_went_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = [(0, 70, LOST, True), (1, 70, LOST, True)]
    assert launch_with(tmp_path, *ended, ended={"two": 255})._verdict(255) == ExitCode.INTERNAL
    assert "rank 2 on two, rank 3 on two ended without a word (ssh to two broke off" in capsys.readouterr().err
    ended += [(2, 70, LOST, True), (3, 70, LOST, True)]
    assert launch_with(tmp_path, *ended, ended={"two": 255})._verdict(255) == ExitCode.INTERNAL
    assert capsys.readouterr().err == "dpo: ssh to two broke off; the other ranks were ended\n"


def test_a_stopped_rank_waits_for_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end would bring a second signal to those of its machine, which means at once."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    first = threading.Thread(target=lifeline.leave, args=(tmp_path, 0, 75, "stopped"))
    first.start()
    time.sleep(0.3)
    assert first.is_alive()
    lifeline.leave(tmp_path, 1, 75, "stopped")
    first.join(2)
    assert not first.is_alive()
    assert {rank: record.code for rank, record in lifeline.records(tmp_path).items()} == {0: 75, 1: 75}


def follow(folder: Path, rank: int) -> None:
    with suppress(SystemExit):
        lifeline._follow(folder, rank)


def test_orders_reach_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stop: a signal to itself, once; end: at once, with a record."""
    told: list[int] = []
    ends: list[int] = []

    def leave(code: int) -> None:
        ends.append(code)
        raise SystemExit

    monkeypatch.setattr(lifeline, "_SECONDS_BETWEEN_LOOKS", 0.02)
    monkeypatch.setattr(lifeline.os, "kill", lambda pid, number: told.append(number))
    monkeypatch.setattr(lifeline.os, "_exit", leave)
    monkeypatch.setattr(lifeline.signal, "getsignal", lambda number: leave)
    lifeline.give(tmp_path, "go", 0)
    assert lifeline.is_watched(tmp_path)
    follower = threading.Thread(target=follow, args=(tmp_path, 1))
    follower.start()
    time.sleep(0.1)
    assert told == []
    lifeline.give(tmp_path, "stop", 1)
    time.sleep(0.2)
    assert told == [15]
    lifeline.give(tmp_path, "end", 2)
    follower.join(2)
    assert ends == [70]
    assert json.loads((tmp_path / "rank-1.json").read_text())["lost"] is True


def test_a_rank_without_its_launcher_saves_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def leave(code: int) -> None:
        raise SystemExit

    monkeypatch.setattr(lifeline, "_SECONDS_BETWEEN_LOOKS", 0.02)
    monkeypatch.setattr(lifeline, "_SECONDS_WITHOUT_LAUNCHER", 0.1)
    monkeypatch.setattr(lifeline, "_SECONDS_TO_STOP", 0.1)
    monkeypatch.setattr(lifeline.os, "kill", lambda pid, number: told.append(number))
    monkeypatch.setattr(lifeline.os, "_exit", leave)
    monkeypatch.setattr(lifeline.signal, "getsignal", lambda number: leave)
    lifeline.give(tmp_path, "go", 0)
    follower = threading.Thread(target=follow, args=(tmp_path, 0))
    follower.start()
    follower.join(3)
    assert told == [15]
    assert not follower.is_alive()


def test_the_shared_folder_is_beside_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "with blank"
    odd.mkdir()
    monkeypatch.chdir(odd)
    with pytest.raises(DpoError, match="paths of letters"):
        hostfile._check_plain(odd / "runs")
    assert os.listdir(odd) == []
