"""What texts are written in."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from fontTools import unicodedata

_A_TO_Z = re.compile("[A-Za-z]")
_MIXED_SHARE, _MIXED_LETTERS = 0.1, 5
"""Of a text's second script, so that a sign of a formula or a name is not one."""


def scripts(text: str) -> dict[str, float]:
    """Shares of a text's letters by their script, the largest first: ``{"latin": 0.7, "han": 0.3}``.

    Japanese is one script, though it mixes three. Letters of no script (``µ``, mathematical ones) don't count.
    """
    if text.isascii():
        return {"latin": 1.0} if _A_TO_Z.search(text) else {}
    found = Counter(name for letter in _A_TO_Z.sub("", text) if not letter.isascii() and (name := _script(letter)))
    found["latin"] += len(_A_TO_Z.findall(text))
    if found["japanese"] > found["han"] / 10:
        found["japanese"] += found.pop("han", 0)
    total = found.total()
    return {name: count / total for name, count in found.most_common() if count}


def main_script(text: str) -> str:
    """What most of a text is written in; empty = it has no letters."""
    return next(iter(scripts(text)), "")


def mixed(text: str) -> str:
    """``latin and han`` for a text whose second script has over a tenth of the letters; empty = it has not."""
    shares = scripts(text)
    if len(shares) < 2:
        return ""
    (first, _), (second, share), *_ = shares.items()
    letters = sum(map(str.isalpha, text)) * share
    return f"{first} and {second}" if share > _MIXED_SHARE and letters >= _MIXED_LETTERS else ""


@lru_cache(maxsize=1 << 14)
def _script(letter: str) -> str:
    code: str = unicodedata.script(letter) if letter.isalpha() else "Zyyy"
    if code in ("Zyyy", "Zinh", "Zzzz"):  # common, inherited, unknown
        return ""
    return "japanese" if code in ("Hira", "Kana") else str(unicodedata.script_name(code)).lower()
