"""Rows of a data set on the hub, of one commit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from dpo_cli.data.sources.row import Place, Row, Source, first_line
from dpo_cli.data.sources.splits import Part, parse_split
from dpo_cli.errors import DataError, DpoError

COMMIT = re.compile(r"[0-9a-f]{40}")
"""The full hash of one, which a hub can't give another content."""
_TIMEOUT = 30.0
"""Seconds to wait for the hub to say which commit a branch is at."""
T = TypeVar("T")


def hub_source(place: Place, name: str) -> Source:
    """A hub data set at the commit that its revision now is; nothing is downloaded before rows are read.

    Its files may be of any kind that ``datasets`` reads; it runs no code of theirs.

    Raises:
        DataError: no such data set or revision; or the hub can't be reached and the commit isn't known.
    """
    parts = parse_split(place.split, name)
    commit = _commit(place, name)
    identity = {"hub": place.path, "subset": place.subset, "commit": commit, "split": [str(part) for part in parts]}
    return Source(name, identity, partial(_rows, place, commit, parts, name), commit=commit)


def _commit(place: Place, name: str) -> str:
    """The commit a revision is at, or was at when the hub last answered."""
    if place.revision and COMMIT.fullmatch(place.revision):
        return place.revision
    try:
        return _asked_commit(place) or _known_commit(place)
    except DpoError:  # a signal
        raise
    except Exception as error:
        raise _unloadable(name, error) from error


def _asked_commit(place: Place) -> str | None:
    """By way of the data set's card, for this remembers the answer where ``datasets`` and others look as well."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        card = HfApi().hf_hub_download(place.path, "README.md", repo_type="dataset", revision=place.revision)
        return Path(card).parent.name
    except LocalEntryNotFoundError:
        return None
    except EntryNotFoundError:  # it has no card
        return HfApi().dataset_info(place.path, revision=place.revision, timeout=_TIMEOUT).sha


def _known_commit(place: Place) -> str:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=place.path, repo_type="dataset")
    file = Path(constants.HF_HUB_CACHE, folder, "refs", place.revision or "main")
    if not file.is_file():
        raise ConnectionError("the hub can't be reached, and the data set was never loaded here")
    return file.read_text(encoding="utf-8").strip()


def _rows(place: Place, commit: str, parts: list[Part], name: str) -> Iterator[Row]:
    builder = _asking(partial(_builder, place, commit), partial(_unloadable, name))
    if builder.hash != commit:
        # Where the hub doesn't answer, datasets takes whatever it has of the data set.
        raise DataError(
            f"{name}: commit {commit[:12]} isn't on this machine, only {str(builder.hash)[:12]}, and the hub can't be "
            "reached: name that commit as the revision, or try again"
        )
    unreadable = partial(_unreadable, name)
    if not place.streaming:
        _asking(builder.download_and_prepare, unreadable)
    for part in parts:
        start, stop = part.bounds(partial(_count, builder, part, name))
        make = builder.as_streaming_dataset if place.streaming else builder.as_dataset
        rows = _asking(partial(make, split=part.split), unreadable)
        yield from _numbered(_skipped(rows, start), f"{place.path} {part.split}", start, stop, name)


def _builder(place: Place, commit: str) -> Any:
    import datasets

    # The prefix keeps a folder of the same name, or one of datasets' own builders, from being taken for it.
    return datasets.load_dataset_builder(f"hf://datasets/{place.path}", name=place.subset, revision=commit)


def _count(builder: Any, part: Part, name: str) -> int:
    known = (builder.info.splits or {}).get(part.split)
    if known is None or not known.num_examples:
        raise DataError(
            f"{name}: the data set doesn't say how many rows the split {part.split} has, so {part} can't be found in a "
            "stream: give row numbers from the start, or don't stream"
        )
    return int(known.num_examples)


def _skipped(rows: Any, start: int) -> Any:
    if hasattr(rows, "__len__") and start >= len(rows):
        return ()
    return rows.skip(start) if start else rows


def _numbered(rows: Any, shown: str, start: int, stop: int | None, name: str) -> Iterator[Row]:
    wanted = islice(iter(rows), None if stop is None else max(0, stop - start))
    number = start
    while True:
        values = _asking(partial(next, wanted, None), partial(_unreadable, f"{name}, after row {number} of {shown}"))
        if values is None:
            return
        number += 1
        yield Row(f"{shown}, row {number}", values)


def _asking(ask: Callable[[], T], trouble: Callable[[Exception], DataError]) -> T:
    try:
        return ask()
    except DpoError:  # a signal
        raise
    except Exception as error:
        # Network, hub, cache and parsing libraries raise here whatever they like, with no common base.
        raise trouble(error) from error


def _unloadable(name: str, error: Exception) -> DataError:
    return DataError(
        f"{name}: there is no such file or folder here, and as a hub data set it can't be loaded ({_said(error)})"
    )


def _unreadable(name: str, error: Exception) -> DataError:
    return DataError(f"{name}: the hub data set can't be read ({_said(error)})")


def _said(error: BaseException) -> str:
    # datasets wraps what happened in an error that says only that something did.
    cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else None
    return f"{type(cause or error).__name__}: {first_line(cause or error)}"
