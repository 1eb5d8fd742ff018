"""Where the rows of another tool's run are, and what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_cli.importing.draft import Draft, shown
from dpo_cli.importing.options import Options

BUILDERS = ("json", "parquet", "csv", "text", "arrow")
"""Names that stand for a file format and not for a data set."""
PACKED = tuple(name + packed for name in (".jsonl", ".json", ".csv", ".tsv") for packed in ("", ".gz", ".zst"))
READABLE = (*PACKED, ".parquet", ".arrow", ".feather")
"""How the names of files end that can be read."""
ONE_PLACE = "data.eval is one file, one folder or one split"
_OURS = ("path", "name", "split", "revision", "data_files")
_WORDS = ("on", "off", "yes", "no", "true", "false", "null", "y", "n")
"""What YAML does not read as text."""


@dataclass(frozen=True, slots=True)
class Place:
    """One data set."""

    path: str
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    shape: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """A shape's field -> the column it is in, where that has another name."""
    weight: float | None = None
    """Its share of a mixture."""

    @property
    def reading(self) -> tuple[str | None, dict[str, str]]:
        """How its rows are read."""
        return self.shape, dict(self.columns)


def places_of(
    entry: Mapping[str, Any], name: str, draft: Draft, known: Mapping[str, str], unused: Iterable[str] = ()
) -> list[Place]:
    """An entry of a list of data sets: several places where it lists files or subsets.

    Args:
        entry: its keys and values.
        name: of the list, for comments.
        draft: told of what is lost.
        known: what becomes of keys other than path, name, split and revision: a reason, or nothing where no word
            is needed.
        unused: keys that the tool does not read with preference losses.

    Returns:
        None of them if the entry does not say where the rows are.
    """
    for key, value in entry.items():
        if key in _OURS or value in (None, False, [], {}):
            continue
        if key in unused:
            draft.drop(f"{name}.{key}", value, "not read with preference losses there")
        elif key not in known:
            draft.unknown.append(shown(f"{name}.{key}", value))
        elif known[key] and not (key == "data_dir" and entry.get("path") in BUILDERS):
            draft.lose(f"{name}.{key}", value, known[key])
    subsets = entry.get("name")
    split, revision = (str(entry[key]) if entry.get(key) else None for key in ("split", "revision"))
    return [
        Place(path, str(subset) if subset else None, split, revision)
        for path in _paths(entry, name, draft)
        for subset in (subsets if isinstance(subsets, list) else [subsets])
    ]


def _paths(entry: Mapping[str, Any], name: str, draft: Draft) -> list[str]:
    path, files = entry.get("path"), entry.get("data_files")
    if isinstance(files, Mapping):
        files = files.get(str(entry.get("split") or "train").partition("[")[0])
    listed = [str(file) for file in (files if isinstance(files, list) else [files]) if file]
    if not path or path in BUILDERS or listed == [path]:
        return listed or [str(entry["data_dir"])] * bool(path and entry.get("data_dir"))
    if entry.get("data_files"):
        draft.lose(f"{name}.data_files", entry["data_files"], "of a data set all files are read, or name them as paths")
    return [str(path)]


def set_rows(places: Sequence[Place], draft: Draft, *, split: str = "train", remark: str = "") -> None:
    """``data.path`` or ``data.mix``, and what belongs to them.

    Args:
        places: the data sets.
        draft: written into.
        split: of a data set that does not name one, and ``remark`` on it.
    """
    if not places:
        draft.missing["data.path"] = "the file does not say which rows"
        return
    shared = all(place.reading == places[0].reading for place in places)
    if shared:
        _set_reading("data", places[0], draft)
    if len(places) == 1:
        _set_place("data", places[0], draft, split, remark)
        return
    for name, place in zip(mix_names([place.path for place in places]), places, strict=True):
        key = f"data.mix.{name}"
        _set_place(key, place, draft, split, remark)
        if not shared:
            _set_reading(key, place, draft)
        if place.weight is not None:
            draft.set(f"{key}.weight", place.weight)


def _set_place(key: str, place: Place, draft: Draft, split: str, remark: str) -> None:
    draft.set(f"{key}.path", place.path)
    if place.subset and not is_local(place.path):
        draft.set(f"{key}.subset", place.subset)
    if place.revision and not is_local(place.path):
        draft.set(f"{key}.revision", place.revision)
    _, bracket, part = (place.split or "").partition("[")
    if not is_file(place.path):
        draft.set(f"{key}.split", place.split or split, "" if place.split else remark)
    elif bracket:
        draft.set(f"{key}.split", f"train[{part}")


