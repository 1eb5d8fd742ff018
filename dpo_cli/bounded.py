"""Strangers' files that are short and stand for more than any memory holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

MOST_VALUES = 100_000
"""Of a configuration; a long one has hundreds."""


def is_endless(root: Any, inner: Callable[[Any], Iterable[Any]]) -> bool:
    """Whether what YAML says in a few lines stands for more than any configuration holds: an alias stands for all that
    it names, which may hold aliases, or itself.

    Args:
        root: of a tree, which may share branches and hold itself.
        inner: what lies right in a part of it.
    """
    level, seen = [root], 0
    while level and seen <= MOST_VALUES:
        seen += len(level)
        level = [each for part in level for each in inner(part)]
    return seen > MOST_VALUES
