"""A Slurm of one node, started by hand from Debian's packages."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NEEDED = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}


def why_not() -> str:
    """What this machine lacks for it; an empty string, if nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "slurmd needs root on Linux"
    lacking = [package for program, package in NEEDED.items() if _find(program) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


@dataclass(frozen=True)
class Slurm:
    """A cluster of this machine alone."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What makes Slurm's commands speak to it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *words: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(words, env={**os.environ, **self.environment}, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        """Of a job, such as RUNNING."""
        words = self.ask("scontrol", "show", "job", job).split()
        return next(word for word in words if word.startswith("JobState=")).partition("=")[2]

    def wait(self, job: str, *states: str, seconds: float = 120) -> str:
        """Until a job is in one of the states."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            assert time.monotonic() < deadline, self.ask("scontrol", "show", "job", job)
            time.sleep(0.3)
        return state

    def start_now(self, job: str, seconds: float = 60) -> None:
        """Begin a job that was queued again, which Slurm lets wait for two minutes; not while its end is still on its
        way, which would be taken for that of the new start."""
        deadline = time.monotonic() + seconds
        while self.ask("sinfo", "-h", "-o", "%T").strip() != "idle":
            assert time.monotonic() < deadline
            time.sleep(0.5)
        time.sleep(1.0)
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")


@contextmanager
def one_node(folder: Path) -> Iterator[Slurm]:
    """Start it, and leave nothing of it behind."""
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(parents=True)
    (folder / "munge").chmod(0o755)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    ports = _free_ports(2)
    (folder / "slurm.conf").write_text(_CONF.format(folder=folder, host=socket.gethostname(), ports=ports))
    munge = [f"--key-file={key}", f"--socket={folder}/munge/socket", f"--pid-file={folder}/munge/pid"]
    munge += [f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed"]
    daemons: list[subprocess.Popen[bytes]] = []
    slurm = Slurm(folder)
    environment = {**os.environ, **slurm.environment}
    try:
        with (folder / "daemons.log").open("w") as log:
            for words in (
                [_find("munged"), "--foreground", "--force", *munge],
                [_find("slurmctld"), "-D", "-i"],
                [_find("slurmd"), "-D"],
            ):
                assert words[0] is not None
                daemons.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
        _wait_for_node(slurm)
        yield slurm
    finally:
        for job in subprocess.run(
            ["squeue", "-h", "-o", "%i"], env=environment, capture_output=True, text=True
        ).stdout.split():
            subprocess.run(["scancel", "--full", "-s", "KILL", job], env=environment, capture_output=True)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


_CONF = """\
ClusterName=dpo
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def _wait_for_node(slurm: Slurm) -> None:
    for _ in range(100):
        done = subprocess.run(
            ["sinfo", "-h", "-o", "%T"], env={**os.environ, **slurm.environment}, capture_output=True, text=True
        )
        if done.stdout.strip() in ("idle", "mixed"):
            return
        time.sleep(0.2)
    raise AssertionError(f"{done.stdout}{done.stderr}\n{(slurm.folder / 'daemons.log').read_text()[-3000:]}")


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
