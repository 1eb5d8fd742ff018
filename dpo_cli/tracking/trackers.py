"""Where metrics go: always ``metrics.jsonl``, and Weights & Biases where it is set up.

A tracker never stops a run: what goes wrong with the network is said once, and the file has everything.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Takes metrics of a step."""

    run_id: str | None

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def settle(self) -> None:
        """Have the disk hold what was logged, where that is this tracker's to see to."""

    def finish(self, exit_code: int) -> None: ...


class JsonLines:
    """``metrics.jsonl``: one object per line, with ``step``."""

    run_id: str | None = None

    def __init__(
        self, path: Path, *, resume_after: int | None = None, warn: Callable[[str], None] = lambda _: None
    ) -> None:
        """
        Args:
            path: of the file.
            warn: told once when a line can't be written.
            resume_after: keep what is there up to this step, and drop lines of later steps, which will be run again.
        """
        self.latest: dict[str, float] = {}
        """The newest value of every metric in the lines that were kept."""
        self._kept: set[tuple[float, frozenset[str]]] = set()
        if resume_after is not None and path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= resume_after]
            partial = path.with_suffix(".partial")
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            partial.replace(path)
            for line in kept:
                values = json.loads(line)
                step = values.pop("step")
                self.latest.update({name: value for name, value in values.items() if value is not None})
                self._kept.add((step, frozenset(values)))
        self._file = path.open("ab", buffering=0)
        self._waiting = b""
        self._warn = warn
        self._warned = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """JSON has no NaN or infinity: they become null. What a line kept already says is not said again: a run that
        was stopped after its last update evaluates once more."""
        if (step, frozenset(metrics)) in self._kept:
            return
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._waiting += json.dumps({"step": step, **values}).encode() + b"\n"
        self._write()

    def settle(self) -> None:
        self._write(sync=True)

    def finish(self, exit_code: int) -> None:
        self._write()
        if self._waiting:
            self._warn(f"{self._file.name} lacks its last {len(self._waiting):,} bytes: the disk is full")
        self._file.close()

    def _write(self, *, sync: bool = False) -> None:
        """What does not fit on the disk waits until there is room."""
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            if not self._warned:
                self._warned = True
                self._warn(f"{self._file.name} can't be written for now ({error.strerror}); its lines are kept")


class WandB:
    """One Weights & Biases run."""

    def __init__(
        self,
        *,
        mode: str,
        project: str,
        name: str,
        group: str | None,
        folder: Path,
        config: Mapping[str, Any],
        run_id: str | None,
        warn: Callable[[str], None],
    ) -> None:
        """
        Args:
            mode: ``online`` or ``offline``.
            project: of the run.
            name: of the run.
            group: of the run; all runs of a sweep share one.
            folder: for wandb's own files.
            config: shown with the run.
            run_id: to go on with; None = a new run.
            warn: told once when something goes wrong.
        """
        import wandb

        self._warn = warn
        self._run: Any = None
        self.run_id: str | None = run_id or secrets.token_hex(4)
        settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, init_timeout=30)
        try:
            self._run = wandb.init(
                mode=mode,  # type: ignore[arg-type]
                project=project,
                name=name,
                group=group,
                dir=folder,
                config=dict(config),
                id=self.run_id,
                resume="allow",
                settings=settings,
            )
            self._run.define_metric("train/step")
            self._run.define_metric("*", step_metric="train/step")
        except Exception as error:  # any of wandb's many: none is worth the run
            self._lost(error)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._run is not None:
            try:
                self._run.log({"train/step": step, **metrics})
            except Exception as error:
                self._lost(error)

    def settle(self) -> None:
        """Its own process writes when it likes; metrics.jsonl has everything."""

    def finish(self, exit_code: int) -> None:
        if self._run is not None:
            try:
                self._run.finish(exit_code=exit_code)
            except Exception as error:
                self._lost(error)

    def _lost(self, error: Exception) -> None:
        self._run = None
        self._warn(f"Weights & Biases: {type(error).__name__}; going on without it, metrics.jsonl has every metric")


def wandb_mode(mode: str) -> str:
    """``auto`` as ``online`` where a key is set up, by the environment or by wandb's login; else ``disabled``."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return os.environ["WANDB_MODE"]
    has_key = bool(os.environ.get("WANDB_API_KEY"))
    if not has_key:
        import netrc

        try:
            has_key = netrc.netrc().authenticators("api.wandb.ai") is not None
        except (OSError, netrc.NetrcParseError):
            has_key = False
    return "online" if has_key else "disabled"


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the last line of a killed run may be half a line
        return math.inf
