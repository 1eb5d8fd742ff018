"""The rows of a run: from the data section of a configuration to tokenised Groups."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from dpo_cli.commands.caches import cache_folder
from dpo_cli.config import DataConfig, MixedConfig, ModelConfig
from dpo_cli.data.build import Recipe
from dpo_cli.data.formats import Columns, Reading
from dpo_cli.data.kinds import mismatch
from dpo_cli.data.load import Data, Loader, Part, load_data
from dpo_cli.data.sources import Place, is_local, is_url
from dpo_cli.data.store import Groups
from dpo_cli.data.template import set_chat_template
from dpo_cli.data.tokenize import Encoding
from dpo_cli.data.types import Group, Kind
from dpo_cli.errors import DataError
from dpo_cli.losses import Loss
from dpo_cli.model.load import load_tokenizer
from dpo_cli.tracking.console import Console

_SLICE = re.compile(r"([\w.-]+/[\w.-]+:)?[\w.+-]+\[[-\d%]*:[-\d%]*\]")
"""Part of a split, such as ``test[:100]`` or ``owner/name:test[:100]``, which would be a file pattern as well."""


@dataclass(frozen=True)
class Rows:
    """Tokenised rows, and the tokenizer that made them."""

    tokenizer: PreTrainedTokenizerBase
    data: Data
    mismatched: Sequence[Group] = field(default_factory=list)
    """For each training row its prompt with an answer to another, where the loss asks for that."""
    mismatched_held_out: Sequence[Group] = field(default_factory=list)

    @property
    def all(self) -> Sequence[Group]:
        """Everything that is scored."""
        return Groups([self.data.train, self.data.held_out, self.mismatched, self.mismatched_held_out])


def load_rows(model: ModelConfig, data: DataConfig, loss: Loss, seed: int, console: Console) -> Rows:
    """Read, check and tokenise the rows; nothing of the model but its tokenizer is touched."""
    loader = make_loader(model, data, console)
    parts = training_parts(data, loss.kind)
    loaded = load_data(parts, held_out_part(data, loss.kind), loader, limit=data.limit, seed=seed)
    if not loss.columns("mismatched"):
        return Rows(loader.tokenizer, loaded)
    others = mismatch(loaded.train, seed, data.max_length, "training rows")
    held_others = mismatch(loaded.held_out, seed, data.max_length, f"data.eval={data.eval}")
    return Rows(loader.tokenizer, loaded, others, held_others)


def known_rows(model: ModelConfig, data: DataConfig, loss: Loss, seed: int, console: Console) -> Rows | None:
    """The rows if they have been read and tokenised before, from files and with a model that are on this machine; else
    None, and nothing is read."""
    paths = [data.path, *(part.path for part in (data.mix or {}).values())]
    if not Path(model.path).is_dir() or not all(is_local(path) for path in paths if path is not None):
        return None
    held_out = held_out_part(data, loss.kind)
    parts = [*training_parts(data, loss.kind), *([held_out] if isinstance(held_out, Part) else [])]
    if not all(is_local(part.place.path) for part in parts):
        return None
    loader = make_loader(model, data, console)
    if not all(loader.known(part) for part in parts):
        return None
    return load_rows(model, data, loss, seed, console)


def make_loader(model: ModelConfig, data: DataConfig, console: Console) -> Loader:
    """What reading rows takes, the model's tokenizer above all."""
    tokenizer = load_tokenizer(model.path, model.revision)
    if model.chat_template is not None:
        added = set_chat_template(tokenizer, model.chat_template)
        if added:
            console.say(f"tokens added for the chat template: {', '.join(added)}")
    return Loader(
        tokenizer=tokenizer,
        folder=cache_folder(data.cache_dir),
        workers=None if data.workers == "auto" else data.workers,
        phase=console.phase,
        warn=console.warn,
    )


