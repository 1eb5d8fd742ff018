"""From a source's rows to a table of Groups, made once for a content and kept.

Rows are read here, in order; what takes time (rendering and tokenising) is done a chunk at a time, by other processes
where there are many rows. Memory holds a few chunks.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow
import tokenizers
import transformers
from filelock import FileLock, Timeout
from transformers import PreTrainedTokenizerBase

from dpo_cli.data.formats import BadRowError, Reading, content_hash, to_example
from dpo_cli.data.kinds import WrongKindError, fit
from dpo_cli.data.pool import ALONE, by_chunks
from dpo_cli.data.sources import Row, Source
from dpo_cli.data.store import Table, TableWriter, open_table, to_batch
from dpo_cli.data.tokenize import Encoded, Encoding, TokenizeCounts, end_tokens, tokenize
from dpo_cli.data.types import Example, Kind, Message
from dpo_cli.errors import DataError, one_line
from dpo_cli.whole_folder import in_place_of

SHOWN = 10
"""Rows named in a message."""

Phase = Callable[[str, int | None, str], AbstractContextManager[Callable[[int], None]]]
"""``phase(name, total, unit)`` shows progress; what it yields is told of units done."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How rows become Groups."""

    reading: Reading
    encoding: Encoding
    kind: Kind
    """What the loss counts: see ``fit``."""
    on_bad_row: Literal["raise", "skip"]
    limit: int | None = None
    """Rows to read; None = all."""


@dataclass(slots=True)
class Seen:
    """How often something was found, and where first."""

    count: int = 0
    rows: list[str] = field(default_factory=list)
    """Up to three."""

    def add(self, row: str, count: int = 1) -> None:
        """Count it, in this row."""
        self.merge(Seen(count, [row]))

    def merge(self, other: Seen) -> None:
        """Count what another has seen as well."""
        if other.count:
            self.count += other.count
            self.rows = list(dict.fromkeys([*self.rows, *other.rows]))[:3]


