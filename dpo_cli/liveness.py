"""Signs of life: a rank shows its parent that it gets on, and where it stands if it is asked.

Ranks wait for each other in every update, so one that hangs has all of them hang. Only their parent can see which.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from pathlib import Path

ASK = signal.SIGQUIT
"""Has a rank write where it stands, whatever it is doing: no Python code runs for it."""

_sign: int | None = None


def show_in(folder: Path, rank: int) -> None:
    """As a rank: give signs of life in this folder from here on."""
    global _sign
    _sign = os.open(sign_of(folder, rank), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    # Not closed: it is written to by a signal handler.
    faulthandler.register(ASK, stack_of(folder, rank).open("w"), all_threads=False, chain=False)


def beat() -> None:
    """As any code that gets on with something: say so. It takes a microsecond, and nothing without a parent."""
    if _sign is not None:
        os.pwrite(_sign, time.monotonic_ns().to_bytes(8, "little"), 0)


def last_beat(folder: Path, rank: int) -> int | None:
    """As the parent: when a rank has got on last, in nanoseconds of the machine's clock; None = never yet."""
    try:
        return int.from_bytes(sign_of(folder, rank).read_bytes(), "little") or None
    except FileNotFoundError:
        return None


def sign_of(folder: Path, rank: int) -> Path:
    """The file in which a rank says when it has got on last."""
    return folder / f"alive-{rank}"


def stack_of(folder: Path, rank: int) -> Path:
    """The file in which a rank says where it stands."""
    return folder / f"stack-{rank}"


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped by a signal, and not gone on."""
    try:
        state = Path("/proc", str(pid), "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state in ("T", "t")


def ask(pid: int) -> None:
    """Have a rank say where it stands; one that was stopped is woken for it."""
    for number in (ASK, signal.SIGCONT):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
