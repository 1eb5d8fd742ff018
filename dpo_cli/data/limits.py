"""A chat template is a stranger's program: how long it may run, how much memory it may take, how much it may write.

So is a pattern, which may take for ever to be compared with a name (``within``).

The kernel holds the limits, so that they cost a row a microsecond: a timer on the processor time of this process, and
a limit on its address space while rows are rendered. Neither asks which operation of a template is a bomb; there are
too many.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from dpo_cli.errors import DpoError

SECONDS = 10.0
"""Of processor time, for all that is rendered of a row."""
ON_AVERAGE = 0.25
"""Seconds for a row, where several are rendered: the first ``SECONDS`` are free. Or ten thousand rows, each just within
its own bound, would take a day."""
MEMORY = 1 << 30
"""Bytes that this process may take on meanwhile."""
OUTPUT = 64 << 20
"""Characters of one dialogue."""
_LAST_RESORT = 3
"""Times ``SECONDS``, until the process is ended: some operations of Python (comparing lists of lists of lists that are
one list) hear no signal, not even Ctrl-C's."""


class _TooSlow(BaseException):
    """Not an Exception: jinja goes on after those when it folds constants."""


class Bounds:
    """What ``bounded`` gives: the row that is being rendered, which begins anew with its time."""

    def __init__(self) -> None:
        self.row = ""
        """What messages call it."""
        self._armed = False
        self._rows, self._used = 0, 0.0

    def begin(self, row: str) -> None:
        """The next row's time begins.

        Raises:
            DpoError: those before it took too long, all together.
        """
        left, _ = signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, 1.0)
        signal.setitimer(signal.ITIMER_PROF, SECONDS * _LAST_RESORT)
        if self._armed:
            self._rows, self._used = self._rows + 1, self._used + SECONDS - left
        if self._used > SECONDS + ON_AVERAGE * self._rows:
            raise _refusal(self.row, f"ran for {self._used:.0f} s for the last {self._rows:,} rows")
        self.row = row
        self._armed = True

    def stop(self) -> None:
        """No row is being rendered."""
        self._armed = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)

    def out_of_time(self, number: int, frame: FrameType | None) -> None:
        """The handler of the timer."""
        if self._armed:
            raise _TooSlow


@contextmanager
def bounded() -> Iterator[Bounds]:
    """Inside, what runs between one ``begin`` and the next has bounded time and memory. In the main thread only.

    Raises:
        DpoError: naming the row, if they are used up. Not a DataError: such a row is not left out, as the next would
            take as long.
    """
    bounds = Bounds()
    before = signal.signal(signal.SIGVTALRM, bounds.out_of_time)
    faulthandler.register(signal.SIGPROF, file=2, all_threads=False, chain=True)  # shows where, and ends the process
    memory = _limit_memory()
    try:
        yield bounds
    except _TooSlow:
        raise _refusal(bounds.row, f"ran for more than {SECONDS:g} s") from None
    except MemoryError:
        raise _refusal(bounds.row, f"took more than {MEMORY >> 20:,} MiB of memory") from None
    finally:
        bounds.stop()
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, memory)
        faulthandler.unregister(signal.SIGPROF)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def within(seconds: float, refusal: str) -> Iterator[None]:
    """Inside, so much of this process's time may be used. In the main thread only.

    Raises:
        DpoError: with ``refusal``, if it is used up.
    """

    def out_of_time(number: int, frame: FrameType | None) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGVTALRM, out_of_time)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    except _TooSlow:
        raise DpoError(refusal) from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def check_output(text: str, row: str) -> None:
    """
    Raises:
        DpoError: a dialogue is too large to be one.
    """
    if len(text) > OUTPUT:
        raise _refusal(row, f"wrote {len(text):,} characters, more than {OUTPUT:,}")


def _refusal(row: str, what: str) -> DpoError:
    return DpoError(
        f"{row}: the chat template {what}; expected one that only writes the dialogue: give another with "
        "model.chat_template, or take the row out if it is what is so large"
    )


def _limit_memory() -> tuple[int, int] | None:
    """Let this process grow by ``MEMORY`` and no more; returns the limits to put back, None where that can't be done.

    A thread of a library may meet the limit too, but only while a template is at it.
    """
    if sys.platform != "linux":
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_bytes().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    wanted = now + MEMORY
    if soft != resource.RLIM_INFINITY and soft <= wanted:
        return None
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
        return soft, hard
    return None
