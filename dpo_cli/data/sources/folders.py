"""What a folder's files are: which are read, and of which split each is, by their names alone.

A folder is read with all below it, in the order of names. Hidden files and those that ``datasets`` keeps beside rows
are left alone, as are files of other kinds, such as README.md. A split is in a file's name as ``datasets`` and most
people write it: ``test.jsonl``, ``pairs-validation.csv``, ``train_prefs-00000-of-00003.parquet``; or in the name of a
folder above it. Files of several splits are never read as one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from dpo_cli.data.sources.readers import EXPECTED, reader_of
from dpo_cli.errors import DataError

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_SHARD = re.compile(r"(?P<split>\w[\w.]*)-\d{5}-of-\d{5}")
_BESIDE_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


def is_read(name: str) -> bool:
    """Whether a file of this name below a folder holds rows."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") for part in parts)
    return not hidden and parts[-1] not in _BESIDE_ROWS and reader_of(name) is not None


def by_split(names: Iterable[str], name: str) -> dict[str, list[str]]:
    """The names of a folder's files that are read, by split.

    Args:
        names: all of its files, as paths below it.
        name: of the folder, for messages.

    Raises:
        DataError: none is read, they are of several kinds, or only some say which split they are of.
    """
    read = sorted(filter(is_read, names))
    if not read:
        raise DataError(f"{name}: no file in this folder ends in {EXPECTED}")
    families = Counter(reader.family for file in read if (reader := reader_of(file)))
    if len(families) > 1:
        found = ", ".join(f"{count} {family}" for family, count in families.items())
        raise DataError(f"{name}: files of several kinds ({found}): name those that are meant by a pattern, as *.jsonl")
    splits: dict[str, list[str]] = {}
    for file in read:
        splits.setdefault(split_of(file), []).append(file)
    if set(splits) == {""}:
        return {"train": read}
    if "" in splits:
        named = next(file for file in read if split_of(file))
        raise DataError(
            f"{name}: {named} is of the split {split_of(named)} by its name, and {splits[''][0]} doesn't say which one "
            "it is of: name the files that are meant by a pattern, as train*.jsonl"
        )
    return splits


def split_of(file: str) -> str:
    """The split in a file's name, else in the nearest folder's; empty if none says."""
    return next((split for part in reversed(PurePosixPath(file).parts) if (split := _split_in(part))), "")


def _split_in(part: str) -> str:
    found = {_SPLIT_OF[word] for word in re.split(r"[^a-z]+", part.lower()) if word in _SPLIT_OF}
    if len(found) != 1:
        return ""
    shard = _SHARD.match(part)
    return shard["split"] if shard else found.pop()
