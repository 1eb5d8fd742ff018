"""Token log-probs of answers under one reference, on disk, found by content.

A store belongs to a reference: its folder's name is the hash of what fixes the numbers (weights, precision,
attention path), and ``reference.json`` says so in clear. Inside, every answer is found by the hash of its prompt's and
its own token ids, so one pass serves every loss, batch size and run over the same rows, and new rows add only
themselves. Files are content-addressed chunks: complete when they carry their final name, and wrong if their bytes
don't hash to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from filelock import FileLock
from numpy.typing import NDArray

from dpo_cli import faults
from dpo_cli.data.types import Group, Tokens
from dpo_cli.errors import DpoError, StorageError
from dpo_cli.whole_folder import leftovers, naming, write_file

Logps = NDArray[np.float32]


class MissingReference(DpoError):
    """A log-prob that the store was asked for is not in it."""


def answer_key(prompt_ids: Tokens, answer: Tokens) -> bytes:
    """16 bytes that stand for a prompt and an answer to it."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(len(prompt_ids).to_bytes(4, "little"))
    digest.update(np.ascontiguousarray(prompt_ids, dtype="<i4").tobytes())
    digest.update(np.ascontiguousarray(answer, dtype="<i4").tobytes())
    return digest.digest()


def distinct(groups: Sequence[Group]) -> dict[int, Group]:
    """Every answer once: by index, each group with those of its answers that no group before it has, if any."""
    seen: set[bytes] = set()
    found = {}
    for index, group in enumerate(groups):
        new = []
        for answer in group.answers:
            if (key := answer_key(group.prompt_ids, answer)) not in seen:
                seen.add(key)
                new.append(answer)
        if new:
            found[index] = Group(group.prompt_ids, tuple(new), (), group.source)
    return found


