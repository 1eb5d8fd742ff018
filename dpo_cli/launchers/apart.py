"""Commands in processes of their own, ranks and all, several at a time: the jobs of a sweep.

A second DeepSpeed run in one process is not safe, so every job of a sweep is run this way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dpo_cli.config import EvaluateConfig, TrainConfig
from dpo_cli.errors import ExitCode
from dpo_cli.stopping import heeded, leave_terminal


@dataclass(frozen=True)
class Ended:
    """How a command that ran in a process of its own ended."""

    exit_code: int
    text: str
    """What went wrong, if it said so."""


class Apart:
    """A command on its way in a process of its own."""

    def __init__(
        self,
        command: str,
        config: TrainConfig | EvaluateConfig,
        environment: Mapping[str, str],
        log: Path | None = None,
    ) -> None:
        """
        Args:
            command: ``train`` or another.
            config: of it.
            environment: variables on top of this process's.
            log: file that its output is added to; None = it goes where this process's goes.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="dpo-")
        file = Path(self._folder.name, "config.json")
        file.write_text(config.model_dump_json(), encoding="utf-8")
        words = [sys.executable, "-m", "dpo_cli", "_rank", command, str(file)]
        outer = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        with nullcontext() if log is None else log.open("ab") as output:
            self.process = subprocess.Popen(words, env={**outer, **environment}, stdout=output, stderr=output)

    def ended(self) -> Ended | None:
        """How it ended, if it has."""
        code = self.process.poll()
        if code is None:
            return None
        text = said(Path(self._folder.name), 0)
        self._folder.cleanup()
        return Ended(code if code >= 0 else int(ExitCode.INTERNAL), text)

    def stop(self) -> None:
        """Have it save and end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)


def said(folder: Path, rank: int) -> str:
    """What a rank left beside its configuration when it failed."""
    try:
        return str(json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8"))["text"])
    except FileNotFoundError:
        return ""


@contextmanager
def passing_on(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[float]]:
    """Signals to this process go to the children, which save and end; this process waits for them.

    Args:
        children: those of the moment; more may come.

    Yields the times of those that came (``time.monotonic``), as they come.
    """
    came: list[float] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        came.append(time.monotonic())
        if number == signal.SIGHUP:
            leave_terminal()
        for child in children:
            # From a terminal, Ctrl-C has already gone to the whole foreground group.
            if child.poll() is None and not (number == signal.SIGINT and sys.stdin and sys.stdin.isatty()):
                child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in heeded()}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
