"""Checkpoints: float32 weights and optimizer moments by parameter name, and what the loop was doing.

A checkpoint is a folder ``checkpoints/step-<n>``. It is written beside its final name, synced, and renamed, and its
``manifest.json`` has the hash of every file: a folder that is there under its name is complete, and one whose bytes
have changed since is known. Nothing in it is pickled, and nothing depends on the ZeRO stage or the number of ranks.
Tensors are written and read one by one, those of a large model in several files, so that no machine need hold all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dpo_cli.errors import CheckpointError
from dpo_cli.training.tensor_files import Tensors, save_in_parts

_FORMAT = 1
_PART = 2 * 2**30
"""Bytes of a file of tensors; the next one goes into another file."""


@dataclass
class TrainingState:
    """What the loop needs to go on, besides weights and moments."""

    step: int
    """Updates done."""
    data: str
    """Fingerprint of the training groups."""
    settings: dict[str, Any]
    """What the updates depend on; a run goes on only under the same."""
    wandb_id: str | None = None
    best: dict[str, Any] = field(default_factory=dict)
    """The best evaluation so far: ``{"step": n, "value": x}``, or empty."""
    loss: dict[str, dict[str, float]] = field(default_factory=dict)
    """What the loss remembers, by term."""
    pending: list[float] = field(default_factory=list)
    """Sums of metrics over the updates since the last line of them, over all ranks."""
    format: int = _FORMAT


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint on disk."""

    folder: Path
    state: TrainingState

    def weights(self) -> Mapping[str, Tensor]:
        """By parameter name."""
        return Tensors(_files(self.folder, "weights"))

    def moments(self) -> Mapping[str, Tensor]:
        """By ``<parameter>/<moment>``."""
        return Tensors(_files(self.folder, "moments"))

    def reference(self) -> Mapping[str, Tensor]:
        """Weights of a reference that has moved, by parameter name."""
        return Tensors(_files(self.folder, "reference"))


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where a step's checkpoint lies."""
    return checkpoints / f"step-{step}"


def write(
    checkpoints: Path,
    state: TrainingState,
    weights: Iterable[tuple[str, Tensor]],
    moments: Iterable[tuple[str, Tensor]],
    *,
    first: bool,
    reference: Iterable[tuple[str, Tensor]] | None = None,
) -> Path:
    """Write a checkpoint. All ranks must call it, as getting at the tensors is a collective; only the first writes.

    Args:
        checkpoints: the folder of all checkpoints.
        state: of the loop.
        weights: by parameter name.
        moments: by ``<parameter>/<moment>``.
        first: whether this is the first rank.
        reference: weights of a reference that moves; None = it does not.

    Raises:
        OSError: if it can't be written; nothing is left under the final name.
    """
    final = folder_of(checkpoints, state.step)
    partial = checkpoints / f".partial-step-{state.step}"
    replaced = checkpoints / f".replaced-step-{state.step}"
    if first:
        for leftover in (partial, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        for name, tensors in (("weights", weights), ("moments", moments), ("reference", reference)):
            if tensors is not None:
                save_in_parts(tensors, partial, name, size=_PART, writes=first)
        if first:
            (partial / "state.json").write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
            files = {path.name: _hash(path) for path in sorted(partial.iterdir())}
            (partial / "manifest.json").write_text(json.dumps(files, indent=2), encoding="utf-8")
            for path in [*partial.iterdir(), partial]:
                _sync(path)
            if final.exists():  # from before the run was cut off; kept until the new one is in its place
                final.rename(replaced)
            partial.rename(final)
            _sync(checkpoints)
            shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def clean_up(checkpoints: Path, *, keep_last: int, best_step: int | None, newest: int | None = None) -> None:
    """Delete all checkpoints but the newest ``keep_last`` and the best.

    Args:
        checkpoints: their folder.
        keep_last: how many.
        best_step: of the best, if there is one.
        newest: the step just saved. Later ones don't count: a run that went on before them found them broken.
    """
    steps = [step for step in _steps(checkpoints) if newest is None or step <= newest]
    for step in steps[:-keep_last]:
        if step != best_step:
            shutil.rmtree(folder_of(checkpoints, step))


def folders(checkpoints: Path) -> list[Path]:
    """All checkpoints under their final names, the oldest first, valid or not."""
    return [folder_of(checkpoints, step) for step in _steps(checkpoints)]


def remove(folder: Path) -> None:
    """Delete one. It loses its name first: what is there under a name is complete, also if this is cut off."""
    partial = folder.with_name(f".removed-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    folder.rename(partial)
    shutil.rmtree(partial)


def read(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``.

    Raises:
        CheckpointError: if it is incomplete or damaged.
    """
    try:
        files: Mapping[str, str] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for name in sorted({"state.json", *files}):
            if _hash(folder / name) != files[name]:
                raise CheckpointError(f"{folder}: {name} has changed since it was written")
        for name in ("weights", "moments"):
            if not _files(folder, name):
                raise CheckpointError(f"{folder} holds no {name}")
        state = TrainingState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder} is not a complete checkpoint ({error})") from None
    if state.format != _FORMAT:
        raise CheckpointError(f"{folder} has format {state.format}; this version reads {_FORMAT}")
    return Checkpoint(folder, state)


def find(where: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest valid checkpoint of a folder, and what is wrong with newer ones.

    Args:
        where: a checkpoint, a run folder, or its ``checkpoints``.
    """
    if (where / "manifest.json").is_file():
        return read(where), []
    checkpoints = where / "checkpoints" if (where / "checkpoints").is_dir() else where
    problems: list[str] = []
    for step in reversed(_steps(checkpoints)):
        try:
            return read(folder_of(checkpoints, step)), problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def _files(folder: Path, name: str) -> list[Path]:
    """Files of one kind of tensors: one, or numbered ones."""
    return sorted([*folder.glob(f"{name}.safetensors"), *folder.glob(f"{name}-*.safetensors")])


def _steps(checkpoints: Path) -> list[int]:
    names = [path.name for path in checkpoints.glob("step-*")] if checkpoints.is_dir() else []
    return sorted(int(name[5:]) for name in names if name[5:].isdigit())


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
