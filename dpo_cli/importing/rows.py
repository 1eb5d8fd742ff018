"""Where the rows of another tool's run are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_cli.importing.draft import Draft, shown

_BUILDERS = ("json", "parquet", "csv", "text", "arrow")
"""Names that stand for a file format and not for a data set."""
_READABLE = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")


@dataclass(frozen=True, slots=True)
class Place:
    """One data set."""

    path: str
    subset: str | None = None
    split: str | None = None
    revision: str | None = None


def place_of(entry: Mapping[str, Any], name: str, draft: Draft, known: Mapping[str, str]) -> Place | None:
    """An entry of a list of data sets.

    Args:
        entry: its keys and values.
        name: of the list, for comments.
        draft: told of what is lost.
        known: what becomes of keys other than path, name, split and revision: a reason, or nothing where no word
            is needed.

    Returns:
        None if the entry does not say where the rows are.
    """
    path, files = entry.get("path"), entry.get("data_files")
    for key, value in entry.items():
        if key in ("path", "name", "split", "revision", "data_files") or value in (None, False, [], {}):
            continue
        if key not in known:
            draft.unknown.append(shown(f"{name}.{key}", value))
        elif known[key]:
            draft.lose(f"{name}.{key}", value, known[key])
    if files:
        listed = files if isinstance(files, list) else [files]
        if len(listed) == 1 and isinstance(listed[0], str) and (path in _BUILDERS or path == listed[0] or not path):
            path = listed[0]
        else:
            draft.lose(f"{name}.data_files", files, "data.path is one file, one folder of files, or one hub data set")
    if not path or path in _BUILDERS:
        return None
    texts = {key: str(entry[key]) for key in ("name", "split", "revision") if entry.get(key)}
    return Place(str(path), texts.get("name"), texts.get("split"), texts.get("revision"))


def set_rows(places: Sequence[Place], draft: Draft, *, split: str = "train", remark: str = "") -> Place | None:
    """``data.path`` and what belongs to it.

    Args:
        places: the data sets.
        draft: written into.
        split: of a data set that does not name one, and ``remark`` on it.

    Returns:
        The data set, if it is one.
    """
    if len(places) != 1:
        why = (
            "the file does not say which rows" if not places else f"{len(places)} data sets: put their rows in one file"
        )
        draft.missing["data.path"] = why
        for place in places:
            draft.lose("data set", " ".join(filter(None, (place.path, place.subset, place.split))), why)
        return None
    (place,) = places
    draft.set("data.path", place.path)
    if place.subset:
        draft.set("data.subset", place.subset)
    if place.revision:
        draft.set("data.revision", place.revision)
    if not is_file(place.path):
        draft.set("data.split", place.split or split, "" if place.split else remark)
    return place


def is_file(path: str) -> bool:
    """Whether it looks like a file and not like a hub data set."""
    return path.endswith(_READABLE) or path.startswith((".", "/", "~"))


def set_share(size: float | int | None, name: str, draft: Draft) -> float | None:
    """``data.eval`` from a share of the rows; a number of rows is lost."""
    if not size:
        return None
    if size < 1:
        draft.set("data.eval", float(size))
        return float(size)
    draft.lose(name, size, "data.eval takes a share of the prompts, such as 0.05, and no number of rows")
    return None
