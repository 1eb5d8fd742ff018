"""What the files of a run's evaluation are called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_cli.config import EvaluateConfig
from dpo_cli.reporting.runs import read_config_file

_OF_ROWS = {"path", "mix", "split", "subset", "revision", "eval"}
_OF_THIS_MACHINE = {"workers", "cache_dir"}
_UNPLAIN = re.compile(r"[^A-Za-z0-9._]+")


def evaluation_name(config: EvaluateConfig) -> str:
    """What is evaluated, as an end of file names; empty for a run's final model on its own rows, as it was trained.

    That one is what the report, the model card and ``dpo push`` read. Everything else is kept beside it and never
    in its place.
    """
    if config.run is None or config.output not in (None, config.run):
        return ""
    ran = read_config_file(Path(config.run, "config.yaml"))
    now = config.model_dump(mode="json")
    data = _differing(ran["data"], now["data"]) - _OF_THIS_MACHINE
    parts = [] if config.step is None else [f"step-{config.step}"]
    parts += [config.benchmark] if config.benchmark is not None else []
    parts += [Path(config.prompts).stem] if config.prompts is not None else []
    if data & _OF_ROWS:
        held_out = config.data.eval
        parts.append(f"{held_out:g}" if isinstance(held_out, float) else Path(str(held_out or config.data.path)).stem)
        parts += [config.data.split] if "split" in data else []
    if data - _OF_ROWS or any(_differing(ran[section], now[section]) for section in ("model", "loss", "reference")):
        parts.append("other-settings")
    return "".join(f"-{_UNPLAIN.sub('-', part)[:60]}" for part in parts)


def _differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """The keys of a section that another value has been given. What an older version did not know has not changed."""
    return {name for name, value in then.items() if now.get(name) != value}
