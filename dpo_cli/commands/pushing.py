"""From a run or a model folder to a repository on the hub."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from dpo_cli.commands.card import FOLDER, license_of, metadata_of, model_card, plain_card, text_hash
from dpo_cli.commands.public import hub_id, public_name, public_yaml
from dpo_cli.errors import DpoError, one_line
from dpo_cli.hub import File, check_name, check_secrets, choose, upload
from dpo_cli.model.files import CONFIG_FILE, ModelFiles, understood
from dpo_cli.reporting.runs import read_config_file
from dpo_cli.run_folder import RunRecord, read
from dpo_cli.tracking.console import Console
from dpo_cli.whole_folder import write_file

_SHOWN = 8
_CARD = "README.md"
_NO_SETTINGS = ("tokenizer.json", "vocab.json", "model.safetensors.index.json")
"""JSON in which no place on this machine can stand."""


@dataclass(frozen=True)
class Wanted:
    """Where to, and how."""

    repo: str
    """OWNER/NAME."""
    public: bool
    revision: str | None
    """A branch; None = main."""
    dry_run: bool
    merged: bool


@dataclass(frozen=True)
class _Model:
    """What is to be uploaded."""

    folder: Path
    run: Path | None
    """Of the run that it is of."""

    @property
    def settings(self) -> Mapping[str, Any] | None:
        """The run's configuration."""
        return None if self.run is None else _mapping(_no_link(self.run / "config.yaml"))


def push(source: str, wanted: Wanted, console: Console | None = None) -> None:
    """Show what is uploaded, and upload it.

    Raises:
        DpoError, StorageError: see ``commands.push.run``.
    """
    console = console or Console()
    check_name(wanted.repo)
    model = _find(Path(source))
    with _merged(model, console) if wanted.merged else _as_it_is(model) as folder:
        chosen, left_out = choose(folder)
        files = [_made_public(file) for file in chosen if file.name not in (_CARD, "config.yaml")]
        card = _card(model, folder, renew=not wanted.merged, write=not wanted.dry_run)
        files.append(replace(card, content=card.read().replace(FOLDER.encode(), wanted.repo.encode())))
        files += _config(model, folder)
        check_secrets(files)
        _show(files, left_out, wanted, console)
        _warn(files, console)
        if wanted.dry_run:
            console.result("a dry run: nothing was sent")
            return
        message, description = _message(model)
        with console.phase(f"upload to {wanted.repo}"):
            pushed = upload(
                files,
                wanted.repo,
                public=wanted.public,
                revision=wanted.revision,
                message=message,
                description=description,
            )
    if pushed.deleted:
        console.say(f"removed what was there of another model: {', '.join(pushed.deleted)}")
    if pushed.private and wanted.public:
        console.warn(f"{wanted.repo} was there and is private; that is changed in its settings on the hub")
    console.result(f"uploaded to {wanted.repo} ({'private' if pushed.private else 'public'}): {pushed.url}")


def _find(place: Path) -> _Model:
    if not place.is_dir():
        raise DpoError(f"push: {place} is not a folder; expected a run's, or one of a model or an adapter")
    if (place / "run.json").is_file():
        if not (place / "final").is_dir():
            raise DpoError(f"push: {place} has no final/: the run did not come to its end; resume=auto goes on with it")
        return _Model(place / "final", place)
    of_run = place.resolve().name == "final" and (place.resolve().parent / "run.json").is_file()
    return _Model(place, place.resolve().parent if of_run else None)


@contextmanager
def _as_it_is(model: _Model) -> Iterator[Path]:
    yield model.folder


@contextmanager
def _merged(model: _Model, console: Console) -> Iterator[Path]:
    """The adapter's merged weights, in a folder beside it that is gone afterwards."""
    from dpo_cli.commands.merging import Wanted as Merge
    from dpo_cli.commands.merging import find_source, merge_into

    source = find_source(str(model.run or model.folder))
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=model.run or model.folder.resolve().parent) as place:
        merge_into(Path(place, "model"), source, Merge("float32", "trained"), console)
        yield Path(place, "model")


