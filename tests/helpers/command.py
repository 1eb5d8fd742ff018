"""The command line as users start it, in processes of their own, quiet and offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# One thread: two OpenMP teams on shared cores are far slower than two threads.
QUIET = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}

RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What DeepSpeed leaves in a process's environment when a test starts it there."""


def environment(cache: Path, **changes: str) -> dict[str, str]:
    """This process's, without what a user's shell may say about ``dpo``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DPO_", "WANDB_", "HYDRA_"))}
    for name in RANKS:
        kept.pop(name, None)
    return {**kept, **QUIET, "DPO_CACHE": str(cache), **changes}


def dpo(
    *words: str, cwd: Path, timeout: float = 300, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """``dpo WORDS`` in the folder ``cwd``, which also holds its cache."""
    return subprocess.run(
        [sys.executable, "-m", "dpo_cli", *words],
        cwd=cwd,
        env=environment(cwd / "cache", **(variables or {})),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@dataclass(frozen=True)
class Outcome:
    """What became of one command line."""

    code: int
    out: str
    err: str
    torch: bool
    """Whether torch had been imported when it ended."""

    @property
    def problems(self) -> list[str]:
        """The lines of the error message."""
        return [line.removeprefix("dpo: ") for line in self.err.splitlines()]


def dpo_each(
    commands: Sequence[Sequence[str]],
    *,
    cwd: Path,
    timeout: float = 300,
    variables: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Several command lines, one after another in one process, so that imports are paid for once."""
    job = subprocess.run(
        [sys.executable, "-P", __file__],
        input=json.dumps(commands),
        cwd=cwd,
        env=environment(cwd / "cache", **(variables or {})),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if job.returncode:
        raise AssertionError(f"the runner ended with {job.returncode}:\n{job.stdout}{job.stderr}")
    return [Outcome(**outcome) for outcome in json.loads(job.stdout.splitlines()[-1])]


def _run_each() -> None:
    """What the process of ``dpo_each`` does."""
    import tempfile

    from hydra.core.global_hydra import GlobalHydra

    from dpo_cli.cli import main

    outcomes = []
    real = os.dup(1), os.dup(2)
    for words in json.loads(sys.stdin.read()):
        # File descriptors and not sys.stderr: libraries written in C are heard as well.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            GlobalHydra.instance().clear()  # as in a new process
            try:
                code = main(words)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os.dup2(real[0], 1)
                os.dup2(real[1], 2)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        outcomes.append({"code": code, "out": texts[0], "err": texts[1], "torch": "torch" in sys.modules})
    print(json.dumps(outcomes))


if __name__ == "__main__":
    _run_each()
