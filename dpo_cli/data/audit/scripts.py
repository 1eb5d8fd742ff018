"""What texts are written in."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from fontTools import unicodedata

_A_TO_Z = re.compile("[A-Za-z]")
_SHARE, _LETTERS = 0.1, 5
"""Of a text's second script, more than which it is no mere sign of a formula or a name."""


def scripts(text: str) -> Counter[str]:
    """A text's letters, vowel signs included, by their script: ``{"latin": 70, "han": 30}``.

    Japanese is one script, though it mixes three. What is of no script (digits, mathematical letters) doesn't count.
    """
    if text.isascii():
        return Counter(latin=len(_A_TO_Z.findall(text)))
    found = Counter(name for letter in _A_TO_Z.sub("", text) if not letter.isascii() and (name := _script(letter)))
    found["latin"] += len(_A_TO_Z.findall(text))
    if found["japanese"] > found["han"] / 10:
        found["japanese"] += found.pop("han", 0)
    return found


def main_script(found: Counter[str]) -> str:
    """What most is written in; empty = there are no letters."""
    return max(found, key=lambda name: found[name]) if found.total() else ""


def mixed(found: Counter[str]) -> str:
    """``latin and han`` where the second script has over a tenth of the letters; empty = it has not."""
    if len(found) < 2:
        return ""
    (first, _), (second, letters), *_ = found.most_common(2)
    return f"{first} and {second}" if letters >= _LETTERS and letters > _SHARE * found.total() else ""


@lru_cache(maxsize=1 << 14)
def _script(letter: str) -> str:
    code: str = unicodedata.script(letter)
    if code in ("Zyyy", "Zinh", "Zzzz"):  # common, inherited, unknown
        return ""
    return "japanese" if code in ("Hira", "Kana") else str(unicodedata.script_name(code)).lower()
