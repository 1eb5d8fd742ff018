"""Which shape a row has, by its columns or by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import lru_cache

from dpo_cli.data.formats.fields import source_problem
from dpo_cli.data.formats.reading import BadRowError
from dpo_cli.data.formats.shapes import COMMON, SHAPES, Shape
from dpo_cli.data.formats.values import names

_SCORES = frozenset(("helpfulness", "correctness", "coherence", "complexity", "verbosity"))
_STRENGTH = {"pair": 2, "ranking": 1, "judged": 0}


def reading_problems(shape: str, columns: Mapping[str, str]) -> list[str]:
    """What is wrong with ``data.shape`` and ``data.columns``, a line each, before any row is read."""
    if shape != "auto" and shape not in SHAPES:
        near = difflib.get_close_matches(shape, SHAPES, n=1)
        meant = f"did you mean {near[0]}? There are" if near else "choose"
        return [f"data.shape={shape}: there is no such shape; {meant} auto, {names(SHAPES)}"]
    known = {field for one in _among(shape) for field in one.fields}
    problems = []
    for field, source in columns.items():
        if field not in known and field not in COMMON:
            fields = names(sorted(known | set(COMMON)))
            problems.append(f"data.columns.{field}: {_of(shape)}; expected one of {fields}")
        elif problem := source_problem(source):
            problems.append(f"data.columns.{field} {problem}")
    return problems


@lru_cache(maxsize=1024)
def shapes_for(given: frozenset[str], named: frozenset[str], shape: str) -> tuple[str, ...]:
    """The names of the shapes that a row may have; one, where it is clear.

    Of the shapes whose columns are all there, one that reads more of the row's columns goes before one that reads
    only some of the same; and a comparison goes before a ranking, a ranking before a judgement, whatever else the
    row has.

    Args:
        given: fields that the row has, not null, those that ``data.columns`` names among them.
        named: the fields that ``data.columns`` names. The shape must have them all.
        shape: a name, or ``auto``.

    Raises:
        BadRowError: none fits.
    """
    if shape != "auto":
        missing = [field for field in SHAPES[shape].needs if field not in given]
        if missing:
            raise BadRowError(f"no column {' or '.join(missing)}, which data.shape={shape} has: found {_shown(given)}")
        return (shape,)
    wanted = named - set(COMMON)
    open_to_all = {name: one for name, one in SHAPES.items() if not one.by_name_only}
    possible = {name: one for name, one in open_to_all.items() if wanted <= set(one.fields)}
    fitting = {name: one for name, one in possible.items() if given.issuperset(one.needs)}
    if not fitting:
        raise BadRowError(_none_fits(given, possible))
    used = {name: given.intersection(one.fields) for name, one in fitting.items()}
    best = [name for name in fitting if not any(used[name] < used[other] for other in fitting)]
    strongest = max(_STRENGTH[SHAPES[name].kind] for name in best)
    return tuple(name for name in best if _STRENGTH[SHAPES[name].kind] == strongest)


def _none_fits(given: frozenset[str], possible: Mapping[str, Shape]) -> str:
    if "response" in given and given & _SCORES:
        return (
            "one answer with scores, which says neither that it is good nor which other it beats: take the data set's "
            "comparisons (HelpSteer2 has them as response_1, response_2, preference_strength), or put a prompt's "
            "answers into one row as prompt, completions, scores"
        )

    def missing(name: str) -> list[str]:
        return [field for field in possible[name].needs if field not in given]

    near = [name for name in possible if len(missing(name)) < len(possible[name].needs)]
    nearest = min(near, key=lambda name: (len(missing(name)), -len(possible[name].needs)), default=None)
    hint = f"the nearest, {nearest}, lacks {names(missing(nearest))}; " if nearest else ""
    return (
        f"no shape has the columns {_shown(given)}: {hint}data.columns says where a field is, and docs/data.md lists "
        "the shapes"
    )


def _among(shape: str) -> list[Shape]:
    return list(SHAPES.values()) if shape == "auto" else [SHAPES[shape]]


def _of(shape: str) -> str:
    return "no shape has such a field" if shape == "auto" else f"data.shape={shape} has no such field"


def _shown(given: frozenset[str]) -> str:
    return names(sorted(given))[:200] or "(none)"
