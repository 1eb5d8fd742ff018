"""Standard streams that can't end a run: a log on a full disk, a terminal that is gone, a stream that was closed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

_STREAMS = ("stdin", "stdout", "stderr")


def open_closed_streams() -> None:
    """Have all three be there (``2>&-`` closes one): else the next file that is opened, a run's metrics say, gets its
    number, and whatever a library in C says is written into it."""
    for number, name in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)  # where it is that number itself, it is made inheritable
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115


class _Unfailing:
    """Standard error on which nobody fails. What can't be written now waits in the stream's own buffer."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def unfailing_stderr() -> Iterator[None]:
    """Inside, what is said of a run's progress never ends it: not where a log's disk is full (ENOSPC), the terminal is
    gone (EIO) or nobody reads any more (EPIPE)."""
    stream = sys.stderr
    sys.stderr = cast(TextIO, _Unfailing(stream))
    try:
        yield
    finally:
        sys.stderr = stream
        give_up_unwritten(stream)


def give_up_unwritten(stream: TextIO) -> None:
    """Drop what a stream still can't write: Python would try again at its end, and make 120 of the exit code."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            stream.flush()
