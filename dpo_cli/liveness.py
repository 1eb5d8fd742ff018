"""Signs of life: a rank shows its parent that it gets on, and where it stands if it is asked.

Ranks wait for each other in every update, so one that hangs has all of them hang. Only their parent can see which.

A sign also says how long its rank may be silent from then on, where that is known: what is done again and again takes
about as long each time. How long a model takes to load, or another process's cache to be made, nobody knows beforehand.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import statistics
import struct
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ASK = signal.SIGQUIT
"""Has a rank write where it stands, whatever it is doing: no Python code runs for it."""
LONGEST = 1800.0
"""Seconds without a sign of any rank after which something is wrong, where nothing more is known."""
_TIMES, _AT_LEAST = 20, 180.0
"""What has been done so many times may be silent for so many times its median silence, and for so many seconds."""
_MEASURED = 100
"""Of the newest times."""
_FORMAT = struct.Struct("<qd")


class Sign(NamedTuple):
    """What a rank has shown last."""

    at: int
    """When, in nanoseconds of the machine's clock."""
    silence: float
    """Seconds that it may be silent from then on; 0 = not known."""


@dataclass
class _Signs:
    """A rank's own."""

    folder: Path
    file: int
    at: int = 0
    silence: float = 0.0
    longest: int = 0
    """Nanoseconds between two signs, since somebody set it to 0."""
    known: dict[str, deque[int]] = field(default_factory=dict)
    """The longest silence in each time that something was done, by what it was."""

    def give(self) -> None:
        now = time.monotonic_ns()
        self.longest = max(self.longest, now - self.at)
        self.at = now
        os.pwrite(self.file, _FORMAT.pack(now, self.silence), 0)


_signs: _Signs | None = None


def show_in(folder: Path, rank: int) -> None:
    """As a rank: give signs of life in this folder from here on."""
    global _signs
    _signs = _Signs(folder, os.open(_sign_of(folder, rank), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    # Not closed: it is written to by a signal handler. Of all threads, as one without Python may be given the signal.
    faulthandler.register(ASK, stack_of(folder, rank).open("w"), all_threads=True, chain=False)


def beat() -> None:
    """As any code that gets on with something: say so. It takes a microsecond, and nothing without a parent."""
    if _signs is not None:
        _signs.give()


@contextmanager
def once_more(what: str) -> Iterator[None]:
    """Around what is done again and again and takes about as long each time.

    From its 20th time on, signs in it say that it may be silent for 20 times its median silence, or 180 s if that is
    longer. Right after it nothing is known again.
    """
    signs = _signs
    if signs is None:
        yield
        return
    before = signs.known.setdefault(what, deque(maxlen=_MEASURED))
    if len(before) >= _TIMES:
        signs.silence = max(_AT_LEAST, _TIMES * statistics.median(before) / 1e9)
    signs.give()
    signs.longest = 0
    try:
        yield
    finally:
        signs.silence = 0.0
        signs.give()
    before.append(signs.longest)


def last_sign(folder: Path, rank: int) -> Sign | None:
    """As the parent: a rank's last sign; None = it has given none yet."""
    try:
        written = _sign_of(folder, rank).read_bytes()
    except FileNotFoundError:
        return None
    return Sign(*_FORMAT.unpack(written)) if written else None


def put_stacks_in(place: Path) -> None:
    """As a rank that knows a folder that lasts: have the parent put the stacks of all there, if it comes to that."""
    if _signs is not None:
        (_signs.folder / "place").write_text(str(place.resolve()), encoding="utf-8")


def place_of_stacks(folder: Path) -> Path | None:
    """As the parent: that folder; None = no rank has come so far."""
    try:
        return Path((folder / "place").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def stack_of(folder: Path, rank: int) -> Path:
    """The file in which a rank says where it stands."""
    return folder / f"stack-{rank}"


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped by a signal, and not gone on."""
    return _state(pid) in ("T", "t")


def waits_for_disk(pid: int) -> bool:
    """Whether a process waits for a file system, which may be one of the network that comes back."""
    return _state(pid) == "D"


def _state(pid: int) -> str:
    try:
        return Path("/proc", str(pid), "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _sign_of(folder: Path, rank: int) -> Path:
    return folder / f"alive-{rank}"


def ask(pid: int) -> None:
    """Have a rank say where it stands; one that was stopped is woken for it."""
    for number in (ASK, signal.SIGCONT):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
