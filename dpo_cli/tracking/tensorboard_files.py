"""TensorBoard's event files, in the run's folder: ``tensorboard --logdir runs``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from dpo_cli.tracking.backends import Run
from dpo_cli.tracking.progress import finite


class TensorBoard:
    """A run's event files. Those of a run that went on lie side by side, which TensorBoard reads as one."""

    def __init__(self, run: Run) -> None:
        folder = run.folder / "tensorboard"
        self.run_id, self.where = run.name, str(folder)
        self._writer = EventFileWriter(str(folder))
        if run.run_id is None:
            self._write(0, text_pb("config", _listed(run.config)))

    def has(self, step: int, metrics: Mapping[str, float]) -> bool | None:
        return None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._write(step, Summary(value=values))
        self._writer.flush()

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        names = [name for name in rows[0] if name != "step"]
        lines = [names, ["---"] * len(names), *([_cell(row.get(name)) for name in names] for row in rows)]
        self._write(step, text_pb("samples", "\n".join(f"|{'|'.join(line)}|" for line in lines)))
        self._writer.flush()

    def alert(self, title: str, text: str) -> None:
        self._write(0, text_pb(f"alerts/{title}", text))

    def finish(self, record: Mapping[str, Any], exit_code: int) -> None:
        self._write(0, text_pb("end", _listed({"exit_code": exit_code, **finite(record.get("final") or {})})))
        self._writer.close()

    def _write(self, step: int, summary: Summary) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


def _listed(values: Mapping[str, Any], indent: str = "") -> str:
    """A configuration as indented text, which Markdown leaves as it is."""
    lines = []
    for key, value in values.items():
        inner = isinstance(value, Mapping) and value
        lines.append(f"    {indent}{key}:" + ("" if inner else f" {value}"))
        if inner:
            lines.append(_listed(value, f"{indent}  "))
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", "<br>")