def training_parts(data: DataConfig, kind: Kind) -> list[Part]:
    """What is trained on, and a fraction of it held out."""
    # Which prompts are held out must not depend on the limit, which is then kept for later.
    limit = None if isinstance(data.eval, float) else data.limit
    if data.mix is None:
        assert data.path is not None  # config.py sees to it
        whole = MixedConfig(
            path=data.path, subset=data.subset, revision=data.revision, streaming=data.streaming or None
        )
        return [_part("data.path", whole, data, kind, limit)]
    return [_part(f"data.mix.{name}.path", mixed, data, kind, limit) for name, mixed in data.mix.items()]


def _part(key: str, mixed: MixedConfig, data: DataConfig, kind: Kind, limit: int | None) -> Part:
    """A source; what it doesn't say is as for all."""
    settings = data.model_copy(update=mixed.model_dump(exclude_none=True, exclude={"rows", "weight"}))
    place = Place(mixed.path, settings.split, settings.subset, settings.revision, settings.streaming)
    if is_local(mixed.path) or is_url(mixed.path):
        for name in ("subset", "revision", "streaming"):
            if getattr(mixed, name):
                raise DataError(
                    f"{key}={mixed.path} is a file or folder: {name} has no effect, it is for hub data sets"
                )
        place = Place(mixed.path, settings.split)
    return Part(key, place, _recipe(settings, kind, limit), mixed.rows, mixed.weight)


def held_out_part(data: DataConfig, kind: Kind) -> Part | float | None:
    """What is held out, as ``load_data`` takes it."""
    if not isinstance(data.eval, str):
        return data.eval
    path, split = held_out_place(data)
    if path != data.path:  # whose subset and revision say nothing of another data set
        data = data.model_copy(update={"subset": None, "revision": None})
    return _part("data.eval", MixedConfig(path=path, split=split), data, kind, data.limit)


def held_out_place(data: DataConfig) -> tuple[str, str]:
    """Path and split of held-out data that is a file, a folder, a hub data set, or another split of ``data.path``,
    which is then a hub data set, a folder or a URL.

    Raises:
        DataError: if it is none of them.
    """
    held_out = str(data.eval)
    slice_of_split = _SLICE.fullmatch(held_out) is not None and not Path(held_out).exists()
    if is_local(held_out) and not slice_of_split:
        return held_out, "train"
    if "/" in held_out:
        path, colon, split = held_out.partition(":")
        return (path, split) if colon and not split.startswith("//") else (held_out, "train")
    if data.path is None or (is_local(data.path) and not Path(data.path).expanduser().is_dir()):
        training = "there are several in data.mix" if data.path is None else f"data.path={data.path} is a file"
        raise DataError(
            f"data.eval={held_out}: no such file or folder; it would be a split of data.path, but {training} "
            "(of another data set: OWNER/NAME:SPLIT)"
        )
    return data.path, held_out


def _recipe(data: DataConfig, kind: Kind, limit: int | None) -> Recipe:
    return Recipe(
        reading=Reading(
            shape=data.shape,
            columns=data.columns,
            says=Columns(data.weight, data.margin, data.label_prob),
            system=data.system,
            loss_on=data.loss_on,
        ),
        encoding=Encoding(
            text=data.text,
            max_length=data.max_length,
            max_prompt_length=data.max_prompt_length,
            truncate_prompt=data.truncate_prompt,
            on_too_long=data.on_too_long,
            template_args=data.template_args,
        ),
        kind=kind,
        on_bad_row=data.on_bad_row,
        limit=limit,
    )


def describe_rows(rows: Rows, kind: Kind) -> str:
    """For people: how many rows of how many tokens."""
    parts = []
    for name, groups in (("training", rows.data.train), ("held out", rows.data.held_out)):
        if groups:
            sizes = [
                (group.count(kind), len(group.prompt_ids) + int(np.mean([len(answer) for answer in group.answers])))
                for group in groups
            ]
            counts, tokens = zip(*sizes, strict=True)
            median = int(np.median(tokens))
            parts.append(f"{name} {sum(counts):,} {kind} (median {median} tokens, longest {max(tokens)})")
    return "; ".join(parts)
