"""Which commits of the hub's repositories a command reads, and refusing names that may be another tomorrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dpo_cli.commands.places import policy_files, reference_place
from dpo_cli.commands.rows import held_out_part, training_parts
from dpo_cli.config import ScoreConfig, TrainConfig
from dpo_cli.data.sources import is_local, is_url
from dpo_cli.data.sources.hub import COMMIT
from dpo_cli.data.types import Kind
from dpo_cli.errors import ConfigError
from dpo_cli.model.files import CONFIG_FILE, ModelFiles
from dpo_cli.reference.fingerprint import model_file


def check_revisions(config: TrainConfig | ScoreConfig, kind: Kind) -> None:
    """Refuse branches and tags, where ``strict_revision`` says so.

    Raises:
        ConfigError: naming every key.
    """
    if config.strict_revision and (problems := [*_of_models(config), *_of_rows(config, kind)]):
        raise ConfigError(problems)


def commits_of(files: ModelFiles) -> dict[str, str]:
    """The commits that a model's and its adapter's files are of, by hub id; what lies in folders has none.

    Args:
        files: which are on this machine by now.
    """
    places = [(files.path, files.revision, "config.json"), (files.adapter, files.adapter_revision, CONFIG_FILE)]
    found = {
        path: model_file(path, revision, name).parent.name
        for path, revision, name in places
        if path is not None and not Path(path).is_dir()
    }
    return {path: commit for path, commit in found.items() if COMMIT.fullmatch(commit)}


def _of_models(config: TrainConfig | ScoreConfig) -> Iterator[str]:
    model, reference = config.model, config.reference
    found = [("model", model.path, policy_files(model))]
    if reference.path is not None:
        found.append(("reference", reference.path, reference_place(reference, model)))
    for key, path, files in found:
        for part, revision in ((files.path, files.revision), (files.adapter, files.adapter_revision)):
            if part is None or Path(part).is_dir() or _is_commit(revision):
                continue
            if part == path:
                yield _problem(f"{key}.path", part, revision)
            else:
                yield (
                    f"strict_revision: {part}, a part of {key}.path={path}, is on the hub, at {_name(revision)}: "
                    "download it, and give the folder"
                )


def _of_rows(config: TrainConfig | ScoreConfig, kind: Kind) -> Iterator[str]:
    data = config.data
    parts = training_parts(data, kind) if data.path is not None or data.mix is not None else []
    held_out = held_out_part(data, kind) if parts else None
    for part in [*parts, *([] if held_out is None or isinstance(held_out, float) else [held_out])]:
        place = part.place
        if not (is_local(place.path) or is_url(place.path) or _is_commit(place.revision)):
            whose = "data.path" if place.path == data.path else part.key
            yield _problem(whose, place.path, place.revision)


def _problem(key: str, path: str, revision: str | None) -> str:
    said = f"strict_revision: {key}={path} is on the hub, at {_name(revision)}: expected"
    if key == "data.eval":  # it has no revision of its own
        return f"{said} a file, a folder, or a split of data.path"
    return f"{said} a commit's 40 digits, {key.removesuffix('path')}revision=..."


def _name(revision: str | None) -> str:
    return revision or "its default branch"


def _is_commit(revision: str | None) -> bool:
    return revision is not None and COMMIT.fullmatch(revision) is not None
