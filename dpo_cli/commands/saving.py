"""A run's checkpoints: writing one, keeping some, and going back to one past the updates made since."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from dpo_cli import distributed
from dpo_cli.engine.engine import Engine
from dpo_cli.errors import CheckpointError
from dpo_cli.training import checkpoint
from dpo_cli.training.checkpoint import Checkpoint, TrainingState
from dpo_cli.training.guards import only_finite

_Tensors = Iterable[tuple[str, Tensor]]


class RolledBack(Exception):
    """The run is to go on from a checkpoint that has been made of an older one."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(str(checkpoint.folder))
        self.checkpoint = checkpoint


@dataclass
class Saver:
    """Writes the checkpoints of a run; all ranks call its methods alike."""

    run_dir: Path
    engine: Engine
    keep_last: int
    """Checkpoints that stay, besides the best."""
    newest: int | None = None
    """The update after which the newest checkpoint in this run's folder was made."""

    @property
    def folder(self) -> Path:
        """Of all checkpoints."""
        return self.run_dir / "checkpoints"

    def save(self, state: TrainingState, reference: _Tensors | None) -> str | None:
        """A checkpoint of the engine's weights and moments, unless the newest is of this very state.

        Args:
            state: of the loop.
            reference: weights of a reference that moves; None = it does not.

        Returns:
            Why it could not be written, on all ranks alike.

        Raises:
            NumericsError: on all ranks alike, if a weight is not finite: a checkpoint is to be one to go back to.
        """
        if state.step == self.newest:
            return None
        problem = distributed.from_first(self._lack_of_room())
        if problem is None:
            problem = self._write(state, only_finite(self.engine.weights()), self.engine.moments(), reference)
        if problem is not None:
            return (
                f"the checkpoint of update {state.step} could not be written ({problem}); earlier ones are as they were"
            )
        self.newest = state.step
        return None

    def go_back(self, now: TrainingState) -> tuple[Checkpoint | None, list[str]]:
        """A checkpoint of now, with weights, moments and reference of the newest valid one.

        The run that goes on from it, at once or after it was cut off, never makes the updates in between.

        Args:
            now: where the run is.

        Returns:
            It, or None where that can't be done; and what is wrong with newer ones, or why it can't.
        """
        found, problems = checkpoint.find(self.folder) if self.folder.is_dir() else (None, [])
        if found is None:
            return None, [*problems, "there is no checkpoint to go back to"]
        before, moved = found.state, found.reference()
        between = range(before.step + 1, now.step + 1)
        state = replace(now, loss=before.loss, passed_over=sorted({*now.passed_over, *between}), recent=[])
        reference = moved.items() if moved else None
        problem = self._write(state, found.weights().items(), found.moments().items(), reference)
        if problem is not None:
            return None, [*problems, f"the state to go back to could not be written ({problem})"]
        return checkpoint.read(checkpoint.folder_of(self.folder, now.step)), problems

    def _lack_of_room(self) -> str | None:
        """Seen before anything is gathered: the next checkpoint takes about what the newest does."""
        newest = checkpoint.folders(self.folder)[-1:]
        needed = int(1.2 * checkpoint.bytes_of(newest[0])) if newest else self.engine.bytes_of_weights()
        free = shutil.disk_usage(self.run_dir).free
        return None if free >= needed else f"it needs {needed:,} bytes, and {free:,} are free in {self.run_dir}"

    def _write(
        self, state: TrainingState, weights: _Tensors, moments: _Tensors, reference: _Tensors | None
    ) -> str | None:
        """Returns why not, on all ranks alike."""
        first, problem = distributed.rank() == 0, None
        try:
            checkpoint.write(self.folder, state, weights, moments, reference=reference, first=first)
            if first:
                best = state.best.get("step")
                checkpoint.clean_up(self.folder, keep_last=self.keep_last, best_step=best, newest=state.step)
        except OSError as error:
            problem = error.strerror or str(error)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                problem += f"; {shutil.disk_usage(self.run_dir).free:,} bytes are free in {self.run_dir}"
        except CheckpointError as error:
            problem = f"it is not what was written: {error}"
        of_first: str | None = distributed.from_first(problem)
        return of_first
