"""Files in object stores and on the web, through fsspec."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dpo_cli.data.sources.folders import by_split
from dpo_cli.data.sources.local import MAGIC
from dpo_cli.data.sources.readers import EXPECTED, reader_of
from dpo_cli.data.sources.row import first_line
from dpo_cli.data.sources.streams import File
from dpo_cli.errors import DataError, DpoError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WEB = ("http://", "https://")
_CONTENT_TAGS = ("etag", "md5hash", "content-md5", "content_md5", "crc32c", "blob_id", "xet_hash", "checksum", "sha256")
"""What file systems call a value that changes with a file's content."""
_READ_AHEAD = 4 << 20
T = TypeVar("T")


def is_url(path: str) -> bool:
    """Whether ``path`` is a URL; ``file://`` is a file on this machine."""
    return _URL.match(path) is not None and not path.startswith("file://")


def url_files(url: str, name: str) -> dict[str, list[File]]:
    """The files that a URL names, by split: one, a folder's, or those that match a pattern.

    Raises:
        DataError: there are none, they can't be reached, or what reads such URLs isn't installed.
    """
    import fsspec

    try:
        # Proxies from the environment and passwords from ~/.netrc: a URL is no place for them.
        options = {"client_kwargs": {"trust_env": True}} if url.startswith(_WEB) else {}
        system, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise DataError(f"{name}: {urlsplit(url).scheme}:// can't be read: {first_line(error)}") from error
    return _reach(name, lambda: _files(system, str(path), url, name))


def _reach(name: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except DpoError:
        raise
    except Exception as error:
        # Each store's library raises what it likes, with no common base.
        raise DataError(f"{name}: can't be reached ({type(error).__name__}: {first_line(error)})") from error


def _files(system: Any, path: str, url: str, name: str) -> dict[str, list[File]]:
    # In a web address a question mark starts the query, and pages are no folders.
    web = url.startswith(_WEB)
    if MAGIC.search(path) and not web:
        paths = sorted(found for found in system.glob(path) if reader_of(found))
        if not paths:
            raise DataError(f"{name}: no file that matches ends in {EXPECTED}")
        base = str(PurePosixPath(MAGIC.split(path)[0] + "x").parent)
        return {"train": [_file(system, found, _below(found, base)) for found in paths]}
    if not web and system.isdir(path):
        below = {_below(found, path): found for found in system.find(path)}
        splits = by_split(below, name)
        return {split: [_file(system, below[file], file) for file in files] for split, files in splits.items()}
    shown = PurePosixPath(urlsplit(url).path if web else path).name
    if reader_of(shown) is None:
        raise DataError(f"{name}: the file's name should end in {EXPECTED}")
    if not system.exists(path):
        raise DataError(f"{name}: there is no such file or folder")
    return {"train": [_file(system, path, shown)]}


def _below(path: str, folder: str) -> str:
    return path.removeprefix(folder).lstrip("/")


def _file(system: Any, path: str, shown: str) -> File:
    return File(shown, partial(_open, system, path), partial(_version, system, path))


def _open(system: Any, path: str) -> io.BufferedReader:
    return io.BufferedReader(_Remote(system.open(path, "rb", block_size=_READ_AHEAD)), 1 << 16)


def _version(system: Any, path: str, cache: Path) -> Any:
    """A tag that the store keeps of the content, or else the content's hash; not its time, which says too little."""
    info = {str(key).lower(): value for key, value in system.info(path).items()}
    tags = {key: str(info[key]) for key in _CONTENT_TAGS if info.get(key)}
    if tags:
        return {**tags, "size": info.get("size")}
    with _open(system, path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Remote(io.RawIOBase):
    """A stream of fsspec whose trouble, whatever library it comes from, is an OSError."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(_as_os_error(lambda: self._stream.seek(offset, whence)))

    def tell(self) -> int:
        return int(self._stream.tell())

    def readinto(self, buffer: Any) -> int:
        data = _as_os_error(lambda: self._stream.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _as_os_error(act: Callable[[], T]) -> T:
    try:
        return act()
    except (OSError, DpoError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {first_line(error)}") from error
