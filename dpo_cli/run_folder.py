"""A run's folder: making it, refusing one that is taken, and ``run.json``, which says what was run and how it went."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dpo_cli import __version__
from dpo_cli.errors import DpoError, one_line
from dpo_cli.whole_folder import write_file

_PACKAGES = ("torch", "transformers", "deepspeed", "datasets", "tokenizers", "hydra-core", "wandb")

_SIDE: dict[str, Any] = {"rows": {}, "tokenized": {}}
_RECORD: dict[str, Any] = {
    **{name: {} for name in ("final", "reference", "versions", "process", "best", "about", "commits")},
    "data": {"train": _SIDE, "held_out": _SIDE},
    "starts": [],
    "alerts": [],
}
"""What is a mapping in ``run.json``, and what a list of mappings."""


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


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Have a run's folder to oneself: two runs in one would spoil each other's checkpoints and metrics.

    The kernel lets go of it when this process ends, however it ends; nothing is left in the folder. Where a file system
    has no such locks, a process on this machine is still seen by its record; where it has, the record may be a copy.

    Raises:
        DpoError: another process has it.
    """
    handle = os.open(run_dir, os.O_RDONLY)
    try:
        other = read(run_dir).get("process") or {}
        alive = other.get("pid") != os.getpid() and is_alive(other)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = False
        except BlockingIOError:
            taken = True
        except OSError:  # of the file system
            taken = bool(alive) and read(run_dir).get("status") == "running"
        if taken:
            who = f" (process {other.get('pid')} on {other.get('host')})" if alive else ""
            raise DpoError(
                f"run_dir={run_dir}: another run is at work in it{who}: wait for its end, or choose another folder"
            )
        yield
    finally:
        os.close(handle)


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


def read(run_dir: Path, unread: list[str] | None = None) -> dict[str, Any]:
    """The run's record, or an empty one.

    Args:
        run_dir: of the run.
        unread: takes what could not be read, for people; None = an error of the file system is raised.

    Raises:
        OSError: then.
    """
    path = run_dir / "run.json"
    record = None
    try:
        record = from_json(path.read_bytes()) if path.is_file() else None
    except OSError:
        if unread is None:
            raise
    if isinstance(record, dict):
        return shaped(record, _RECORD, f"{path.name}: ", unread)
    if unread is not None and path.exists():
        unread.append(f"{path.name} could not be read")
    return {}


def shaped(values: dict[str, Any], shape: Mapping[str, Any], where: str, unread: list[str] | None) -> dict[str, Any]:
    """Values without those that are not of the kind that a run writes, which are named in ``unread``."""
    found = dict(values)
    for name, inner in shape.items():
        value = found.get(name)
        if value is None:
            continue
        if isinstance(inner, list) and isinstance(value, list) and all(isinstance(each, dict) for each in value):
            continue
        if isinstance(inner, dict) and isinstance(value, dict):
            found[name] = shaped(value, inner, f"{where}{name}.", unread)
            continue
        if unread is not None:
            unread.append(f"{where}{name} is not what a run writes")
        del found[name]
    return found


def from_json(text: str | bytes) -> Any:
    """What JSON says that anybody may have written; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # the latter of lists in lists in lists
        return None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """All of a JSON file or none of it; JSON has no NaN or infinity, which become null."""
    write_file(path, json.dumps(_finite(values), indent=2) + "\n")


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


def differing_versions(before: Mapping[str, Any]) -> str:
    """Which packages have other versions now than ``identity`` once said, for people; empty if none has."""
    now = identity()["versions"]
    return ", ".join(
        f"{name} {new}, not {one_line(str(before[name]))}" for name, new in now.items() if before.get(name, new) != new
    )


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
