"""``metrics.jsonl``: every metric of a run, whatever else is told of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dpo_cli.run_folder import from_json
from dpo_cli.whole_folder import write_file


class JsonLines:
    """``metrics.jsonl``: one object per line, with ``step``."""

    def __init__(
        self, path: Path, *, resume_after: int | None = None, warn: Callable[[str], None] = lambda _: None
    ) -> None:
        """
        Args:
            path: of the file.
            resume_after: keep what is there up to this step, and drop lines of later steps, which will be run again.
            warn: told once when a line can't be written.
        """
        self.kept: list[tuple[int, dict[str, float]]] = []
        """Steps and finite values of the lines that were kept."""
        self._said: set[tuple[int, frozenset[str]]] = set()
        if resume_after is not None and path.exists():
            self._take_up(path, resume_after, warn)
        self._file = path.open("ab", buffering=0)
        self._waiting = b""
        self._warn = warn
        self._why = ""
        """Why it could not be written at some time."""

    def _take_up(self, path: Path, resume_after: int, warn: Callable[[str], None]) -> None:
        """Keep the lines up to a step, and know what they say."""
        lines = path.read_bytes().splitlines()
        found = [(line, _values(line)) for line in lines]
        if bad := sum(values is None for _, values in found[:-1]):  # the last line of a killed run may be half a line
            warn(f"{path}: {bad:,} lines could not be read, and are taken out")
        kept = [(line, values) for line, values in found if values is not None and values["step"] <= resume_after]
        write_file(path, b"".join(line + b"\n" for line, _ in kept))
        for _, values in kept:
            step = int(values.pop("step"))
            numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
            self.kept.append((step, numbers))
            self._said.add((step, frozenset(values)))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line. JSON has no NaN or infinity: they become null. What a line kept already says is not said again: a run
        that was stopped after its last update evaluates once more."""
        if (step, frozenset(metrics)) in self._said:
            return
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._waiting += json.dumps({"step": step, **values}).encode() + b"\n"
        self._write()

    def settle(self) -> None:
        """Have the disk hold what was logged."""
        self._write(sync=True)

    def close(self) -> None:
        """Nothing more comes."""
        self._write()
        if self._waiting:
            self._warn(f"{self._file.name} lacks its last {len(self._waiting):,} bytes ({self._why})")
        self._file.close()

    def _write(self, *, sync: bool = False) -> None:
        """What does not fit on the disk waits until there is room."""
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            if not self._why:
                self._warn(f"{self._file.name} can't be written for now ({error.strerror}); its lines are kept")
            self._why = error.strerror or str(error)


class NewLines:
    """The lines of a file that somebody else writes, each once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0
        """In bytes, after the last line that was taken."""
        self._file = 0
        """Which file that is: a run that goes on replaces its own by one without the updates it will make again."""

    def read(self) -> Iterator[bytes]:
        """Those since the last time, but for one that is half written. A line during which the caller fails comes
        again."""
        try:
            with self._path.open("rb") as file:
                if (found := os.fstat(file.fileno()).st_ino) != self._file:
                    self._file, self._place = found, 0
                file.seek(self._place)
                while (line := file.readline()).endswith(b"\n"):
                    yield line
                    self._place = file.tell()
        except FileNotFoundError:
            return


def _values(line: bytes) -> dict[str, Any] | None:
    """What a line says; None if it is no line of metrics."""
    values = from_json(line)
    step = values.get("step") if isinstance(values, dict) else None
    return values if isinstance(step, int | float) and math.isfinite(step) else None
