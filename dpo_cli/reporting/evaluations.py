"""What ``dpo eval`` has left in a run's folder: single numbers, and calibration where it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dpo_cli.evaluation.words import sections
from dpo_cli.reporting.compare import MISSING
from dpo_cli.reporting.runs import Run


def measured(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The single numbers of ``eval.json`` as tables, runs as columns; None = no run has been evaluated.

    Numbers that have no words of their own, those of a newer schema too, stand last under their keys.
    """
    having = [run for run in runs if run.evaluation]
    numbers = [dict(_numbers(_outcome(run))) for run in having]
    names = dict.fromkeys(name for each in numbers for name in each)
    if not names:
        return None
    known = sections()
    named = {key for words in known.values() for key in words}
    parts = {**known, "other numbers": {name: name for name in names if name not in named}}
    return {
        "headings": [run.name for run in having],
        "parts": [
            (heading, rows)
            for heading, words in parts.items()
            if (
                rows := [
                    (said, [each.get(key, MISSING) for each in numbers]) for key, said in words.items() if key in names
                ]
            )
        ],
    }


def calibration(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The first reliability diagram in each ``eval.json``: its bins with mean confidence, accuracy and comparisons."""
    found = []
    for place, run in enumerate(runs):
        bins = next(_bins(_outcome(run)), None)
        if bins is not None:
            found.append({"run": place, "bins": bins})
    return found


def _outcome(run: Run) -> dict[str, Any]:
    """What was measured, and not how."""
    return {key: value for key, value in run.evaluation.items() if key not in ("version", "config", "intervals")}


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every single number by its path, in words; of an estimate its value with its interval. Lists are left out."""
    for key, value in values.items():
        name = f"{prefix}{key}" if prefix or key != "metrics" else ""
        if isinstance(value, Mapping):
            if _is_number(value.get("value")):
                inside = [value.get(end) for end in ("low", "high")]
                interval = f" ({inside[0]:.4g} to {inside[1]:.4g})" if all(map(_is_number, inside)) else ""
                yield name, f"{value['value']:.4g}{interval}"
            else:
                yield from _numbers(value, f"{name}." if name else "")
        elif _is_number(value):
            yield name, f"{value:.4g}"


def _bins(value: Any) -> Iterator[list[tuple[float, float, int]]]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _bins(inner)
    elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        rows = [
            (float(each["confidence"]), float(each["accuracy"]), int(each["comparisons"]))
            for each in value
            if all(_is_number(each.get(name)) for name in ("confidence", "accuracy", "comparisons"))
        ]
        if rows and all("low" in each for each in value):
            yield rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
