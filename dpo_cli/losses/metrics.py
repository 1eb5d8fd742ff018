"""Means of metrics over a batch that is split over ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


class Sums:
    """Sums of metrics and how many values went in; their means don't depend on how a batch was split."""

    def __init__(self, names: Sequence[str]) -> None:
        """
        Args:
            names: of the metrics, in the order in which they travel between ranks; the same on every rank.
        """
        self.names = tuple(names)
        self._values = [0.0] * (2 * len(self.names))
        self._unread: list[Tensor] = []
        """Sums of micro-batches, still on the device: reading each at once would make the host wait for it."""

    @property
    def values(self) -> list[float]:
        """A sum and a count per name."""
        if self._unread:
            for sums in torch.stack(self._unread).tolist():  # in order, so that nothing depends on when it is read
                self._values[::2] = [old + new for old, new in zip(self._values[::2], sums, strict=True)]
            self._unread.clear()
        return self._values

    @values.setter
    def values(self, values: list[float]) -> None:
        self._values, self._unread = list(values), []

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take in a micro-batch's values ``[n]`` of each metric, n of its own."""
        with torch.no_grad():
            self._unread.append(torch.stack([metrics[name].double().sum() for name in self.names]))
        for index, name in enumerate(self.names):
            self._values[2 * index + 1] += metrics[name].numel()

    def merge(self, others: Sums) -> None:
        """Take in all that others of the same names have."""
        self.values = [own + other for own, other in zip(self.values, others.values, strict=True)]

    def total(self, name: str) -> float:
        """The sum of one metric on this rank."""
        return self.values[2 * self.names.index(name)]

    def means(self, over_ranks: Callable[[Sequence[float]], list[float]]) -> dict[str, float]:
        """Means over all ranks' values, by metric name, of those that have any; ``over_ranks`` sums each over them.

        Answers judged one by one have no opponent: their margin is the good ones' mean reward less the bad ones'.
        """
        sums = over_ranks(self.values)
        found = zip(self.names, sums[::2], sums[1::2], strict=True)
        means = {name: total / count for name, total, count in found if count}
        if "rewards/margins" in self.names and {"rewards/chosen", "rewards/rejected"} <= means.keys():
            means.setdefault("rewards/margins", means["rewards/chosen"] - means["rewards/rejected"])
        return means
