"""``dpo score FILE OUT``: the implicit reward of every answer in a file, which makes a model trained on preferences a
reward model."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from dpo_cli import distributed
from dpo_cli.commands.evaluate import load_scored
from dpo_cli.commands.parts import Setup, as_lookup, resolve_precision, resolve_token_budget
from dpo_cli.commands.revisions import check_revisions
from dpo_cli.commands.rows import Rows, make_loader, training_parts
from dpo_cli.commands.writable import check_writable
from dpo_cli.config import ScoreConfig
from dpo_cli.data.build import first_ends
from dpo_cli.data.collate import masks
from dpo_cli.data.formats import BadRowError, answers_of
from dpo_cli.data.load import Data
from dpo_cli.data.plan import pack
from dpo_cli.data.sources import Row, open_source
from dpo_cli.data.tokenize import Encoding, tokenize
from dpo_cli.data.types import Example, Group
from dpo_cli.errors import DataError, DpoError, one_line
from dpo_cli.losses import make_loss
from dpo_cli.objective import Objective
from dpo_cli.tracking.console import Console

COLUMN = "dpo_score"
"""What is added to each row: a list with an object per answer, or null."""
_CHUNK = 512
"""Rows at a time."""


def run(config: ScoreConfig) -> None:
    """Score. One process does it.

    Raises:
        DpoError: for what the user can mend; then nothing is written.
    """
    console = Console()
    output = Path(str(config.output))
    if output.exists():
        raise DpoError(f"{output} exists: choose another file for the scored rows, or remove it first")
    check_writable(output.parent, "output", "choose another place for the scored rows")
    distributed.start()
    try:
        counts, rewards = _score_file(config, output, console)
    finally:
        distributed.stop()
    table = Table(title=f"{output}: {counts['rows']:,} rows", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("rows scored", f"{counts['scored']:,}")
    table.add_row("answers scored", f"{len(rewards):,}")
    for reason in sorted(counts.keys() - {"rows", "scored"}):
        table.add_row(f"not scored: {reason}", f"{counts[reason]:,}")
    if rewards:
        table.add_row("mean reward", f"{np.mean(rewards):.4f}")
        table.add_row("standard deviation", f"{np.std(rewards):.4f}")
    console.table(table)
    if counts["scored"] < counts["rows"]:
        left = counts["rows"] - counts["scored"]
        have = f"{left:,} rows have" if left > 1 else "1 row has"
        console.warn(f"{have} {COLUMN}: null; {COLUMN}_problem says why")


@dataclass(frozen=True)
class _Line:
    """A row with its answers as groups to be scored, or none and the reason."""

    row: Row
    groups: list[Group]
    kind: str = ""
    """Of the trouble, to be counted."""
    problem: str = ""


def _score_file(config: ScoreConfig, output: Path, console: Console) -> tuple[Counter[str], list[float]]:
    check_revisions(config, "pairs")
    loader = make_loader(config.model, config.data, console)
    parts = training_parts(config.data, "pairs")
    reading, encoding = parts[0].recipe.reading, parts[0].recipe.encoding
    source = open_source(parts[0].place, key=parts[0].key, cache=loader.folder)
    rows = islice(source.rows(), config.data.limit)
    ends: list[int] = []
    chunks = (
        _lines(chunk, reading, encoding, loader.tokenizer, ends)
        for chunk in iter(lambda: list(islice(rows, _CHUNK)), [])
    )
    first: list[list[_Line]] = []
    for chunk in chunks:  # until there is something to try the model on
        first.append(chunk)
        if any(line.groups for line in chunk):
            break
    groups = [group for chunk in first for line in chunk for group in line.groups]
    if not groups:
        reasons = [line.problem for chunk in first for line in chunk][:3]
        raise DataError("\n".join([*reasons, f"{source.name}: no row has an answer that can be scored"]))
    objective, budget, lengths = _scorer(config, Rows(loader.tokenizer, Data([], groups, ends, {})), console)
    counts: Counter[str] = Counter(rows=0, scored=0)
    rewards: list[float] = []
    partial = output.with_name(f"{output.name}.{os.getpid()}.partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("w", encoding="utf-8") as file, console.phase("score", source.total, "rows") as advance:
            for chunk in chain(first, chunks):
                found = _scores([group for line in chunk for group in line.groups], objective, lengths, budget)
                for line in chunk:
                    file.write(_written(line, found, counts, rewards))
                advance(len(chunk))
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return counts, rewards


def _lines(rows: Sequence[Row], reading: Any, encoding: Encoding, tokenizer: Any, ends: list[int]) -> list[_Line]:
    """The rows as tokens; rows that can't be read keep their place."""
    lines: list[_Line | None] = [None] * len(rows)
    examples: list[tuple[int, Example]] = []
    for place, row in enumerate(rows):
        if row.problem:
            raise DataError(f"{row.source}: {row.problem}: mend it, as the scored file has every row of this one")
        if COLUMN in row.values:
            raise DataError(f"{row.source} has a column {COLUMN} already: remove it, or score another file")
        try:
            examples += [(place, example) for example in answers_of(row, reading)]
        except BadRowError as problem:
            lines[place] = _Line(row, [], "the row can't be read", one_line(f"{row.source}: {problem}"))
    if not ends:
        ends += first_ends([example for _, example in examples], tokenizer, encoding)
    encoded: dict[int, list[Any]] = {}
    for place, found in _tokenized(examples, tokenizer, encoding, ends):
        encoded.setdefault(place, []).append(found)
    for place, row in enumerate(rows):
        if lines[place] is None:
            lines[place] = _joined(row, encoded[place])
    return [line for line in lines if line is not None]