@dataclass(slots=True)
class Counts:
    """What became of rows."""

    read: int = 0
    bad: int = 0
    """Left out."""
    first_bad: list[str] = field(default_factory=list)
    """Messages about the first ten of them."""
    bad_by_finding: dict[str, Seen] = field(default_factory=dict)
    """By what an audit calls them: ``BadRowError.finding``."""
    without_preference: int = 0
    """Left out: all their answers are equally good."""
    tokenized: TokenizeCounts = field(default_factory=TokenizeCounts)
    too_long: list[str] = field(default_factory=list)
    """The first ten that are too long."""

    def add_bad(self, message: str, finding: str = BadRowError.finding) -> None:
        """Count a bad row."""
        self.bad += 1
        self.bad_by_finding.setdefault(finding, Seen()).add(one_line(message))
        if len(self.first_bad) < SHOWN:
            self.first_bad.append(one_line(message))

    def add_encoded(self, encoded: Encoded) -> None:
        """Count what became of an example."""
        self.tokenized.add(encoded)
        if encoded.left_out == "too_long" and len(self.too_long) < SHOWN:
            self.too_long.append(str(encoded))

    def add(self, other: Counts) -> None:
        """Count the rows of another as well."""
        self.read += other.read
        self.bad += other.bad
        self.first_bad = [*self.first_bad, *other.first_bad][:SHOWN]
        for finding, seen in other.bad_by_finding.items():
            self.bad_by_finding.setdefault(finding, Seen()).merge(seen)
        self.without_preference += other.without_preference
        self.tokenized.merge(other.tokenized)
        self.too_long = [*self.too_long, *other.too_long][:SHOWN]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows, done."""

    batch: pyarrow.RecordBatch | None
    """None = nothing is left of them."""
    counts: Counts


def build(
    source: Source,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    workers: int | None,
    folder: Path,
    phase: Phase,
    warn: Callable[[str], None],
) -> Table:
    """The table of a source: the one that is there, or a new one.

    Args:
        source: of rows.
        recipe: what is made of them.
        tokenizer: the model's.
        workers: processes that tokenise; None = one per core.
        folder: of tables.
        phase: progress.
        warn: told when a damaged table is made again.

    Raises:
        DataError: rows that can't be used (and ``on_bad_row`` or ``on_too_long`` says ``raise``), or nothing left.
    """
    place = folder / _key(source, recipe, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(place.with_suffix(".lock"), source.name, phase):
        table, trouble = open_table(place)
        if table is not None:
            return table
        if trouble:
            warn(f"{trouble}; it is made again")
            shutil.rmtree(place, ignore_errors=True)
        with in_place_of(place, place.with_suffix(".new")) as new:
            _fill(new, source, recipe, tokenizer, workers, phase)
        table, trouble = open_table(place)
    if table is None:
        raise OSError(f"{trouble}, and it was written just now")
    return table


def find(source: Source, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, folder: Path) -> Table | None:
    """The table of a source as ``build`` would give it, if it is there; nothing is made."""
    return open_table(folder / _key(source, recipe, tokenizer))[0]


@contextmanager
def _alone(lock: Path, name: str, phase: Phase) -> Iterator[None]:
    """Holding a lock; where another process has it, the wait is shown."""
    held = FileLock(lock)
    try:
        held.acquire(blocking=False)
    except Timeout:
        with phase(f"wait for another process to tokenise {name}", None, ""):
            held.acquire()
    try:
        yield
    finally:
        held.release()


def _key(source: Source, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> str:
    """The same if and only if the table would be."""
    said = {
        "source": source.identity,
        "recipe": asdict(recipe),
        "tokenizer": _tokenizer_identity(tokenizer),
        "versions": [transformers.__version__, tokenizers.__version__],
        "code": _code(),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = json.dumps(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
    return [
        type(tokenizer).__name__,
        hashlib.sha256(text.encode()).hexdigest(),
        tokenizer.chat_template,
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    ]


@cache
def _code() -> str:
    """A hash of this package's own source: what another version would make is another table."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _fill(
    folder: Path, source: Source, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, workers: int | None, phase: Phase
) -> None:
    """Write a table."""
    counts, ends = Counts(), list[int]()
    total = source.total if recipe.limit is None or source.total is None else min(recipe.limit, source.total)
    work = partial(encode_rows, recipe=recipe, tokenizer=tokenizer, ends=ends)
    writer = TableWriter(folder)
    with phase(f"tokenise {source.name}", total, "rows") as advance:
        try:
            for number, chunk in enumerate(by_chunks(islice(source.rows(), recipe.limit), work, workers), start=1):
                counts.add(chunk.counts)
                advance(chunk.counts.read)
                too_many_bad = recipe.on_bad_row == "raise" and counts.bad >= SHOWN
                if too_many_bad or (number == ALONE and not ends):  # nothing but such rows, which say no end
                    break
                if chunk.batch is not None:
                    writer.add(chunk.batch)
        finally:
            writer.close()
        _check(counts, recipe, source.name)
    writer.finish({"counts": asdict(counts), "ends": ends})


def _check(counts: Counts, recipe: Recipe, name: str) -> None:
    """Whether what was asked for was had."""
    if counts.bad and recipe.on_bad_row == "raise":
        summary = f"... {counts.bad} bad row{'s' * (counts.bad > 1)} in the first {counts.read}"
        advice = "data.on_bad_row=skip leaves such rows out and counts them"
        raise DataError("\n".join([*counts.first_bad, f"{summary}; {advice}"]))
    if counts.bad == counts.read:
        raise DataError("\n".join([*counts.first_bad, f"{name}: no usable row: {counts.read} read, {counts.bad} bad"]))
    long, limits = counts.tokenized.dropped_too_long, recipe.encoding.limits
    if long and recipe.encoding.on_too_long == "raise":
        total = f"... {long} of {counts.read} rows are too long, the longest {counts.tokenized.longest} ({limits})"
        advice = "data.on_too_long=truncate cuts such rows, drop leaves them out"
        raise DataError("\n".join([*counts.too_long, f"{total}; {advice}"]))
    if not counts.tokenized.groups:
        reasons = {
            "bad": counts.bad,
            "with equal scores, so that nothing is preferred": counts.without_preference,
            f"too long ({limits})": long,
            "with answers that the template or the cut made equal": counts.tokenized.made_equal,
            "of whose answers the cut left nothing that is scored": counts.tokenized.nothing_scored,
        }
        found = ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number)
        raise DataError(f"{name}: no row is left of {counts.read}: {found}")


