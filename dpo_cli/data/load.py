"""From a path to the Groups that are trained on and the Groups that are held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from dpo_cli.data.formats import NO_COLUMNS, Columns, Reading, read_examples
from dpo_cli.data.holdout import check_overlap, hold_out
from dpo_cli.data.kinds import fit_to
from dpo_cli.data.sources import is_local, read_rows
from dpo_cli.data.tokenize import Encoding, TokenizeCounts, end_tokens, tokenize
from dpo_cli.data.types import Example, Group, Kind
from dpo_cli.errors import DataError

Phase = Callable[[str, int | None, str], AbstractContextManager[Callable[[int], None]]]
"""``phase(name, total, unit)`` shows progress; what it yields is told of units done."""


@dataclass(frozen=True, slots=True)
class Data:
    """Everything a run reads."""

    train: list[Group]
    held_out: list[Group]
    ends: list[int]
    """Tokens that end an answer: generation must stop at them."""
    counts: dict[str, Any]
    """What was read, left out and cut, by side: plain values for ``run.json``."""


def load_data(
    *,
    path: str,
    split: str,
    subset: str | None,
    revision: str | None,
    held_out: str | float | None,
    limit: int | None,
    text: Literal["auto", "chat", "plain"],
    max_length: int,
    max_prompt_length: int | None,
    on_too_long: Literal["truncate", "drop", "raise"],
    on_bad_row: Literal["raise", "skip"],
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    phase: Phase,
    kind: Kind = "pairs",
    columns: Columns = NO_COLUMNS,
) -> Data:
    """Read, hold out, tokenise. A prompt is never on both sides: training gives way.

    Args:
        path, split, subset, revision: see ``read_rows``.
        held_out: None, a fraction of the prompts, a file or folder, or another split of the same hub data set.
        limit: rows of each side; None = all.
        text, max_length, max_prompt_length, on_too_long: see ``tokenize``.
        on_bad_row: see ``read_examples``.
        seed: which prompts are held out, if ``held_out`` is a fraction.
        tokenizer: the model's.
        phase: progress.
        kind: what the loss counts: see ``fit_to``.
        columns: see ``read_examples``.

    Raises:
        DpoError: see those functions.
    """
    read = partial(
        _read, subset=subset, revision=revision, on_bad_row=on_bad_row, phase=phase, kind=kind, columns=columns
    )
    # Which prompts are held out must not depend on the limit, which therefore comes after.
    train, train_read = read("data.path", path, split, limit=None if isinstance(held_out, float) else limit)
    held: list[Example] = []
    held_read: dict[str, Any] | None = None
    overlap = 0
    if isinstance(held_out, float):
        train, held = (side[:limit] for side in hold_out(train, held_out, seed))
    elif held_out is not None:
        held, held_read = read("data.eval", *held_out_place(held_out, path, split), limit=limit)
        train, overlap = check_overlap(train, held)
    ends = end_tokens(train, tokenizer, text)
    encoding = Encoding(text, max_length, max_prompt_length, "start", on_too_long)

    def to_groups(examples: list[Example], name: str) -> tuple[list[Group], TokenizeCounts]:
        tokenized = TokenizeCounts()
        groups: list[Group] = []
        too_long: list[str] = []
        with phase(name, len(examples), "rows") as advance:
            for start in range(0, len(examples), 1000):
                chunk = examples[start : start + 1000]
                for encoded in tokenize(chunk, tokenizer, encoding, ends):
                    tokenized.add(encoded)
                    if encoded.group is not None:
                        groups.append(encoded.group)
                    elif encoded.left_out == "too_long":
                        too_long.append(str(encoded))
                advance(len(chunk))
        if too_long and on_too_long == "raise":
            longest = f"the longest {tokenized.longest} ({encoding.limits})"
            total = f"... {len(too_long)} of {len(examples)} rows are too long, {longest}"
            raise DataError(
                "\n".join([*too_long[:10], f"{total}; data.on_too_long=truncate cuts such rows, drop leaves them out"])
            )
        if not groups:
            equal = f"{tokenized.made_equal} with answers that the template or the cut made equal"
            raise DataError(f"no row is left of {len(examples)}: {len(too_long)} too long ({encoding.limits}), {equal}")
        return groups, tokenized

    groups, tokenized = to_groups(train, "tokenise training data")
    counts = {"train": {"rows": train_read, "prompts_held_out": overlap, "tokenized": tokenized.as_dict()}}
    if not held:
        return Data(groups, [], ends, counts)
    held_groups, tokenized = to_groups(held, "tokenise held-out data")
    counts["held_out"] = {"rows": held_read, "tokenized": tokenized.as_dict()}
    return Data(groups, held_groups, ends, counts)


def _read(
    key: str,
    path: str,
    split: str,
    *,
    subset: str | None,
    revision: str | None,
    limit: int | None,
    on_bad_row: Literal["raise", "skip"],
    phase: Phase,
    kind: Kind,
    columns: Columns,
) -> tuple[list[Example], dict[str, Any]]:
    with phase(f"read {path}", None, "rows") as advance:
        rows = read_rows(path, split=split, subset=subset, revision=revision, key=key)
        examples, counts = read_examples(
            rows, limit=limit, on_bad_row=on_bad_row, name=f"{key}={path}", reading=Reading(says=columns)
        )
        advance(counts.read)
    fitting, without_preference = fit_to(kind, examples, f"{key}={path}")
    return fitting, {**asdict(counts), "without_preference": without_preference}


def held_out_place(held_out: str, path: str, split: str) -> tuple[str, str]:
    """Path and split of held-out data that is a file, a folder, or another split.

    Raises:
        DataError: if it is none of them.
    """
    if is_local(held_out):
        return held_out, split
    if is_local(path):
        raise DataError(
            f"data.eval={held_out}: no such file or folder, and data.path={path} is no hub data set with splits"
        )
    return path, held_out


def fingerprint(groups: Iterable[Group]) -> str:
    """SHA-256, in hex, of the groups' token ids and preferences in order: the same data, however it was stored."""
    digest = hashlib.sha256()
    for group in groups:
        parts = [group.prompt_ids, *group.answers]
        # The lengths keep what follows apart: without, moving a token from prompt to answer would change nothing.
        digest.update(np.array([len(parts), *map(len, parts)], dtype="<i8").tobytes())
        for part in parts:
            digest.update(part.astype("<i4").tobytes())
        digest.update(json.dumps([group.pairs, group.labels, group.ranks, group.weight]).encode())
    return digest.hexdigest()
