"""What can go wrong for a user, and the exit code each kind of trouble has.

A ``DpoError`` is something the user can mend: the command line prints its message as one line, without a
traceback. Anything else that escapes is a bug and keeps its traceback (exit code 70).

    DpoError                      2   usage or data
    ├── FindingsError             1   rows have what --fail-on names
    ├── DataError                 2   rows, files, tokens
    ├── CheckpointError           3   no valid checkpoint where one was asked for
    ├── StorageError             74   disk full, unreadable, or unwritable all at once (at the start that is 2)
    ├── Preempted                75   stopped by a signal after saving; the same command goes on
    ├── LostConnection           70   another rank has ended, and says why itself
    └── NumericsError            76   the numbers went bad (non-finite, or a failed start-up check)
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of every ``dpo`` command."""

    DONE = 0
    FINDINGS = 1
    USAGE = 2
    NO_CHECKPOINT = 3
    INTERNAL = 70
    IO = 74
    PREEMPTED = 75
    NUMERICS = 76


class DpoError(Exception):
    """Trouble the user can mend. The message says what was found, what was expected and what to do."""

    exit_code: ExitCode = ExitCode.USAGE


class ConfigError(DpoError):
    """One or more keys of the configuration are wrong; all of them are in the message."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class DataError(DpoError):
    """Rows or files that are not what training needs."""


class FindingsError(DpoError):
    """An audit found what it was told to fail on."""

    exit_code = ExitCode.FINDINGS


class CheckpointError(DpoError):
    """No valid checkpoint where one was asked for."""

    exit_code = ExitCode.NO_CHECKPOINT


class StorageError(DpoError):
    """A file could not be read or written."""

    exit_code = ExitCode.IO


class Preempted(DpoError):
    """A signal ended the run after its state was saved."""

    exit_code = ExitCode.PREEMPTED


class LostConnection(DpoError):
    """Another rank has ended: what went wrong is there."""

    exit_code = ExitCode.INTERNAL


class NumericsError(DpoError):
    """The numbers went bad: going on would train on garbage."""

    exit_code = ExitCode.NUMERICS


def one_line(text: str, longest: int = 400) -> str:
    """A message about what people wrote, fit to be shown: not too long, without line ends or colours of theirs."""
    if len(text) > longest:
        tail = longest // 3
        text = f"{text[: longest - tail]} ... {text[-tail:]}"
    return printable(text, keep="")


def printable(text: str, keep: str = "\n\t") -> str:
    """Text in which nothing is left that a terminal would act on: colours, cursors, the direction of writing.

    Args:
        text: perhaps of strangers.
        keep: letters that stay though they can't be seen.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )
