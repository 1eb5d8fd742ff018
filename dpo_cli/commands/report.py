"""What a run leaves for people: tables on the screen, samples, its configuration as YAML."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.table import Table

from dpo_cli.commands.card import MEASURED
from dpo_cli.config import TrainConfig
from dpo_cli.evaluation.samples import Samples
from dpo_cli.tracking.console import Console
from dpo_cli.tracking.progress import finite, parsed
from dpo_cli.whole_folder import write_file

_SHOWN_SAMPLES = 5


def config_yaml(config: TrainConfig, run_dir: Path) -> str:
    """The resolved configuration."""
    values = {**config.model_dump(mode="json"), "run_dir": str(run_dir)}
    return str(OmegaConf.to_yaml(OmegaConf.create(values)))


def append_samples(run_dir: Path, samples: Samples, step: int) -> None:
    """To ``samples.jsonl``; what was sampled after the same update before is replaced."""
    path = run_dir / "samples.jsonl"
    # As bytes: an answer may hold what Python takes for the end of a line of text, and JSON does not.
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    kept = [line for line in lines if line and not line.startswith(f'{{"step": {step},'.encode())]
    new = [json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") for row in samples.rows(step)]
    write_file(path, b"".join(line + b"\n" for line in [*kept, *new]))


def show_samples(console: Console, before: Samples, after: Samples) -> None:
    """Some answers side by side."""
    table = Table(title="sampled answers, before and after", title_justify="left", show_lines=True)
    for heading in ("prompt", "before", "after"):
        table.add_column(heading, overflow="fold", ratio=1)
    for index in range(min(_SHOWN_SAMPLES, len(before.answers))):
        cells = [after.questions[index], before.answers[index], after.answers[index]]
        cells = [textwrap.shorten(cell, 300, placeholder=" …") for cell in cells]
        for place, samples in ((1, before), (2, after)):
            if samples.rewards is not None:
                cells[place] += f"\n(true reward {samples.rewards[index]:.2f})"
        table.add_row(*cells)
    console.table(table)


def show_outcome(console: Console, run_dir: Path, record: Mapping[str, Any]) -> None:
    """The numbers before and after, and where everything is."""
    start, final = _first_values(run_dir), record["final"]
    table = Table(title="before and after", title_justify="left")
    for heading in ("", "before", "after"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, label in MEASURED.items():
        if name in final:
            table.add_row(label, _number(start.get(name)), _number(final[name], final.get(f"{name}_error")))
    if table.row_count:
        console.table(table)
    speed = f"{final['pairs_per_second']:.3g} pairs/s"
    mfu = f", mfu {final['mfu']:.2f}" if "mfu" in final else ""
    updates, not_made = record["updates"], (record.get("passed_over") or {}).get("count", 0)
    without = f" ({not_made} of them passed over)" if not_made else ""
    console.result(
        f"{updates} update{'s' * (updates != 1)}{without} in {record['seconds']:.0f} s ({speed}{mfu} in the last), "
        f"peak memory {final['memory/rss_gib']:.1f} GiB"
    )
    files = [name for name in ("metrics.jsonl", "samples.jsonl", "run.json") if (run_dir / name).exists()]
    console.result(f"everything is in {run_dir}: final/ (the model), config.yaml, {', '.join(files)}")


def _first_values(run_dir: Path) -> dict[str, float]:
    """What was measured before the first update; a KL to oneself is 0."""
    found: dict[str, float] = {"samples/kl": 0.0}
    path = run_dir / "metrics.jsonl"
    if not path.is_file():  # somebody has deleted it, and the run is done all the same
        return found
    with path.open("rb") as file:
        for step, values in parsed(file):
            if step == 0:
                found.update(finite(values))
    return found


def _number(value: float | None, error: float | None = None) -> str:
    return "" if value is None else f"{value:.3f}" + (f" ± {error:.3f}" if error is not None else "")