def _set_reading(key: str, place: Place, draft: Draft) -> None:
    if place.shape:
        draft.set(f"{key}.shape", place.shape)
    if place.columns:
        draft.set(f"{key}.columns", dict(place.columns))


def mix_names(paths: Sequence[str]) -> list[str]:
    """A name for each source of a mixture: the last part of its path, so that it can stand in a key."""
    found: list[str] = []
    for path in paths:
        stem = re.sub(r"\.(jsonl?|csv|tsv|parquet|arrow|feather)(\.gz|\.zst)?$", "", path.rstrip("/").split("/")[-1])
        name = re.sub(r"[^A-Za-z0-9_]+", "_", stem).strip("_").lower()
        name = f"set_{name}" if not name[:1].isalpha() or name in _WORDS else name
        alike = sum(other == name or other.startswith(f"{name}_no_") for other in found)
        found.append(f"{name}_no_{alike + 1}" if alike else name)
    return found


def is_file(path: str) -> bool:
    """Whether it looks like a file or a pattern of files, which have one split."""
    return path.lower().endswith(READABLE) or "*" in path


def is_local(path: str) -> bool:
    """Whether it looks like files, a folder or a URL and not like a hub data set."""
    return is_file(path) or path.startswith((".", "/", "~")) or "://" in path


def held_out(tests: Sequence[Place], train: Sequence[Place], name: str, draft: Draft) -> str | None:
    """``data.eval`` for data sets that are held out; what can't be is lost.

    Args:
        tests: what is held out.
        train: what is trained on.
        name: of the option, for comments.
        draft: told of what is lost.
    """
    if not tests:
        return None
    why = ONE_PLACE if len(tests) > 1 else _why_not_held_out(tests[0], train)
    if why:
        draft.lose(name, [" ".join(filter(None, (test.path, test.subset, test.split))) for test in tests], why)
        return None
    (test,) = tests
    if is_file(test.path):
        return test.path
    if len(train) == 1 and test.path == train[0].path:
        return test.split or "train"
    return test.path if is_local(test.path) else f"{test.path}:{test.split or 'train'}"


def _why_not_held_out(test: Place, train: Sequence[Place]) -> str:
    """Why it can't be ``data.eval``; empty where it can."""
    same = len(train) == 1 and test.path == train[0].path
    if any(place.reading != test.reading for place in train):
        return "held-out rows are read as the training rows are: data.shape, data.columns"
    if "[" in (test.split or ""):
        return "data.eval takes whole splits and files, and no parts of them"
    if is_file(test.path):
        return ""
    if same and (test.subset, test.revision) != (train[0].subset, train[0].revision):
        return "a split that is held out has the subset and revision of the training rows"
    if not same and is_local(test.path):
        return "" if test.split in (None, "train") else "of a folder the split train is held out: name the file"
    if not same and (test.subset or test.revision):
        return "another data set that is held out has no subset or revision: data.eval is OWNER/NAME:SPLIT"
    return "" if same or "/" in test.path else "of another data set data.eval is OWNER/NAME:SPLIT"


def set_share(size: float | int | None, name: str, draft: Draft) -> float | None:
    """``data.eval`` from a share of the rows; a number of rows is lost."""
    if not size:
        return None
    if size < 1:
        draft.set("data.eval", float(size))
        return float(size)
    draft.lose(name, size, "data.eval takes a share of the prompts, such as 0.05, and no number of rows")
    return None


def first_share(split: str, share: float, name: str, draft: Draft) -> str:
    """The first rows of a split, as a slice: whole percents, others are lost."""
    percent = round(share * 100)
    if abs(share * 100 - percent) < 1e-6 and 0 < percent < 100 and "[" not in split:
        return f"{split}[:{percent}%]"
    if share != 1:
        draft.lose(name, share, "a part of a split is given in whole percents, or in rows: data.split=train[:1000]")
    return split


def set_workers(options: Options, draft: Draft, *names: str) -> None:
    """``data.workers``, which decides nothing but the time."""
    given = [options.whole(name) for name in names if options.has(name)]
    if given and (given[0] or 0) > 0:
        draft.set("data.workers", given[0])
