"""Checkpoints: float32 weights and optimizer moments by parameter name, and what the loop was doing.

A checkpoint is a folder ``checkpoints/step-<n>``. It is written beside its final name, synced, and renamed, and its
``manifest.json`` has the hash of every file: a folder that is there under its name is complete, and one whose bytes
have changed since is known. Nothing in it is pickled, and nothing depends on the ZeRO stage or the number of ranks.
Tensors are written and read one by one, those of a large model in several files, so that no machine need hold all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dpo_cli import faults
from dpo_cli.errors import CheckpointError, DpoError, one_line
from dpo_cli.file_hash import sha256
from dpo_cli.model.weight_files import is_plain_name, read_header
from dpo_cli.training.tensor_files import Tensors, save_in_parts
from dpo_cli.whole_folder import out_of_the_way, renamed, sync, sync_parents

_FORMAT = 2
_KINDS = ("weights", "moments", "reference")
"""Of tensors; the last only where the reference moves."""
_PART = 2 * 2**30
"""Bytes of a file of tensors; the next one goes into another file."""


@dataclass
class TrainingState:
    """What the loop needs to go on, besides weights and moments."""

    step: int
    """Updates done, by their place in the plan."""
    data: str
    """Fingerprint of the training groups."""
    settings: dict[str, Any]
    """What the updates depend on; a run goes on only under the same."""
    best: dict[str, Any] = field(default_factory=dict)
    """The best evaluation so far: ``{"step": n, "value": x}``, or empty."""
    loss: dict[str, dict[str, float]] = field(default_factory=dict)
    """What the loss remembers, by term."""
    pending: list[float] = field(default_factory=list)
    """Sums of metrics over the updates since the last line of them, over all ranks."""
    passed_over: list[int] = field(default_factory=list)
    """Those of the ``step`` updates that the weights have nothing of."""
    recent: list[float] = field(default_factory=list)
    """Losses of the last updates, to tell a spike by."""
    format: int = _FORMAT


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint on disk."""

    folder: Path
    state: TrainingState

    @property
    def updates(self) -> int:
        """How many updates the weights have had."""
        return self.state.step - len(self.state.passed_over)

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
        OSError: on the first rank, if it can't be written; nothing is left of it. It has then met the other ranks in
            all collectives, so that the run can go on.
    """
    final = folder_of(checkpoints, state.step)
    partial = checkpoints / f".partial-step-{state.step}"
    problem: OSError | None = None

    def attempt(part: Callable[[], object]) -> None:
        nonlocal problem
        if first and problem is None:
            try:
                part()
            except OSError as error:
                problem = error

    try:
        attempt(lambda: _begin(checkpoints, partial))
        for name, tensors in zip(_KINDS, (weights, moments, reference), strict=True):
            if tensors is None:
                continue
            try:
                save_in_parts(tensors, partial, name, size=_PART, writes=first and problem is None)
            except OSError as error:
                problem = error
            if name == "weights":
                attempt(lambda: faults.reached("mid-save", state.step))
        attempt(lambda: _commit(partial, final, state))
        if problem is not None:
            raise problem
    except BaseException:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def _begin(checkpoints: Path, partial: Path) -> None:
    """An empty folder to write in; what killed processes have left is removed."""
    for leftover in checkpoints.glob(".*-step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)


def _commit(partial: Path, final: Path, state: TrainingState) -> None:
    """Complete what is written and give it its name: only when the disk has it all, and then for good."""
    (partial / "state.json").write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(partial.iterdir())}
    (partial / "manifest.json").write_text(json.dumps(files, indent=2), encoding="utf-8")
    for path in [*sorted(partial.iterdir()), partial]:
        sync(path)
    faults.reached("before-rename", state.step)
    with out_of_the_way(final):  # one from before the run was cut off is kept until the new one is in its place
        partial.rename(final)
        faults.reached("after-rename", state.step)
        sync_parents(final)


def bytes_of(folder: Path) -> int:
    """What a checkpoint takes on the disk."""
    return sum(path.stat().st_size for path in folder.iterdir())


def clean_up(checkpoints: Path, *, keep_last: int, best_step: int | None, newest: int) -> None:
    """Delete all checkpoints but the newest ``keep_last`` and the best, if the newest is what was written.

    Args:
        checkpoints: their folder.
        keep_last: how many.
        best_step: of the best, if there is one.
        newest: the step just saved. Later ones don't count: a run that went on before them found them broken.

    Raises:
        CheckpointError: if the newest can't be read back; nothing is deleted then.
    """
    steps = [step for step in _steps(checkpoints) if step <= newest]
    superfluous = [step for step in steps[:-keep_last] if step != best_step]
    if superfluous:
        read(folder_of(checkpoints, newest))
    for step in superfluous:
        remove(folder_of(checkpoints, step))


def folders(checkpoints: Path) -> list[Path]:
    """All checkpoints under their final names, the oldest first, valid or not."""
    return [folder_of(checkpoints, step) for step in _steps(checkpoints)]


def remove(folder: Path) -> None:
    """Delete one. It loses its name first: what is there under a name is complete, also if this is cut off."""
    partial = folder.with_name(f".removed-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    if not renamed(folder, partial):
        (folder / "manifest.json").unlink()  # without it, it is no checkpoint
        partial = folder
    faults.reached("delete", folder.name.removeprefix("step-"))
    shutil.rmtree(partial)


def read(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``.

    Raises:
        CheckpointError: if it is incomplete or damaged.
    """
    try:
        for name in ("manifest.json", "state.json"):
            _check_plain(folder / name)
        files: Mapping[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if odd := [name for name in files if not is_plain_name(name)]:
            raise CheckpointError(f"{folder}: its manifest names {one_line(odd[0])}, which is not a file in it")
        for name in sorted({"state.json", *files}):
            _check(folder / name, files[name])
        for name in _KINDS[:2]:
            if not _files(folder, name):
                raise CheckpointError(f"{folder} holds no {name}")
        if strange := [path.name for kind in _KINDS for path in _files(folder, kind) if path.name not in files]:
            raise CheckpointError(f"{folder}: {strange[0]} is not in its manifest")
        for kind in _KINDS:
            for path in _files(folder, kind):
                read_header(path)
        state = TrainingState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
        _check_types(state)
    except CheckpointError:
        raise
    except (DpoError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder} is not a complete checkpoint ({one_line(str(error))})") from None
    if state.format != _FORMAT:
        raise CheckpointError(f"{folder} has format {state.format}; this version reads {_FORMAT}")
    return Checkpoint(folder, state)


def _check_types(state: TrainingState) -> None:
    """
    Raises:
        TypeError: a value that was never written so.
    """
    numbers = [*state.pending, *state.recent, *(value for values in state.loss.values() for value in values.values())]
    sound = (
        type(state.step) is int
        and state.step >= 0
        and isinstance(state.data, str)
        and isinstance(state.settings, dict)
        and isinstance(state.best, dict)
        and (not state.best or (type(state.best["step"]) is int and isinstance(state.best["value"], int | float)))
        and all(isinstance(number, int | float) for number in numbers)
        and all(type(step) is int and 0 < step <= state.step for step in state.passed_over)
        and len(set(state.passed_over)) == len(state.passed_over)
    )
    if not sound:
        raise TypeError("state.json holds values of other types than were written")


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


def _check(file: Path, written: Mapping[str, Any]) -> None:
    _check_plain(file)
    found, expected = file.stat().st_size, int(written["bytes"])
    if found != expected:
        raise CheckpointError(f"{file.parent}: {file.name} has {found:,} bytes, and {expected:,} were written")
    if sha256(file) != written["sha256"]:
        raise CheckpointError(f"{file.parent}: {file.name} has changed since it was written")


def _check_plain(file: Path) -> None:
    """Refuse what is there and no file: to open a pipe is to wait for whoever writes to it."""
    if file.exists() and not file.is_file():
        raise CheckpointError(f"{file.parent} is not a complete checkpoint ({file.name} is no ordinary file)")


def _files(folder: Path, name: str) -> list[Path]:
    """Files of one kind of tensors: one, or numbered ones."""
    return sorted([*folder.glob(f"{name}.safetensors"), *folder.glob(f"{name}-*.safetensors")])


def _steps(checkpoints: Path) -> list[int]:
    names = [path.name for path in checkpoints.glob("step-*")] if checkpoints.is_dir() else []
    return sorted(int(name[5:]) for name in names if name[5:].isdecimal())
