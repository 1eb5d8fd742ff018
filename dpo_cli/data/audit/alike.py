"""Texts that have nearly the same words, by MinHash (Broder 1997)."""

from __future__ import annotations

from dataclasses import dataclass, field

from rensa import RMinHash, RMinHashLSH

_HASHES, _BANDS, _ALIKE = 128, 16, 0.85
"""Texts with 85 % of their word triples in common share a band of eight hashes with a probability of 0.99, texts with
30 % of 0.001. Of 128 hashes the share is known to 0.03."""
_WORDS = 8
"""Of fewer words many are alike by chance."""


def sketch(text: str) -> RMinHash | None:
    """What texts are compared by; None = too few words."""
    words = text.split()
    if len(words) < _WORDS:
        return None
    own = RMinHash(_HASHES, 42)
    own.update([" ".join(words[place : place + 3]) for place in range(len(words) - 2)])
    return own


@dataclass
class Sketches:
    """Those of many texts, to find the ones that are like another."""

    _kept: list[RMinHash] = field(default_factory=list)
    _index: RMinHashLSH = field(default_factory=lambda: RMinHashLSH(_ALIKE, _HASHES, _BANDS))

    def add(self, own: RMinHash) -> None:
        """Keep another; they are numbered from 0."""
        self._index.insert(len(self._kept), own)
        self._kept.append(own)

    def like(self, own: RMinHash) -> list[int]:
        """Numbers of those that have 85 % of their word triples in common with this one."""
        return [number for number in self._index.query(own) if self._kept[number].jaccard(own) >= _ALIKE]
