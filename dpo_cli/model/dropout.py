"""Dropout that depends on the row and not on its place: neither micro-batches nor processes change an update.

What is dropped is a function of seed, update, group and layer. So a group has the same mask wherever it is computed,
and so has a prompt that is run once for each of its answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from dpo_cli.data.collate import FlatBatch, flat_length, shared_prefix
from dpo_cli.data.types import Group
from dpo_cli.errors import DpoError
from dpo_cli.model.sequence_parallel import own_slice, padded_length


class Noise:
    """What the masks of a forward pass are a function of. Off, but for updates."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.update: int | None = None
        """The update being made, from 0; None = nothing is dropped."""
        self._keys: list[bytes] = []
        self._pieces: list[list[tuple[int, slice, slice]]] = []
        self._shape = (0, 0)
        """Rows, and tokens in each."""
        self._held = slice(None)
        """The tokens of them that layers are given."""

    @contextmanager
    def of(self, update: int) -> Iterator[None]:
        """Inside, masks are those of this update."""
        self.update = update
        try:
            yield
        finally:
            self.update = None

    def look_at(self, batch: FlatBatch, *, share: bool, spread: bool = False) -> None:
        """Take the batch whose forward pass, and backward pass, come next.

        Args:
            batch: of the pass.
            share: as the batch was collated: one row of all groups end to end, or a row per answer.
            spread: whether all is one row, of which layers are given this process's slice.
        """
        if self.update is None:
            return
        self._keys = [_key(group) for group in batch.groups]
        self._pieces = []
        self._held = slice(None)
        layouts = batch.layouts
        if share:
            for layout in layouts:
                self._pieces.append([(0, slice(layout.start, layout.end), slice(0, layout.end - layout.start))])
            self._shape = (1, len(batch.input_ids))
        else:
            row = 0
            for group in batch.groups:
                self._pieces.append(_rows_of(group, row))
                row += len(group.answers)
            self._shape = (row, max(layout.end - layout.start for layout in layouts))
        if spread:
            if not share:  # end to end
                self._pieces = [
                    [(0, _moved(place, layouts[row].start), of_group) for row, place, of_group in pieces]
                    for pieces in self._pieces
                ]
            self._held = own_slice(len(batch.input_ids))
            self._shape = (1, padded_length(len(batch.input_ids)))

    def keep(self, x: Tensor, p: float, layer: str) -> Tensor:
        """Which entries of ``x`` stay: bool, of its shape ``[rows, tokens, width]``. ``p``: the share that does not."""
        expected = (self._shape[0], len(range(self._shape[1])[self._held]))
        if tuple(x.shape[:-1]) != expected:
            raise DpoError(
                f"{layer} is given {tuple(x.shape[:-1])} tokens, not the batch's {expected}: its dropout can't "
                "follow the rows; set model.adapter.dropout=0"
            )
        kept = torch.ones((*self._shape, x.shape[-1]), dtype=torch.bool, device=x.device)
        for key, pieces in zip(self._keys, self._pieces, strict=True):
            digest = hashlib.blake2b(f"{self.seed}|{self.update}|{layer}|".encode() + key, digest_size=8).digest()
            generator = torch.Generator(x.device)
            generator.manual_seed(int.from_bytes(digest, "little") >> 1)
            tokens = max(of_group.stop for _, _, of_group in pieces)
            mask = torch.empty((tokens, x.shape[-1]), dtype=torch.bool, device=x.device)
            mask.bernoulli_(1.0 - p, generator=generator)
            for row, place, of_group in pieces:
                kept[row, place] = mask[of_group]
        return kept[:, self._held]


class GroupDropout(nn.Module):
    """Dropout by ``Noise``."""

    def __init__(self, p: float, noise: Noise, layer: str) -> None:
        """
        Args:
            p: the share that is dropped.
            noise: shared by all layers of a model.
            layer: its name.
        """
        super().__init__()
        self.p = p
        self.noise = noise
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with a share ``p`` of its entries zeroed and the others made larger by as much."""
        if self.noise.update is None:
            return x
        kept = self.noise.keep(x, self.p, self.layer)
        return x.masked_fill(~kept, 0.0) / (1.0 - self.p)


def _rows_of(group: Group, row: int) -> list[tuple[int, slice, slice]]:
    """Where the tokens of a group that was laid out as a row per answer, from ``row`` on, stand in its flat layout."""
    trunk = len(group.prompt_ids) + shared_prefix(group.answers)
    pieces = []
    start = trunk
    for number, answer in enumerate(group.answers):
        branch = len(group.prompt_ids) + len(answer) - 1 - trunk
        pieces.append((row + number, slice(0, trunk), slice(0, trunk)))
        pieces.append((row + number, slice(trunk, trunk + branch), slice(start, start + branch)))
        start += branch
    assert start == flat_length(group)
    return pieces


def _moved(place: slice, by: int) -> slice:
    return slice(place.start + by, place.stop + by)


def _key(group: Group) -> bytes:
    """What stands for a group: its tokens."""
    digest = hashlib.blake2b(digest_size=8)
    for tokens in (group.prompt_ids, *group.answers):
        digest.update(len(tokens).to_bytes(4, "little"))
        digest.update(np.ascontiguousarray(tokens, dtype="<i4").tobytes())
    return digest.digest()
