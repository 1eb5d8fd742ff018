"""Files and folders that are complete or not there, and whether there can be any."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from uuid import uuid4


def why_not_writable(folder: Path, *, locks: bool = False) -> str:
    """Why nothing can be put into a folder that is there or still to be made; empty if it can. Nothing is left of this.

    Asked by doing it: what a file system allows is more than permissions say.

    Args:
        folder: to ask of.
        locks: whether its files are to be locked as well, which some network file systems can't.
    """
    try:
        place = next(parent for parent in (folder, *folder.parents) if parent.exists() or parent.is_symlink())
        if not place.is_dir():
            return f"{place} is {'a link to nothing' if not place.exists() else 'a file'}"
        with tempfile.TemporaryFile(dir=place) as file:
            return _why_no_locks(file.fileno()) if locks else ""
    except OSError as error:
        return error.strerror or str(error)


def _why_no_locks(file: int) -> str:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # for which filelock has another way
            return f"its file system keeps no locks: {error.strerror}"
    return ""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, what the operating system refuses is refused of ``path``, unless it says of what: a full disk doesn't."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_file(path: Path, content: str | bytes, *, lasting: bool = False, writer: str = "") -> None:
    """All of a file or none of it; what is there is replaced.

    Args:
        path: of the file.
        content: text is written as UTF-8.
        lasting: have the disk hold it before going on.
        writer: see ``leftovers``.

    Raises:
        OSError: it can't be written; what was there still is.
    """
    partial = path.with_name(f".{path.name}.{writer}.{uuid4().hex}.partial")  # several machines may share the folder
    try:
        with naming(path), partial.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        partial.replace(path)
        if lasting:
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def leftovers(folder: Path, name: str = "*", writer: str = "") -> list[Path]:
    """What ``write_file`` had not finished in a folder when it was killed, or is writing at this moment.

    Args:
        folder: of the files.
        name: of the files; a pattern.
        writer: as it was given to ``write_file``; only who knows that this writer is not at work may remove these.
    """
    return sorted(folder.glob(f".{name}.{writer}.*.partial"))


@contextmanager
def in_place_of(folder: Path, partial: Path, *, replace: bool = True) -> Iterator[Path]:
    """An empty folder that takes the place of ``folder`` once everything is in it, and is removed if that fails.

    Args:
        folder: the final name.
        partial: the name until then, on the same file system; what a killed process left there is removed.
        replace: whether what is at ``folder`` is replaced, if it is more than an empty folder.

    Raises:
        OSError: it can't be written, or another process is writing it; what was there still is.
    """
    _remove_leftover(partial)
    partial.mkdir(parents=True)
    handle = os.open(partial, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
        for path in [*partial.rglob("*"), partial]:
            sync(path)
        with out_of_the_way(folder) if replace else nullcontext():
            partial.rename(folder)
            sync_parents(folder)
    finally:
        os.close(handle)
        shutil.rmtree(partial, ignore_errors=True)


def _remove_leftover(partial: Path) -> None:
    """
    Raises:
        BlockingIOError: it is no leftover: a process is at work in it.
    """
    if partial.is_dir():
        handle = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(errno.EBUSY, "another process is writing it", str(partial)) from None
        except OSError:  # a file system without locks
            pass
        finally:
            os.close(handle)
    shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def out_of_the_way(folder: Path) -> Iterator[None]:
    """Inside, what is at ``folder`` has another name; afterwards it is gone, or if that fails, has its own again."""
    if not folder.exists():
        yield
        return
    before = folder.with_name(f".replaced-{folder.name}")
    shutil.rmtree(before, ignore_errors=True)
    if not renamed(folder, before):
        shutil.rmtree(folder)
        yield
        return
    try:
        yield
    except BaseException:
        before.rename(folder)
        raise
    shutil.rmtree(before, ignore_errors=True)


def renamed(folder: Path, to: Path) -> bool:
    """Rename a folder; False where it lies in a lower layer of an overlay, as what comes with a container's image does,
    and has no other name.

    Raises:
        OSError: for any other reason.
    """
    try:
        folder.rename(to)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def sync(path: Path) -> None:
    """Have the disk hold a file's content, or which names are in a folder, before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_parents(path: Path) -> None:
    """Have the disk hold the name of ``path``, and those of the two folders it is in, which may be new as well."""
    for parent in path.resolve().parents[:3]:
        with suppress(PermissionError):  # not ours to read, so it was there before
            sync(parent)
