"""Files on this machine: one, a folder's, those that match a pattern, or what ``datasets`` saved."""

from __future__ import annotations

import glob
import io
import json
import os
import re
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dpo_cli.data.sources.folders import by_split
from dpo_cli.data.sources.readers import ENDINGS, EXPECTED, reader_of
from dpo_cli.data.sources.streams import File
from dpo_cli.errors import DataError
from dpo_cli.file_hash import file_hash

MAGIC = re.compile(r"[*?\[]")


def is_local(path: str) -> bool:
    """Whether ``path`` is a file, a folder or a pattern, there or not, rather than a hub id or a URL."""
    if "://" in path:
        return path.startswith("file://")
    like_file = path.startswith((".", "/", "~")) or path.lower().endswith(ENDINGS)
    return like_file or bool(MAGIC.search(path)) or os.path.lexists(path)


def local_files(path: str, name: str) -> dict[str, list[File]]:
    """The files that ``path`` names, by split; a file and a pattern's files are the split ``train``.

    Args:
        path: a file, a folder, or a pattern in which ``**`` is any number of folders.
        name: of the source, for messages.

    Raises:
        DataError: there are none, or they are none that can be read.
    """
    place = Path(path.removeprefix("file://")).expanduser()
    if not os.path.lexists(place) and MAGIC.search(str(place)):
        return {"train": _matching(str(place), name)}
    if not os.path.lexists(place):
        raise DataError(f"{name}: there is no such file or folder")
    if place.is_dir():
        return _saved(place, name) or _folder(place, name)
    if reader_of(place.name) is None:
        raise DataError(f"{name}: the file's name should end in {EXPECTED}")
    return {"train": [_file(place, place.name, name)]}


def _file(path: Path, shown: str, name: str) -> File:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"{name}: {shown} can't be read ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{name}: {shown} is no ordinary file: save its content in one, for it is read more than once")
    return File(shown, partial(_open, path), partial(file_hash, path), path)


def _open(path: Path) -> io.BufferedReader:
    return path.open("rb")


def _folder(folder: Path, name: str) -> dict[str, list[File]]:
    splits = by_split(_below(folder), name)
    return {split: [_file(folder / file, file, name) for file in files] for split, files in splits.items()}


def _below(folder: Path) -> Iterator[str]:
    """All files below a folder, as paths from it. Links to folders are followed, but not in circles."""
    seen = {folder.resolve()}
    for parent, folders, files in os.walk(folder, followlinks=True):
        here = Path(parent)
        folders[:] = sorted(below for below in folders if (here / below).resolve() not in seen)
        seen.update((here / below).resolve() for below in folders)
        yield from ((here / file).relative_to(folder).as_posix() for file in files)


def _matching(pattern: str, name: str) -> list[File]:
    paths = sorted(Path(path) for path in glob.glob(pattern, recursive=True))
    read = [path for path in paths if reader_of(path.name) and not path.is_dir()]
    if not paths:
        raise DataError(f"{name}: no file matches this pattern")
    if not read:
        raise DataError(f"{name}: of the {len(paths)} files that match, none ends in {EXPECTED}")
    base = os.path.commonpath([path.parent for path in read])
    return [_file(path, path.relative_to(base).as_posix(), name) for path in read]


def _saved(folder: Path, name: str) -> dict[str, list[File]]:
    """The files of a folder that ``save_to_disk`` made; empty if it is none."""
    if (folder / "dataset_dict.json").is_file():
        splits = _listed(folder / "dataset_dict.json", "splits", name)
        return {split: _saved_split(folder / split, split + "/", name) for split in splits}
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return {"train": _saved_split(folder, "", name)}
    return {}


def _saved_split(folder: Path, above: str, name: str) -> list[File]:
    state = folder / "state.json"
    if _listed(state, "_indices_data_files", name, default=[]):
        raise DataError(f"{name}: saved by an old version of datasets, with an index: save it anew")
    files = _listed(state, "_data_files", name)
    return [_file(folder / file, above + file, name) for file in files]


def _listed(file: Path, key: str, name: str, default: Any = None) -> list[str]:
    """The names that a JSON file of ``save_to_disk`` lists: of files beside it, never of others elsewhere."""
    try:
        listed = json.loads(file.read_text(encoding="utf-8")).get(key, default) or default
        names = [item["filename"] if isinstance(item, dict) else item for item in listed]
        if any(Path(item).name != item for item in names):
            raise ValueError(f"{key} names files elsewhere")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{name}: {file.parent.name}/{file.name} isn't as datasets' save_to_disk writes it ({error}): save it anew"
        ) from error
    return names
