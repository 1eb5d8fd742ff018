"""Ranks that an outer launcher has started: who they are, and how an error of theirs is said once."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
import zlib
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from dpo_cli.errors import DpoError, ExitCode, LostConnection, Preempted

_SECONDS_FOR_FIRST = 5.0
"""How long other ranks wait with an error of theirs: rank 0 usually has the same, and the launcher then ends all."""
_SECONDS_FOR_CAUSE = 10.0
"""How long a rank that only lost its connection leaves the word to the one that is to blame."""
_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket (closed|timeout)|remote process exited|"
    r"ncclRemoteError|ncclSystemError|peer.*(closed|exited)|recvValue failed|failed to recv",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Outer:
    """This process's place among those that an outer launcher has started."""

    launcher: Literal["torchrun", "srun", "mpirun"]
    """``torchrun`` for any that sets RANK and WORLD_SIZE itself."""
    rank: int
    world: int
    local_rank: int
    local_world: int


def find(environment: Mapping[str, str]) -> Outer | None:
    """Who this process is by its environment; None, if no launcher has started it.

    Raises:
        DpoError: if the launcher's variables contradict each other.
    """
    names: dict[Literal["torchrun", "srun", "mpirun"], tuple[str, str, str, str]] = {
        "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
        "mpirun": (
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ),
        "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    }
    for launcher, (rank, world, local, local_world) in names.items():
        if rank not in environment or world not in environment:
            continue
        found = Outer(
            launcher,
            _number(rank, environment),
            _number(world, environment),
            _number(local, environment) if local in environment else _number(rank, environment),
            _local_world(local_world, environment),
        )
        if not found.rank < found.world:
            raise DpoError(f"{rank}={found.rank} in the environment, but {world}={found.world}")
        return found
    return None


def _number(name: str, environment: Mapping[str, str]) -> int:
    value = environment[name]
    if not value.isdecimal():
        raise DpoError(f"{name}={value} in the environment: expected a number")
    return int(value)


def _local_world(name: str, environment: Mapping[str, str]) -> int:
    """Processes of this machine; Slurm says those of all, as ``2(x3),1``."""
    if name != "SLURM_STEP_TASKS_PER_NODE":
        return _number(name, environment) if name in environment else 0
    counts: list[int] = []
    for part in environment.get(name, "").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match:
            counts += [int(match[1])] * int(match[2] or 1)
    node = int(environment.get("SLURM_NODEID", "0"))
    return counts[node] if node < len(counts) else 0


def adopt(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of this rank, as torch and DeepSpeed read them.

    Raises:
        DpoError: if no launcher has started this process, or where the ranks meet is not known.
    """
    outer = find(environment)
    if outer is None:
        raise DpoError(
            "launch=torchrun: no launcher has started this process (no RANK and WORLD_SIZE in the environment); start "
            "it as `torchrun --nproc-per-node N -m dpo_cli ...`, or leave launch=torchrun out"
        )
    found = {"RANK": str(outer.rank), "WORLD_SIZE": str(outer.world), "LOCAL_RANK": str(outer.local_rank)}
    if outer.local_world:
        found["LOCAL_WORLD_SIZE"] = str(outer.local_world)
    found["MASTER_ADDR"] = environment.get("MASTER_ADDR") or _first_host(outer, environment)
    found["MASTER_PORT"] = environment.get("MASTER_PORT") or _port(outer, environment)
    if found["MASTER_ADDR"] in ("127.0.0.1", "localhost") and "GLOO_SOCKET_IFNAME" not in environment:
        found["GLOO_SOCKET_IFNAME"] = "lo"
    return found


def _first_host(outer: Outer, environment: Mapping[str, str]) -> str:
    if outer.local_world == outer.world:
        return "127.0.0.1"
    if outer.launcher == "srun":
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
        try:
            listed = subprocess.run(
                ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired):
            listed = None
        if listed is not None and listed.returncode == 0 and listed.stdout.split():
            return listed.stdout.split()[0]
    how = " (mpirun -x MASTER_ADDR=HOST)" if outer.launcher == "mpirun" else ""
    raise DpoError(f"MASTER_ADDR is not set: name the host of rank 0, where the ranks meet{how}")


def _port(outer: Outer, environment: Mapping[str, str]) -> str:
    """The same on all ranks of a job step, and another for another step."""
    names = {
        "srun": ("SLURM_JOB_ID", "SLURM_STEP_ID"),
        "mpirun": ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid"),
        "torchrun": (),
    }[outer.launcher]
    job = "/".join(environment[name] for name in names if name in environment)
    if not job:
        raise DpoError("MASTER_PORT is not set: name a free port of MASTER_ADDR, where the ranks meet")
    return str(20000 + zlib.crc32(job.encode()) % 10000)


def drop_leftovers(environment: MutableMapping[str, str]) -> list[str]:
    """Take out what says that there are ranks where no launcher has started any: left by other tools, or exported by
    hand, it would have torch wait for ranks that never come.

    Returns:
        The names of what was taken out.
    """
    outer = find(environment)
    if outer is not None and outer.launcher == "torchrun":
        return []
    left = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE") if name in environment]
    for name in left:
        del environment[name]
    return left


def check_none(launch: str) -> None:
    """Refuse to start processes where an outer launcher has started several: each would start them all again.

    Args:
        launch: what was asked for.

    Raises:
        DpoError: saying what to do.
    """
    outer = find(os.environ)
    if outer is not None and outer.world > 1:
        raise DpoError(
            f"{launch}: {outer.launcher}, or a launcher like it, has started {outer.world} of this process (RANK and "
            "WORLD_SIZE, or its own variables, are set), and each would start processes: add launch=torchrun to be its "
            "ranks, or start one process alone"
        )


@contextmanager
def said_once() -> Iterator[None]:
    """Let an error be said by one rank: by rank 0 where all have it, else by the one that has it.

    What is raised inside is raised again: at once on rank 0; on the others after some seconds, in which the launcher
    ends them if rank 0 has ended with an error. A rank that only lost its connection to another waits longest.
    """
    try:
        yield
    except Exception as error:
        outer = find(os.environ)
        if outer is None or outer.world == 1:
            raise
        if isinstance(error, Preempted):  # all ranks end at once, with the same
            raise (error if outer.rank == 0 else SystemExit(int(error.exit_code))) from None
        who = f"rank {outer.rank} on {socket.gethostname()}"
        lost = is_lost_connection(error)
        if outer.rank or lost:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(_SECONDS_FOR_CAUSE if lost else _SECONDS_FOR_FIRST)
        if lost:
            raise LostConnection(
                f"{who}: lost the connection to another rank, which has ended: {_short(error)}"
            ) from None
        if outer.rank and isinstance(error, DpoError):
            said = DpoError(f"{who}: {error}")
            said.exit_code = ExitCode(error.exit_code)
            raise said from None
        raise


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says no more than that another rank has gone."""
    return isinstance(error, RuntimeError | ConnectionError) and bool(_LOST.search(str(error)))


def _short(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:160]
