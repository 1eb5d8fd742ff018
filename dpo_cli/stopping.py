"""Signals that ask for an end: what to save is saved, and the exit code says that the same command goes on."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from dpo_cli.errors import Preempted

STOPPABLE = ("train", "precompute-ref")
"""Commands that have something to save, and go on when given again."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""What terminals, schedulers and clusters send to have a process end soon."""
ONE_REQUEST = 1.0
"""Seconds in which signals are one request: who signals a whole process group reaches ranks directly, and once more
through their parent."""

_NOTHING_TO_SAVE = "stopped by a signal before there was anything to save; the same command begins again"


class StopRequest:
    """Whether a signal has asked for the run to end."""

    def __init__(self) -> None:
        self.requested = False
        self.interrupted = False
        """Whether it has cut something off that had nothing to save."""
        self._since = 0.0
        self._patient = False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, a signal only sets ``requested``, for somebody who looks at it and has something to save."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        now = time.monotonic()
        if self.requested:
            if now - self._since > ONE_REQUEST:  # somebody is in a hurry
                raise KeyboardInterrupt
            return
        self.requested, self._since = True, now
        if not self._patient:
            self.interrupt()

    def interrupt(self) -> None:
        """Cut off what is going on.

        Raises:
            Preempted: always.
        """
        self.interrupted = True
        raise Preempted(_NOTHING_TO_SAVE)


def heeded() -> tuple[signal.Signals, ...]:
    """SIGNALS, without SIGHUP where that is ignored, as under nohup."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in SIGNALS if not (ignored and number == signal.SIGHUP))


def leave_terminal() -> None:
    """After SIGHUP: have what is still to be said go nowhere. The terminal is gone, and writing to it is an error."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    device = os.fstat(nowhere).st_rdev
    for stream in range(3):
        with suppress(OSError):  # closed
            found = os.fstat(stream)
            if stat.S_ISCHR(found.st_mode) and found.st_rdev != device:
                os.dup2(nowhere, stream)
    os.close(nowhere)


@contextmanager
def unwind_on_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end a command that has nothing to save as Ctrl-C does, by an exception: what it has half
    written is removed on the way. The exit code is the usual one of a process that a signal ended."""

    def end(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP) if number in heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGNALS into an end with exit code 75: at once, or inside ``waiting`` when the state is saved.

    A second signal ends at once in any case. Inside another one this is the same request. A signal may come while a
    library is at work that makes another error of any, or drops it: the first is an end by signal all the same, and
    the second is made up for at the next chance.
    """
    global _current
    outer = _current
    request = _current = outer or StopRequest()
    before = {number: signal.signal(number, request._handle) for number in heeded()}
    try:
        if request.requested:
            request.interrupt()
        yield request
    except Preempted:
        raise
    except Exception as error:  # also one of ours, made of the library's
        if request.interrupted:
            raise Preempted(_NOTHING_TO_SAVE) from error
        raise
    finally:
        _current = outer
        for number, handler in before.items():
            signal.signal(number, handler)


_current: StopRequest | None = None
