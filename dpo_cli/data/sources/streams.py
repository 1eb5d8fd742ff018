"""Files as bytes, wherever they lie: opened, unpacked, and known for what they are by their first bytes."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import zstandard

from dpo_cli.data.sources.row import first_line
from dpo_cli.errors import DataError

BOM = b"\xef\xbb\xbf"
PACKED = (".gz", ".zst")
_UNREADABLE = (OSError, EOFError, zlib.error, zstandard.ZstdError, pyarrow.ArrowException, UnicodeDecodeError)
_PIECE = 1024
"""Packed bytes to unpack at once: a zstd block of 4 bytes may hold 128 KiB, so this bounds memory to 32 MiB."""
_NOT_THE_FILE = {
    b"version https://git-lfs": "a Git LFS pointer instead of the file: `git lfs pull` fetches it",
    b"<!doctype html": "a web page instead of the file: download it again",
    b"<html": "a web page instead of the file: download it again",
}
_NOT_TEXT = {
    b"\x1f\x8b": "packed by gzip: its name should end in .gz",
    b"\x28\xb5\x2f\xfd": "packed by zstd: its name should end in .zst",
    b"PAR1": "a parquet file: its name should end in .parquet",
    b"ARROW1": "an Arrow file: its name should end in .arrow",
    b"\xff\xff\xff\xff": "an Arrow stream: its name should end in .arrow",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"BZh": "packed by bzip2, which isn't read: unpack it, or pack it by gzip",
    b"\xfd7zXZ": "packed by xz, which isn't read: unpack it, or pack it by gzip",
    b"SQLite format 3": "a database, which isn't read",
}
_UTF16 = "text in UTF-16 or UTF-32: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"


@dataclass(frozen=True, slots=True)
class File:
    """A file that rows are read from."""

    name: str
    """For messages and the identity: the name, below the folder where it is one of several."""
    open: Callable[[], io.BufferedReader]
    """A stream that can seek, but from web servers that can't. Raises OSError."""
    version: Callable[[Path], Any]
    """What changes with the content, given the folder where hashes are remembered; JSON-able. Raises OSError."""
    path: Path | None = None
    """Where it is on this machine, if it is."""


@contextmanager
def damage(file: File, after: Callable[[], str] | None = None) -> Iterator[None]:
    """Trouble in reading ``file`` becomes a DataError that says after which row."""
    try:
        yield
    except _UNREADABLE as error:
        where = f" after {after()}" if after else ""
        raise DataError(f"{file.name}: can't be read{where} ({first_line(error)}){_remedy(error)}") from error


def _remedy(error: BaseException) -> str:
    if isinstance(error, PermissionError):
        return ": allow yourself to read it"
    return ": the file is damaged or cut off, copy or download it again"


@contextmanager
def open_raw(file: File) -> Iterator[io.BufferedReader]:
    """The file's bytes as they are kept.

    Raises:
        DataError: it is something that stands for a file, such as a Git LFS pointer.
    """
    with file.open() as stream:
        head = stream.peek(64)
        for start, what in _NOT_THE_FILE.items():
            if head[:64].lower().startswith(start):
                raise DataError(f"{file.name}: this is {what}")
        yield stream


@contextmanager
def open_text(file: File) -> Iterator[io.BufferedReader]:
    """The file's text as bytes, unpacked as its name says, at its start.

    Raises:
        DataError: by its first bytes it is no text in UTF-8.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(open_raw(file))
        unpacked: Any = raw
        if file.name.lower().endswith(".gz"):
            unpacked = stack.enter_context(gzip.GzipFile(fileobj=raw))
        elif file.name.lower().endswith(".zst"):
            unpacked = _Zstd(raw)
        stream = io.BufferedReader(unpacked, 1 << 16)
        what = not_text(stream.peek(64))
        if what:
            raise DataError(f"{file.name}: this is {what}")
        yield stream


def not_text(head: bytes) -> str:
    """What a file is that starts so, and what to do; empty if it may be text in UTF-8."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")) or _zeros_between(head):
        return _UTF16
    return next((what for start, what in _NOT_TEXT.items() if head.startswith(start)), "")


def _zeros_between(head: bytes) -> bool:
    """Whether it looks like Latin letters in UTF-16 without its mark; JSON and most tables begin with such."""
    start = head[:8]
    return len(start) == 8 and any(not any(start[odd::2]) and all(start[1 - odd :: 2]) for odd in (0, 1))


class _Zstd(io.RawIOBase):
    """Unpacks zstd frames one after the other. zstandard's own reader takes a file that is cut off for a whole one."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._rest = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._unpack():
            pass
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _unpack(self) -> bool:
        """Unpack one piece more; False at the end of the file."""
        piece = self._rest or self._packed.read(_PIECE)
        self._rest = b""
        if not piece:
            if self._frame is not None:
                raise EOFError("the zstd frame isn't complete")
            return False
        if self._frame is None:
            # The largest window there is: files packed with --long need it.
            self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        self._ready = memoryview(self._frame.decompress(piece))
        if self._frame.eof:
            self._rest, self._frame = self._frame.unused_data, None
        return True
