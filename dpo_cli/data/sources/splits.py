"""Splits and parts of them: ``train``, ``train[:5%]``, ``train[100:200]``, ``train[-50:]``, ``train+test``.

The syntax and the rounding are those of ``datasets``' ReadInstruction, for files as for the hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from dpo_cli.errors import DataError

_PART = re.compile(
    r"""(?P<split>\w[\w.-]*)
        (\[ (?P<start>-?[\d_]+%?)? : (?P<stop>-?[\d_]+%?)? \])?
        (\((?P<rounding>closest|pct1_dropremainder)\))?""",
    re.VERBOSE | re.ASCII,
)
_EXPECTED = "train, train[:1000], train[10%:20%], train[-50:] or train+test"


@dataclass(frozen=True, slots=True)
class Part:
    """A split, or the rows of one from ``start`` to before ``stop``."""

    split: str
    start: int | None = None
    stop: int | None = None
    percent: bool = False
    whole_percents: bool = False
    """A percent is a whole number of rows, and the rows that remain belong to none (``pct1_dropremainder``)."""

    @property
    def whole(self) -> bool:
        """Whether it is all of the split."""
        return self.start is None and self.stop is None

    def bounds(self, count: Callable[[], int]) -> tuple[int, int | None]:
        """First row and the one after the last, counted from 0; ``count`` is asked only where it is needed."""
        return self._row(self.start, count) or 0, self._row(self.stop, count)

    def _row(self, given: int | None, count: Callable[[], int]) -> int | None:
        if given is None or (given >= 0 and not self.percent):
            return given
        rows = count()
        if self.percent:
            given = given * (rows // 100) if self.whole_percents else round(given * rows / 100)
        return given if given >= 0 else max(0, rows + given)

    def __str__(self) -> str:
        unit = "%" * self.percent
        start, stop = ("" if end is None else f"{end}{unit}" for end in (self.start, self.stop))
        return (
            self.split if self.whole else f"{self.split}[{start}:{stop}]{'(pct1_dropremainder)' * self.whole_percents}"
        )


def parse_split(text: str, name: str) -> list[Part]:
    """The parts that ``text`` names, in order.

    Args:
        text: the split as the user gave it.
        name: of the source, for messages.

    Raises:
        DataError: it is none, or a part that can only be empty.
    """
    return [_part(part, text, name) for part in re.split(r"\s*\+\s*", text.strip())]


def _part(text: str, whole: str, name: str) -> Part:
    match = _PART.fullmatch(text)
    if match is None:
        raise DataError(f"{name}: can't read the split {whole!r}: expected one like {_EXPECTED}")
    ends = [match["start"], match["stop"]]
    percents = {end.endswith("%") for end in ends if end is not None}
    if len(percents) == 2:
        raise DataError(f"{name}: the split {text!r} mixes rows and percent: give both ends in one unit")
    percent = True in percents
    try:
        start, stop = (None if end is None else int(end.rstrip("%")) for end in ends)
    except ValueError:
        raise DataError(f"{name}: can't read the split {whole!r}: expected one like {_EXPECTED}") from None
    if percent and max(abs(start or 0), abs(stop or 0)) > 100:
        raise DataError(f"{name}: the split {text!r} asks for more than 100%")
    if stop is not None and ((start or 0) < 0) == (stop < 0) and (start or 0) >= stop:
        raise DataError(f"{name}: the split {text!r} has no rows: it ends before it starts")
    if match["rounding"] and not percent:
        raise DataError(f"{name}: the split {text!r} has a rounding but no percent")
    return Part(match["split"], start, stop, percent, match["rounding"] == "pct1_dropremainder")