class ReferenceStore:
    """The log-probs of one reference."""

    def __init__(self, root: Path, identity: Mapping[str, Any]) -> None:
        """
        Args:
            root: folder of all stores.
            identity: what the numbers depend on; JSON values.

        Raises:
            StorageError: if a file in the store is damaged, or made by others.
        """
        text = json.dumps(identity, sort_keys=True)
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:24]
        self.folder.mkdir(parents=True, exist_ok=True)
        description = self.folder / "reference.json"
        if not description.exists():
            write_file(description, json.dumps(dict(identity), indent=2, sort_keys=True), lasting=True)
        self._logps: dict[bytes, Logps] = {}
        self._read: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Read chunks that were added since, by this process or another."""
        for path in sorted(self.folder.glob("chunk-*.safetensors")):
            if path.name not in self._read:
                self._logps.update(read_chunk(path))
                self._read.add(path.name)

    def missing(self, groups: Sequence[Group]) -> list[int]:
        """Indices of the groups that have an answer which is not here; of equal groups the first."""
        found: dict[bytes, int] = {}
        for index, group in enumerate(groups):
            for answer in group.answers:
                key = answer_key(group.prompt_ids, answer)
                if key not in self._logps:
                    found.setdefault(key, index)
        return sorted(set(found.values()))

    def add(self, groups: Iterable[Group], logps: Iterable[Sequence[Logps]], *, shard: str | None = None) -> None:
        """Keep the token log-probs of each group's answers: one new chunk, complete or not there at all.

        Those that are here already stay as they are: what runs have begun with doesn't change by a bit.

        Args:
            groups: some.
            logps: one number for each token, by answer.
            shard: whose part of the work it is, as for ``lock``.

        Raises:
            ValueError: if a number is not finite or there is one too few: nothing is kept.
        """
        entries: dict[bytes, Logps] = {}
        for group, values in zip(groups, logps, strict=True):
            for answer, tokens in zip(group.answers, values, strict=True):
                if len(tokens) != len(answer) or not np.isfinite(tokens).all():
                    raise ValueError(f"{group.source}: its reference log-probs are not one finite number per token")
                if (key := answer_key(group.prompt_ids, answer)) not in self._logps:
                    entries[key] = np.asarray(tokens, dtype=np.float32)
        if not entries:
            return
        data = safetensors.numpy.save(
            {
                "keys": np.frombuffer(b"".join(entries), dtype=np.uint8).reshape(-1, 16),
                "ends": np.cumsum([len(tokens) for tokens in entries.values()]),
                "logps": np.concatenate(list(entries.values())),
            }
        )
        path = self.folder / f"chunk-{hashlib.sha256(data).hexdigest()}.safetensors"
        write_file(path, data, lasting=True, writer=_part(shard))
        self._logps.update(entries)
        self._read.add(path.name)
        faults.reached("chunk", len(self._read))

    def lookup(self, groups: Sequence[Group]) -> Logps:
        """Log-probs of the groups' scored tokens, end to end: ``[M]``, as ``FlatBatch.answer`` has them.

        The store has those of all tokens, so that nothing of what a run scores is in its keys.

        Raises:
            MissingReference: naming the row and the command that computes it.
        """
        parts = []
        for group in groups:
            for number, answer in enumerate(group.answers):
                logps = self._logps.get(answer_key(group.prompt_ids, answer))
                if logps is None:
                    raise MissingReference(
                        f"{group.source}: no reference log-probs in {self.folder}; "
                        "compute them with `dpo precompute-ref` and the arguments of this run"
                    )
                parts.append(logps[group.scored[number]] if group.scored else logps)
        return np.concatenate(parts)

    def lock(self, shard: str | None = None) -> FileLock:
        """Held while missing log-probs are computed, so that two runs don't do the same work at once.

        Args:
            shard: of a part of the work only, named so.
        """
        part = _part(shard)
        return FileLock(self.folder / f"computing{'-' if part else ''}{part}.lock")

    def clean_up(self, shard: str | None = None) -> int:
        """Remove chunks that a killed process has not finished; returns how many.

        Only who holds ``lock(shard)`` may do it, before anything is added: nobody else writes chunks of this shard.
        """
        found = leftovers(self.folder, "chunk-*", _part(shard))
        for partial in found:
            partial.unlink(missing_ok=True)
        return len(found)


def read_chunk(path: Path) -> dict[bytes, Logps]:
    """Log-probs by ``answer_key``.

    Raises:
        StorageError: its bytes are not those that were written, or were never written by ``ReferenceStore.add``.
    """
    damaged = f"{path} is damaged: {{}}; delete it and run again"
    if not path.is_file():  # a pipe, say, for which one would wait
        raise StorageError(damaged.format("it is no file"))
    with naming(path):
        data = path.read_bytes()
    if path.name != f"chunk-{hashlib.sha256(data).hexdigest()}.safetensors":
        raise StorageError(damaged.format("its bytes don't match the hash in its name"))
    try:
        tensors = safetensors.numpy.load(data)
        keys, ends, logps = (tensors[name] for name in ("keys", "ends", "logps"))
    except (safetensors.SafetensorError, KeyError):
        raise StorageError(damaged.format("it does not hold keys, ends and logps")) from None
    if not _fit(keys, ends, logps):
        raise StorageError(damaged.format("its keys, ends and logps don't go together"))
    return {key.tobytes(): part for key, part in zip(keys, np.split(logps, ends[:-1]), strict=True)}


def _fit(keys: NDArray[Any], ends: NDArray[Any], logps: NDArray[Any]) -> bool:
    """Whether the arrays of a chunk are of their kinds, and each answer has its part of the finite log-probs."""
    kinds = [(array.dtype.name, array.ndim) for array in (keys, ends, logps)]
    if kinds != [("uint8", 2), ("int64", 1), ("float32", 1)] or keys.shape != (len(ends), 16) or not len(ends):
        return False
    starts = np.concatenate([[0], ends[:-1]])
    return bool((starts <= ends).all() and ends[-1] == len(logps) and np.isfinite(logps).all())


def _part(shard: str | None) -> str:
    """Of file names: empty for all of the work, ``3-of-16`` for a part of it."""
    return "" if shard is None else shard.replace("/", "-of-")
