"""Jobs of Slurm's that somebody waits for: the runs of a smart sweep.

Whether one is on its way is what Slurm's queue says; how it ended, what the run's own record says, as the queue soon
forgets a job and not every cluster keeps accounts.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from dpo_cli.config import TrainConfig
from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.launchers import slurm
from dpo_cli.launchers.apart import Ended
from dpo_cli.run_folder import read

_SECONDS_BETWEEN_LOOKS = 15.0
"""Slurm's controller has others to serve."""
_ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "PREEMPTED", "REVOKED"),
    *("NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY"),
}
"""States after which a job does not come back; one that is queued again is PENDING."""


class Submitted:
    """A run in Slurm's queue, with the verbs of ``Apart``."""

    def __init__(self, config: TrainConfig) -> None:
        """
        Args:
            config: of the run. One whose job is in the queue already is not submitted again.

        Raises:
            DpoError: if Slurm does not take it.
        """
        self.run_dir = Path(str(config.run_dir)).absolute()
        self.number = _in_queue(self.run_dir) or _submit(config)
        self.log = slurm.log_of(self.run_dir).replace("%j", self.number)
        self._next_look = 0.0

    def ended(self) -> Ended | None:
        """How it ended, if it has."""
        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        if _is_on_its_way(self.number):
            return None
        record = read(self.run_dir)
        status = record.get("status")
        if status == "done":
            return Ended(int(ExitCode.DONE), "")
        if status == "preempted":
            return Ended(int(ExitCode.PREEMPTED), "")
        code = record.get("exit_code") if status == "failed" else None
        return Ended(int(code or ExitCode.INTERNAL), f"dpo: job {self.number} failed; its output: {self.log}")

    def stop(self) -> None:
        """Have it save and end, or, where it is not running, leave the queue."""
        if _ask("scancel", "--signal=TERM", f"{self.number}.0").returncode:
            _ask("scancel", self.number)


def _submit(config: TrainConfig) -> str:
    number = slurm.submit("train", config).number
    assert number is not None, "launch.submit=false"
    return number


def _in_queue(run_dir: Path) -> str | None:
    """The number of a run's job, if it has one there."""
    found = _ask("squeue", "-h", "-u", str(os.getuid()), f"--name={slurm.job_name(run_dir)}", "-o", "%i").stdout.split()
    return found[0] if found else None


def _is_on_its_way(number: str) -> bool:
    """Whether a job is yet to end. One of which nothing can be heard is taken to be."""
    answer = _ask("squeue", "-h", "-t", "all", "-j", number, "-o", "%T")
    if answer.returncode:
        return "Invalid job id" not in answer.stderr
    return bool(states := answer.stdout.split()) and states[0] not in _ENDED


def _ask(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        raise DpoError(f"launch=slurm: there is no {words[0]} on this machine") from None
