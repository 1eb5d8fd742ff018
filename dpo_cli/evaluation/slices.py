"""Comparisons by what they are: where they come from, how long their answers are, how sure their label is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpo_cli.data.types import Group
from dpo_cli.evaluation.intervals import Bootstrap, Estimate
from dpo_cli.evaluation.measures import preferences
from dpo_cli.evaluation.scores import Comparisons

USUAL = ("source", "category", "subset", "section", "dataset", "domain", "task", "language")
"""Columns by which rows are told apart where they have them."""
MOST = 50
"""Values of a slice; rarer ones are put together as ``(others)``."""
_SHOWN = ("accuracy", "margin", "log_loss", "calibration_error")
_LENGTHS = {
    "chosen under half as long": (0.0, 0.5),
    "chosen 0.5-0.8x as long": (0.5, 0.8),
    "about equal (0.8-1.25x)": (0.8, 1.25),
    "chosen 1.25-2x as long": (1.25, 2.0),
    "chosen over 2x as long": (2.0, np.inf),
}


def slices_of(
    found: Comparisons, groups: Sequence[Group], facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[str]]:
    """For each way to slice, the part that each comparison belongs to; ways that leave all in one part are left out.

    Args:
        found: the comparisons.
        groups: that they stand in.
        facts: of rows, by their ``source``: values of columns, and ``turns``.
    """
    sources = [groups[index].source for index in found.groups]
    names = dict.fromkeys(name for each in facts.values() for name in each)
    ways = {name: [_words(name, facts.get(source, {}).get(name)) for source in sources] for name in names}
    ways["file"] = [source.rpartition(", ")[0] or source for source in sources]
    ways["length"] = _by_length(found.lengths)
    if np.any(found.labelled != 0):
        ways["labelled margin"] = _by_quarter(found.labelled)
    return {name: _common(values) for name, values in ways.items() if len(set(values)) > 1}


def slice_table(
    found: Comparisons, ways: Mapping[str, Sequence[str]], bootstrap: Bootstrap
) -> dict[str, list[dict[str, Any]]]:
    """Each part's comparisons and measures; large parts first, but lengths and quarters in their order."""
    table: dict[str, list[dict[str, Any]]] = {}
    for way, values in ways.items():
        labels = np.array(values)
        order = [value for value, _ in Counter(values).most_common()]
        if way in ("length", "labelled margin", "turns"):
            order = [value for value in _LENGTHS if value in order] if way == "length" else sorted(order)
        table[way] = []
        for value in order:
            part = found.select(labels == value)
            measured: dict[str, Estimate] = preferences(part, bootstrap)
            table[way].append({"value": value, "comparisons": len(part)} | {name: measured[name] for name in _SHOWN})
    return table


def _words(name: str, value: Any) -> str:
    if name == "turns":
        return "unknown" if value is None else f"{value} user turn{'s' * (value > 1)}" if value < 4 else "4 or more"
    return "(none)" if value is None else str(value)


def _by_length(lengths: NDArray) -> list[str]:
    ratios = lengths[:, 0] / lengths[:, 1]
    inner = [high for _, high in _LENGTHS.values()][:-1]
    names = list(_LENGTHS)
    return [names[place] for place in np.searchsorted(inner, ratios, side="right")]


def _by_quarter(labelled: NDArray) -> list[str]:
    edges = np.quantile(labelled, [0.25, 0.5, 0.75])
    bounds = [float(labelled.min()), *map(float, edges), float(labelled.max())]
    names = [f"quarter {n}: {bounds[n - 1]:.3g} to {bounds[n]:.3g}" for n in range(1, 5)]
    return [names[place] for place in np.searchsorted(edges, labelled, side="left")]


def _common(values: Sequence[str]) -> list[str]:
    """The values, with the rarest put together where there are too many."""
    kept = {value for value, _ in Counter(values).most_common(MOST)}
    return [value if value in kept else "(others)" for value in values]
