"""A run's folder: making it, refusing one that is taken, and ``run.json``, which says what was run and how it went."""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dpo_cli import __version__
from dpo_cli.errors import DpoError

_PACKAGES = ("torch", "transformers", "deepspeed", "datasets", "tokenizers", "hydra-core", "wandb")


def check_free(run_dir: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        DpoError: naming the ways on.
    """
    if run_dir.is_file():
        raise DpoError(f"run_dir={run_dir} is a file; expected a folder that is new or empty")
    if run_dir.is_dir() and any(run_dir.iterdir()):
        raise DpoError(f"run_dir={run_dir} is not empty: go on in it with resume=auto, or choose another folder")


def new_run_dir(loss: str) -> Path:
    """Make ``runs/<date>-<time>-<loss>``; a second run in the same second gets a number."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{loss}"
    number = 1
    while True:
        folder = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


class RunRecord:
    """``run.json``: identity, counts and outcome of a run, replaced as a whole whenever something is added."""

    def __init__(self, run_dir: Path, *, writes: bool = True) -> None:
        """
        Args:
            run_dir: of the run; an earlier record of it is gone on with.
            writes: False on all ranks but the first.
        """
        self._path = run_dir / "run.json"
        self._writes = writes
        self.values: dict[str, Any] = read(run_dir)

    def update(self, **values: Any) -> None:
        """Add to the record, on disk as well."""
        self.values.update(values)
        if self._writes:
            write_json(self._path, self.values)


def read(run_dir: Path) -> dict[str, Any]:
    """The run's record, or an empty one."""
    try:
        record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """All of a JSON file or none of it; JSON has no NaN or infinity, which become null."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(_finite(values), indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def this_process() -> dict[str, Any]:
    """What tells later whether this process is still there: its id, when it began, and where ids mean the same."""
    return {"pid": os.getpid(), "began": _began(os.getpid()), "host": socket.gethostname(), "space": _space()}


def is_alive(process: Any) -> bool | None:
    """Whether the process of ``this_process`` still runs; None where that can't be seen from here.

    Args:
        process: as recorded; anything else for a run that recorded none.
    """
    if not isinstance(process, Mapping) or not process.get("space") or process["space"] != _space():
        return None
    pid = process.get("pid")
    return isinstance(pid, int) and _began(pid) == process.get("began")


def _began(pid: int) -> str | None:
    """When a process began, in clock ticks since the machine did; None = there is no such process, or it has ended."""
    try:
        fields = Path("/proc", str(pid), "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _space() -> str | None:
    """This boot of this machine and the namespace of process ids; None where there is no ``/proc``."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def identity() -> dict[str, Any]:
    """What was running: versions, and a hash of this package's own code."""
    versions = {"dpo": __version__, "python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # installed some other way
            versions[name] = "unknown"
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return {"versions": versions, "code": digest.hexdigest()}