def encode_rows(rows: Sequence[Row], recipe: Recipe, tokenizer: PreTrainedTokenizerBase, ends: list[int]) -> Chunk:
    """Read, check, render, tokenise.

    Args:
        rows: some.
        recipe: how.
        tokenizer: the model's.
        ends: from ``end_tokens``; filled in, if it is empty.

    Raises:
        DataError: rows that say nothing of the kind that the loss counts.
    """
    counts = Counts()
    examples = list(usable(rows, recipe, counts))
    if not examples or (counts.bad and recipe.on_bad_row == "raise"):
        return Chunk(None, counts)
    encoded = encode(examples, recipe, tokenizer, ends, counts)
    kept = [(each.group, each.example) for each in encoded if each.group is not None]
    if not kept:
        return Chunk(None, counts)
    keys = [(prompt_key(example), row_key(example)) for _, example in kept]
    return Chunk(to_batch([group for group, _ in kept], *zip(*keys, strict=True)), counts)


def encode(
    examples: Sequence[Example], recipe: Recipe, tokenizer: PreTrainedTokenizerBase, ends: list[int], counts: Counts
) -> list[Encoded]:
    """What becomes of each example, counted; ``ends`` as for ``encode_rows``."""
    if not ends:
        ends += first_ends(examples, tokenizer, recipe.encoding)
    encoded = tokenized(examples, tokenizer, recipe, ends, counts)
    for each in encoded:
        counts.add_encoded(each)
    return encoded


def first_ends(examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> list[int]:
    """What ends an answer, by the first example that can be rendered; empty = none can."""
    for example in examples:
        with suppress(DataError):  # a bad row, which is met again
            return end_tokens([example], tokenizer, encoding.text, encoding.template_args)
    return []


def tokenized(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    ends: Sequence[int],
    counts: Counts,
) -> list[Encoded]:
    """``tokenize``, where an example that can't be rendered is a bad row like others: counted, and left out."""
    try:
        return tokenize(examples, tokenizer, recipe.encoding, ends)
    except DataError as problem:
        if len(examples) > 1:  # which of them?
            return [
                encoded for example in examples for encoded in tokenized([example], tokenizer, recipe, ends, counts)
            ]
        counts.add_bad(str(problem))
        return []


def usable(
    rows: Iterable[Row], recipe: Recipe, counts: Counts, *, wrong_kind: Literal["raise", "count"] = "raise"
) -> Iterator[Example]:
    """The rows that say something the loss can use; the others are counted.

    Raises:
        DataError: a row that says nothing of the kind that the loss counts, unless such are to be counted as bad.
    """
    for row in rows:
        counts.read += 1
        try:
            example = fit(recipe.kind, to_example(row, recipe.reading))
        except (BadRowError, WrongKindError) as problem:
            if isinstance(problem, WrongKindError) and wrong_kind == "raise":
                raise DataError(f"{row.source}: {problem}") from None
            counts.add_bad(f"{row.source}: {problem}", problem.finding)
            continue
        if example is None:
            counts.without_preference += 1
        else:
            yield example


def prompt_key(example: Example) -> int:
    """The same for a text and for its one user turn."""
    prompt = example.prompt
    return key64([Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt)


def row_key(example: Example) -> int:
    """Of prompt and answers."""
    return key64([example.prompt, example.answers])


def key64(content: Any) -> int:
    """A signed number of 64 bits that stands for a content, as tables keep it."""
    return int.from_bytes(content_hash(content)[:8], signed=True)
