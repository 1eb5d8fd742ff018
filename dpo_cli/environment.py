"""What in a process's environment keeps libraries from being loaded: a variable's value, or a package.

That is the user's to mend, and no bug. No list of variables is kept: what a library refuses while it is being imported
is put down to the variables that it speaks of.
"""

from __future__ import annotations

import linecache
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import FrameType

from dpo_cli.errors import DpoError, one_line

_HERE = str(Path(__file__).parent)


def check_interpreter() -> None:
    """
    Raises:
        DpoError: Python leaves something out that is needed.
    """
    if level := sys.flags.optimize:
        variable = os.environ.get("PYTHONOPTIMIZE")
        how = f"-{'O' * level}" if not variable else f"PYTHONOPTIMIZE={variable}"
        raise DpoError(
            f"{how} has Python leave out asserts, by which DeepSpeed refuses wrong settings, and at level 2 texts "
            "without which transformers can't be loaded: unset PYTHONOPTIMIZE, and start Python without -O"
        )


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Inside, a library that can't be loaded as things stand is the user's business, in one line.

    Raises:
        DpoError: naming the package, or the variable and its value.
    """
    try:
        yield
    except DpoError:
        raise
    except Exception as error:
        if (problem := _package(error) or _variable(error)) is None:
            raise
        raise DpoError(problem) from error


def _package(error: BaseException) -> str | None:
    """What is wrong with a package, if that is what went wrong."""
    cause = error
    while cause.__cause__ is not None:  # transformers has a word of its own for it
        cause = cause.__cause__
    if not isinstance(cause, ImportError) or (cause.name or "").partition(".")[0] == __package__:
        return None
    from dpo_cli.versions import check_versions

    try:
        check_versions()  # knows what is missing by the names that pip has for it
    except DpoError as missing:
        return str(missing)
    except ImportError:
        pass
    return (
        f"{cause.name or 'a library'} can't be imported ({one_line(str(cause))}): its package is missing, damaged, or "
        "of a version that does not fit the others; install it, or all that dpo needs, with pip"
    )


def _variable(error: BaseException) -> str | None:
    """Which variables are not what a library expects, if that is what it says while it is being imported."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    loading = next((place for place, frame in enumerate(frames) if _is_library(frame) and _is_module(frame)), None)
    if loading is None:
        return None
    text = str(error)
    named = [name for name in os.environ if "_" in name and _stands_in(name, text)] or [
        name
        for name, value in os.environ.items()
        if _stands_in(value, text) and any(_mentions(frame, name) for frame in frames[loading:])
    ]
    if not named:
        return None
    library = str(frames[loading].f_globals.get("__name__")).partition(".")[0]
    given = ", ".join(f"{name}={os.environ[name]}" for name in named)
    return one_line(f"{given}: {library} refuses it ({' '.join(text.split())})", 600) + ". Set it right, or unset it"


def _is_library(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return not file.startswith((_HERE, "<"))


def _is_module(frame: FrameType) -> bool:
    return frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") != "__main__"


def _stands_in(word: str, text: str) -> bool:
    """Whether a text quotes a word; a short one only where it stands alone."""
    if len(word) < 3:
        return word in re.findall(r"\w+", text)
    return word.lower() in text.lower()


def _mentions(frame: FrameType, variable: str) -> bool:
    """Whether a frame's file speaks of a variable in quotes."""
    lines = linecache.getlines(frame.f_code.co_filename)
    return any(f'"{variable}"' in line or f"'{variable}'" in line for line in lines)