def _card(model: _Model, folder: Path, *, renew: bool, write: bool) -> File:
    """README.md: the run's as it is known now, if nobody has changed it; else what is there, or a plain one."""
    path = _no_link(folder / _CARD)
    try:
        there = path.read_text(encoding="utf-8") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise DpoError(f"push: {path} is not valid UTF-8 ({error})") from None
    if not renew or model.run is None:
        if there is not None:
            return File(_CARD, there.encode())
        base = (_mapping(folder / CONFIG_FILE) or {}).get("base_model_name_or_path")
        return File(_CARD, plain_card(base, license_of(ModelFiles(base)) if base else {}).encode(), "made now")
    record = read(model.run)
    if there is not None and text_hash(there) != record.get("card"):
        return File(_CARD, there.encode(), "changed by hand: as it is")
    if model.settings is None or not {"about", "data", "final"} <= record.keys():
        if there is None:
            raise DpoError(f"push: {path} is gone, and {model.run} does not say enough to write it again")
        return File(_CARD, there.encode())
    with understood(f"push: {model.run} does not say what a model card needs"):
        text = model_card(model.settings, record, evaluation=_mapping(model.run / "eval.json"))
    if write and text != there:
        write_file(path, text)
        RunRecord(model.run).update(card=text_hash(text))
    return File(_CARD, text.encode(), "renewed" if text != there else "")


def _config(model: _Model, folder: Path) -> list[File]:
    settings = _mapping(_no_link(folder / "config.yaml")) if model.run is None else model.settings
    if settings is None:
        return []
    return [File("config.yaml", public_yaml(settings).encode(), "without places on this machine")]


def _no_link(path: Path) -> Path:
    """
    Raises:
        DpoError: the path is a link: what it leads to was not put into the folder, and may be anything of this machine.
    """
    if path.is_symlink():
        raise DpoError(f"push: {path} is a link, and links are not uploaded: put a file in its place")
    return path


def _made_public(file: File) -> File:
    """A JSON configuration with the names of this machine's files and folders cut down to their last part."""
    if not file.name.endswith(".json") or file.name in _NO_SETTINGS:
        return file
    try:
        before = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise DpoError(f"push: {file.name} is not valid JSON ({one_line(str(error))})") from None
    after = _without_places(before)
    if after == before:
        return file
    return File(file.name, json.dumps(after, indent=2).encode(), "without places on this machine")


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    local = isinstance(value, str) and value.startswith("/") and len(Path(value).parts) > 2
    return public_name(value) if local else value


def _show(files: list[File], left_out: list[str], wanted: Wanted, console: Console) -> None:
    where = f"{wanted.repo}{f', branch {wanted.revision}' if wanted.revision else ''}"
    table = Table(title=f"to {where}, {'public' if wanted.public else 'private'}", title_justify="left")
    table.add_column("file")
    table.add_column("size", justify="right")
    table.add_column("")
    for file in sorted(files, key=lambda file: file.name):
        table.add_row(file.name, _size(file.size), file.note)
    table.add_section()
    table.add_row(f"{len(files)} files", _size(sum(file.size for file in files)), "")
    console.table(table)
    if left_out:
        more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
        console.say(f"not uploaded, as not on the list of what may be: {', '.join(left_out[:_SHOWN])}{more}")


def _warn(files: list[File], console: Console) -> None:
    contents = {file.name: file for file in files}
    if metadata_of(contents[_CARD].read().decode()).get("license") is None:
        console.warn("the card names no licence, because the base model's files name none: README.md can be given one")
    if CONFIG_FILE in contents:
        base = str(json.loads(contents[CONFIG_FILE].read()).get("base_model_name_or_path"))
        if hub_id(base) is None:
            console.warn(
                f"the adapter's base model, {base}, is a folder of this machine, which nobody else can load: --merged "
                "uploads all weights"
            )


def _message(model: _Model) -> tuple[str, str]:
    if model.run is None:
        return "dpo push", ""
    record = read(model.run)
    settings = model.settings or {}
    loss = (settings.get("loss") or {}).get("name", "")
    message = f"dpo run {model.run.resolve().name}: {loss}, {record.get('updates')} updates"
    return message, f"dpo {(record.get('versions') or {}).get('dpo', '')}, code {record.get('code', '')}"


def _mapping(file: Path) -> dict[str, Any] | None:
    """A YAML or JSON file that holds a mapping; None if there is none."""
    return read_config_file(file) or None


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
