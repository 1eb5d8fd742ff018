"""The trackers there are, and what each must be able to do."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True)
class Run:
    """What a tracker is told of a run when it is opened."""

    folder: Path
    project: str
    name: str
    group: str | None
    """All runs of a sweep share one."""
    config: Mapping[str, Any]
    """Without places and secrets."""
    mode: str
    """``online`` or ``offline``, for those that know the difference."""
    process: int
    """The id of the one that trains, whose machine may be watched."""
    run_id: str | None
    """To go on with; None = a new run."""


class Backend(Protocol):
    """A run that is open at a tracker. Anything may be raised by any of it."""

    run_id: str
    where: str
    """For people: a URL or a folder."""

    def has(self, step: int, metrics: Mapping[str, float]) -> bool | None:
        """Whether the tracker itself says that it holds a line; None = it can't say."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a step. Steps never go back."""

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Sampled answers: lines of ``samples.jsonl``."""

    def alert(self, title: str, text: str) -> None:
        """Something that a person should see."""

    def finish(self, record: Mapping[str, Any], exit_code: int) -> None:
        """The run has ended; returns when the tracker has everything.

        Args:
            record: ``run.json``.
            exit_code: of the run.
        """


class Kind(NamedTuple):
    """A tracker that there is."""

    title: str
    """For people."""
    package: str
    """What must be installed."""
    extra: str | None
    """Of ``dpo-cli``; None = it is always there."""
    place: str
    """Module and class of its ``Backend``."""


KINDS = {
    "wandb": Kind("Weights & Biases", "wandb", None, "wandb_runs:WandB"),
    "tensorboard": Kind("TensorBoard", "tensorboard", "tensorboard", "tensorboard_files:TensorBoard"),
    "mlflow": Kind("MLflow", "mlflow", "mlflow", "mlflow_runs:MLflow"),
}


def is_installed(name: str) -> bool:
    """Whether a tracker's package is there; it is not imported."""
    return importlib.util.find_spec(KINDS[name].package) is not None


def opened(name: str, run: Run) -> Backend:
    """Open a run at a tracker; its package is imported only now."""
    module, _, kind = KINDS[name].place.partition(":")
    backend: Backend = getattr(importlib.import_module(f"dpo_cli.tracking.{module}"), kind)(run)
    return backend


def without_secrets(text: str) -> str:
    """A text without passwords in URLs, and without the value of any variable of the environment that may be one."""
    for name, value in os.environ.items():
        if len(value) > 5 and re.search(r"KEY|TOKEN|SECRET|PASSW", name, re.IGNORECASE):
            text = text.replace(value, "***")
    return re.sub(r"://[^/\s@]+@", "://***@", text)