def _tokenized(
    examples: Sequence[tuple[int, Example]], tokenizer: Any, encoding: Encoding, ends: Sequence[int]
) -> Iterator[tuple[int, Any]]:
    """Each example's tokens, or the error that it makes."""
    try:
        yield from zip(
            [place for place, _ in examples],
            tokenize([example for _, example in examples], tokenizer, encoding, ends),
            strict=True,
        )
    except DataError as error:
        if len(examples) == 1:
            yield examples[0][0], error
            return
        for one in examples:  # which of them?
            yield from _tokenized([one], tokenizer, encoding, ends)


def _joined(row: Row, encoded: Sequence[Any]) -> _Line:
    """A row's answers: as one group where they have one prompt, which the cut may have left them more or less of."""
    for each in encoded:
        if isinstance(each, DataError):
            return _Line(row, [], "the row can't be rendered", one_line(str(each)))
        if each.group is None:
            reason = each.left_out.replace("_", " ")
            return _Line(row, [], reason, one_line(f"{each}: {reason}"))
    groups = [replace(each.group, pairs=(), labels=(), ranks=()) for each in encoded]
    if any(not np.array_equal(group.prompt_ids, groups[0].prompt_ids) for group in groups):
        return _Line(row, groups)
    answers = tuple(answer for group in groups for answer in group.answers)
    scored = tuple(mask for group in groups for mask in masks(group)) if any(group.scored for group in groups) else ()
    return _Line(row, [replace(groups[0], answers=answers, scored=scored)])


def _scorer(config: ScoreConfig, rows: Rows, console: Console) -> tuple[Objective, int, Any]:
    """The model and its reference, ready for any rows."""
    loss = make_loss(config.loss.settings())
    precision = resolve_precision(config.precision, config.reference.cache_dir)
    budget = resolve_token_budget(config.tokens_per_micro_batch)
    setup = Setup(config.model, config.reference, rows, precision, budget, console, config.seed)
    scorer = load_scored(setup, config.run, config.step)
    scorer.policy.eval()
    console.say(f"{precision} on {distributed.device()}; attention: {scorer.attention}")
    lookup = None
    if loss.needs_reference and (config.run is not None or config.reference.path is not None):
        reference = setup.make_reference(groups=scorer.policy.groups, scorer=None, needed=False).policy()
        if reference.groups != scorer.policy.groups:
            raise DpoError("model and reference take groups differently: use model.attention=plain for both")
        reference.eval()
        lookup = as_lookup(reference)
        console.say(f"reference: {config.reference.path or config.model.path}")
    elif loss.needs_reference:
        console.say("no reference (reference.path): rewards are beta x log-prob of the answer")
    return Objective([], loss, lookup, scorer.policy.groups), budget, scorer


def _scores(groups: Sequence[Group], objective: Objective, scorer: Any, budget: int) -> dict[int, list[dict[str, Any]]]:
    """What is written of each group's answers, by the group's ``id``."""
    found: dict[int, list[dict[str, Any]]] = {}
    lengths = [scorer.lengths(group) for group in groups]
    for members in pack(range(len(groups)), lengths, budget, padded=not objective.share):
        some = [groups[index] for index in members]
        with torch.no_grad():
            _, logps = objective.look(scorer.policy, some)
            if logps.reference is None and objective.loss.needs_reference:
                logps = logps.with_reference(torch.zeros_like(logps.policy))
                theirs: list[float | None] = [None] * logps.count
            elif logps.reference is None:
                theirs = [None] * logps.count
            else:
                theirs = list(logps.per_answer(logps.reference.double()).tolist())
            numbers = zip(
                objective.loss.answer_rewards(logps).double().tolist(),
                logps.per_answer(logps.policy.double()).tolist(),
                theirs,
                logps.lengths.tolist(),
                strict=True,
            )
            for group in some:
                found[id(group)] = [_answer(*values) for values in islice(numbers, len(group.answers))]
    return found


def _answer(reward: float, logp: float, reference: float | None, tokens: int) -> dict[str, Any]:
    return {
        "reward": reward,
        "reward_per_token": reward / tokens,
        "logp": logp,
        "reference_logp": reference,
        "tokens": tokens,
    }


def _written(line: _Line, found: dict[int, list[dict[str, Any]]], counts: Counter[str], rewards: list[float]) -> str:
    """The row as a line of JSON, counted."""
    counts["rows"] += 1
    values = dict(line.row.values)
    if not line.groups:
        counts[line.kind] += 1
        values |= {COLUMN: None, f"{COLUMN}_problem": line.problem}
    else:
        scores = [score for group in line.groups for score in found[id(group)]]
        counts["scored"] += 1
        rewards += [score["reward"] for score in scores]
        values[COLUMN] = scores
    return json.dumps(values, ensure_ascii=False, default=str) + "\n"
