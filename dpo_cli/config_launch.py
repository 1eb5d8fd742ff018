"""The types of ``launch.*``: one model per launcher, so that a key it makes no use of is an unknown one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from dpo_cli.config_types import Auto, CountFromZero, PositiveInt, Section
from dpo_cli.secret import is_secret_variable


def _time_limit(value: Any) -> str:
    """A time as Slurm has it. YAML reads 1:00:00 without quotes as 3600, which would be minutes to Slurm."""
    if not isinstance(value, str) or not re.fullmatch(r"(\d+-)?\d+(:\d\d){1,2}|\d+-\d+", value):
        raise ValueError("HH:MM:SS or D-HH:MM:SS, in quotes where it stands in a file")
    return value


Port = Annotated[int, Field(gt=0, lt=65536, strict=True)]
OneLine = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""What goes into a batch script: a line end in it would begin a line of its own there."""
TimeLimit = Annotated[str, BeforeValidator(_time_limit)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
OptionName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]


class LocalConfig(Section):
    """Processes of this machine."""

    name: Literal["local"]
    num_processes: PositiveInt | Auto
    hang_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Auto | None


class TorchrunConfig(Section):
    """Processes that an outer launcher has started."""

    name: Literal["torchrun"]


class HostfileConfig(Section):
    """Processes of several machines, started over ssh by DeepSpeed."""

    name: Literal["hostfile"]
    hostfile: str
    master_addr: str | None
    master_port: Port | Auto
    ssh_port: Port | None
    pass_env: list[VariableName]


class SlurmConfig(Section):
    """A batch job of Slurm's."""

    name: Literal["slurm"]
    nodes: PositiveInt
    processes_per_node: PositiveInt | Auto
    gpus_per_node: PositiveInt | None
    cpus_per_process: PositiveInt | None
    memory: OneLine | PositiveInt | None
    time: TimeLimit | None
    partition: OneLine | PositiveInt | None
    account: OneLine | PositiveInt | None
    save_before_end: Annotated[int, Field(ge=0, le=65535, strict=True)]
    max_requeues: CountFromZero
    extra: dict[OptionName, OneLine | int | bool]
    submit: bool


LaunchConfig = LocalConfig | TorchrunConfig | HostfileConfig | SlurmConfig


def launch_conflicts(launch: LaunchConfig) -> Iterator[str]:
    """Keys that contradict each other, or the way things are done."""
    if isinstance(launch, HostfileConfig):
        for name in launch.pass_env:
            if is_secret_variable(name):
                yield (
                    f"launch.pass_env: {name} looks like a secret, which would be written to a file: set it on the "
                    "hosts, or log in there"
                )
    if isinstance(launch, SlurmConfig):
        for name in launch.extra:
            if name in _OURS:
                yield f"launch.extra.{name} is decided by dpo: {_OURS[name]}"


_OURS = {
    "nodes": "use launch.nodes",
    "ntasks": "use launch.nodes and launch.processes_per_node",
    "ntasks-per-node": "use launch.processes_per_node",
    "gpus-per-node": "use launch.gpus_per_node",
    "cpus-per-task": "use launch.cpus_per_process",
    "mem": "use launch.memory",
    "time": "use launch.time",
    "partition": "use launch.partition",
    "account": "use launch.account",
    "job-name": "it keeps two jobs out of one run folder",
    "dependency": "it keeps two jobs out of one run folder",
    "signal": "use launch.save_before_end",
    "output": "the job's output lies in the run folder",
    "open-mode": "the job's output lies in the run folder",
    "wrap": "the script is dpo's",
    "array": "each job is one run; sweep with -m",
}
