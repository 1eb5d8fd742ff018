"""The batch script: what it asks for, and that nothing of a configuration is code in it."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dpo_cli.config_launch import SlurmConfig, launch_conflicts
from dpo_cli.launchers.slurm import script


def config(**changes: Any) -> SlurmConfig:
    defaults: dict[str, Any] = {
        "name": "slurm",
        "nodes": 1,
        "processes_per_node": "auto",
        "gpus_per_node": None,
        "cpus_per_process": None,
        "memory": None,
        "time": None,
        "partition": None,
        "account": None,
        "save_before_end": 120,
        "max_requeues": 7,
        "extra": {},
        "submit": True,
    }
    return SlurmConfig.model_validate({**defaults, **changes})


def options(text: str) -> dict[str, str]:
    """As sbatch reads them."""
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    return {name: "".join(shlex.split(value)) for name, _, value in (line.partition("=") for line in lines)}


def written(launch: SlurmConfig, folder: str = "/shared/runs/a run/slurm") -> str:
    text = script("train", launch, Path(folder), Path("/home/me/it's here"))
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    return text


def test_the_script_asks_for_what_was_asked_for() -> None:
    launch = config(
        nodes=2,
        gpus_per_node=8,
        cpus_per_process=12,
        memory="900G",
        time="1-00:00:00",
        partition="gpu",
        account="lab",
        extra={"qos": "low", "exclusive": True, "nice": 5, "hold": False, "comment": 'a "b" c'},
    )
    found = options(written(launch))
    name = found.pop("job-name")
    assert name.startswith("dpo-a_run-")
    assert found == {
        "dependency": "singleton",
        "nodes": "2",
        "ntasks-per-node": "8",
        "gpus-per-node": "8",
        "cpus-per-task": "12",
        "mem": "900G",
        "time": "1-00:00:00",
        "partition": "gpu",
        "account": "lab",
        "output": "/shared/runs/a run/slurm/%j.log",
        "open-mode": "append",
        "requeue": "",
        "signal": "B:USR2@120",
        "qos": "low",
        "exclusive": "",
        "nice": "5",
        "comment": 'a "b" c',
    }


def test_two_jobs_of_one_folder_share_a_name_and_others_don_t() -> None:
    names = [
        options(written(config(time=time), folder))["job-name"]
        for folder, time in (("/a/run/slurm", None), ("/a/run/slurm", "0:10:00"), ("/b/run/slurm", None))
    ]
    assert names[0] == names[1] != names[2]


def test_processes_follow_the_gpus() -> None:
    assert options(written(config()))["ntasks-per-node"] == "1"
    assert options(written(config(gpus_per_node=4)))["ntasks-per-node"] == "4"
    assert options(written(config(gpus_per_node=4, processes_per_node=2)))["ntasks-per-node"] == "2"
    assert "signal" not in options(written(config(save_before_end=0)))


@pytest.mark.parametrize(
    "changes",
    [
        {"partition": "gpu\nreboot"},
        {"extra": {"qos": "low\r\nreboot"}},
        {"extra": {"qos=low\nreboot": "x"}},
        {"extra": {"Qos": "x"}},
        {"time": ""},
        {"time": "10\nreboot"},
        {"time": 3600},  # what YAML makes of 1:00:00 without quotes; minutes to Slurm
    ],
)
def test_no_line_of_its_own_gets_into_the_script(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(**changes)


def test_what_looks_like_code_stays_an_option() -> None:
    text = written(config(partition="$(touch /tmp/x)", extra={"comment": "`id`; # $HOME"}))
    harmless = [line for line in text.splitlines() if "touch" in line or "`id`" in line]
    assert len(harmless) == 2
    assert all(line.startswith("#SBATCH --") for line in harmless)
    assert "cd '/home/me/it'\"'\"'s here' ||" in text


def test_what_dpo_decides_is_refused() -> None:
    found = list(launch_conflicts(config(extra={"nodes": 3, "qos": "low", "signal": "USR1"})))
    assert found[0] == "launch.extra.nodes is decided by dpo: use launch.nodes"
    assert "launch.save_before_end" in found[1]
    assert len(found) == 2
