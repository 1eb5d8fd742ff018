"""From a run or an adapter to a plain model folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from dpo_cli.commands.card import license_of, model_card, plain_card
from dpo_cli.data.tokenize import end_tokens
from dpo_cli.data.types import Example
from dpo_cli.distributed import device
from dpo_cli.errors import DpoError, NumericsError, StorageError
from dpo_cli.model.files import ModelFiles, find_files, understood
from dpo_cli.model.load import LoadedModel, attach, load_model, load_tokenizer
from dpo_cli.model.merge import (
    Gap,
    Merged,
    allowed_gap,
    dequantised,
    merge,
    probe_tokens,
    token_logps,
)
from dpo_cli.model.quantize import keep_one_path, quantization_options
from dpo_cli.reporting.runs import read_config_file
from dpo_cli.run_folder import read
from dpo_cli.tracking.console import Console
from dpo_cli.training.export import write_model
from dpo_cli.whole_folder import in_place_of

_UNDONE = 0.1
"""Share of what the adapter changes that rounding may change back without a warning."""


@dataclass(frozen=True)
class Source:
    """An adapter, and what is known of how it came about."""

    files: ModelFiles
    settings: Mapping[str, Any] | None
    """Its run's ``config.yaml``, if that is there."""
    record: Mapping[str, Any] | None
    """Its run's ``run.json``, likewise."""


@dataclass(frozen=True)
class Wanted:
    """What to make."""

    dtype: str
    """``float32``, ``bfloat16`` or ``float16``."""
    onto: str
    """``trained`` or ``original``: of a quantised base."""


@dataclass(frozen=True)
class _Trained:
    """The adapter on its base as they were in training."""

    logps: Tensor
    base: Tensor
    """Log-probs with the adapter off."""
    matrices: dict[str, Tensor]
    """Of a quantised base what its matrices stand for."""


def find_source(place: str, *, base: str | None = None, held: str | None = None) -> Source:
    """The adapter of a run's folder, or the one at a path.

    Args:
        place: a run's folder, or folder or hub id of an adapter.
        base: its base model; None = as its own configuration says.
        held: how the base's matrices were held; None = as the run's configuration says, else as in their files.

    Raises:
        DpoError: there is no adapter.
    """
    folder = Path(place)
    run = folder if (folder / "run.json").is_file() else folder.parent if folder.name == "final" else None
    if run == folder:
        folder = run / "final"
        if not folder.is_dir():
            raise DpoError(f"{place} has no final/: the run did not come to its end; resume=auto goes on with it")
    path = str(folder) if folder.is_dir() else place
    name = f"the adapter {path}"
    found = find_files(path, None, name=name)
    if found.adapter is None:
        whole = (folder / "config.json").is_file()
        what = "holds all weights: there is nothing to merge" if whole else "is not an adapter"
        raise DpoError(f"{path} {what}; expected an adapter, or the folder of a run that trained one")
    settings = _settings(path, run)
    known = ((settings or {}).get("model") or {}).get("adapter") or {}
    files = ModelFiles(base or found.path, None if base else found.revision, path, None, held or _held(known))
    return Source(files, settings, None if run is None else read(run) or None)


def _settings(path: str, run: Path | None) -> Mapping[str, Any] | None:
    """The configuration of the run that an adapter is of: the run's, or one that was uploaded with the adapter."""
    if run is not None:
        file = run / "config.yaml"
    elif Path(path).is_dir():
        file = Path(path, "config.yaml")
    else:
        file = Path(str(cached_file(path, "config.yaml", _raise_exceptions_for_missing_entries=False)))
    return read_config_file(file) or None


def _held(adapter: Mapping[str, Any]) -> str | None:
    match adapter.get("name"):
        case "qlora":
            return "nf4_double" if adapter.get("double_quant") else "nf4"
        case "qlora_8bit":
            return "int8"
        case "existing":
            return cast("str | None", adapter.get("quantization"))
    return None


def merge_into(output: Path, source: Source, wanted: Wanted, console: Console | None = None) -> None:
    """Merge, check and write; ``output`` is complete or not there.

    Raises:
        DpoError: the adapter can't be merged.
        NumericsError: the merged model's log-probs are not the adapter's.
        StorageError: it can't be written.
    """
    console = console or Console()
    files = source.files
    console.say(f"adapter: {files.adapter}; base model: {files.path}{_held_in_words(source)}")
    tokenizer = load_tokenizer(str(files.adapter), files.adapter_revision, name=f"the adapter {files.adapter}")
    ids = probe_tokens(tokenizer)
    with console.phase("score the adapter on its base"):
        trained = _score(files, tokenizer, ids)
    with console.phase("merge"):
        matrices = trained.matrices if wanted.onto == "trained" else {}
        merged = merge(files, matrices, vocabulary=len(tokenizer), ids=ids)
    _check(merged, trained, files, wanted, console)
    with console.phase(f"write {output}"):
        _write(output, merged, tokenizer, source, wanted, ids, trained, console)


def _held_in_words(source: Source) -> str:
    if source.files.quantization is not None:
        return f", held in {source.files.quantization} in training"
    if source.settings is None:
        return ", taken to have been held as in its files (no config.yaml says; --held names another way)"
    return ""


def _score(files: ModelFiles, tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> _Trained:
    """Log-probs of the adapter as training loads it; on the GPU only if it is quantised, which takes a kernel there
    that rounds as training's did."""
    where = device() if files.quantization is not None else torch.device("cpu")
    options = quantization_options(files.quantization, "fp32", where)
    loaded = load_model(
        files.path,
        files.revision,
        vocabulary=len(tokenizer),
        attention="plain",
        quantization=options,
        name=f"the base model {files.path}",
    )
    if options:
        keep_one_path(loaded.model)
    matrices = dequantised(loaded.model)
    attach(loaded, files, None, precision="fp32", seed=0)
    return _with_and_without(loaded, ids, matrices)


def _with_and_without(loaded: LoadedModel, ids: Tensor, matrices: dict[str, Tensor]) -> _Trained:
    adapter = loaded.adapter
    assert adapter is not None
    loaded.model.eval()
    logps = token_logps(loaded.model, ids)
    with adapter.as_reference():
        base = token_logps(loaded.model, ids)
    return _Trained(logps, base, matrices)


def _check(merged: Merged, trained: _Trained, files: ModelFiles, wanted: Wanted, console: Console) -> None:
    """Say how far the merged weights are from what was trained.

    Raises:
        NumericsError: by more than rounding.
    """
    effect = Gap.between(trained.logps, trained.base)
    allowed = allowed_gap(effect.mean)
    gap = Gap.between(merged.logps, merged.unmerged)
    console.result(f"the adapter changes log-probs by {effect}; merging changes them by {gap}")
    loaded_alike = files.quantization is None or (files.quantization != "int8" and wanted.onto == "trained")
    other = Gap.between(merged.logps, trained.logps)
    worst = max(gap.mean, other.mean) if loaded_alike else gap.mean
    if not worst <= allowed:
        raise NumericsError(
            f"the merged model's log-probs are {worst:.1e} nats a token from the adapter's, more than rounding "
            f"({allowed:.1e}): nothing was written. Use the adapter as it is; this is a bug, or a model whose layers "
            "share matrices"
        )
    if wanted.onto == "original" and files.quantization is not None:
        console.warn(
            f"merged into the original matrices: log-probs are {other} from those that were trained, on the base in "
            f"{files.quantization}"
        )
    elif files.quantization == "int8":
        console.say(
            f"in training int8 rounds what goes into a matrix as well, which plain weights don't: log-probs are "
            f"{other} from those that were trained"
        )
    if merged.untied:
        console.say("embeddings and output layer were one matrix; the adapter changes one of them, so they are two now")


def _write(
    output: Path,
    merged: Merged,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    wanted: Wanted,
    ids: Tensor,
    trained: _Trained,
    console: Console,
) -> None:
    dtype = getattr(torch, wanted.dtype)
    model = merged.model.to(dtype)
    weights = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    ends = _ends(tokenizer)
    card = _card(source, wanted)
    try:
        with in_place_of(output, output.with_name(f".partial-{output.name}"), replace=False) as partial:
            write_model(partial, model, tokenizer, weights, dropout=merged.dropout, card=card, ends=ends)
            read_back = load_model(
                str(partial), None, vocabulary=len(tokenizer), attention="plain", name=f"{output} as it was written"
            )
            found = Gap.between(token_logps(read_back.model.eval(), ids), merged.logps)
            effect = Gap.between(trained.logps, trained.base)
            _check_written(found, effect, wanted, console)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{output} could not be written ({getattr(error, 'strerror', None) or error})") from None


def _check_written(found: Gap, effect: Gap, wanted: Wanted, console: Console) -> None:
    if wanted.dtype == "float32":
        if not found.mean <= allowed_gap(effect.mean):
            raise NumericsError(f"what was written differs from what was merged by {found}: nothing was kept")
        return
    share = found.mean / effect.mean if effect.mean else 0.0
    console.result(f"rounding to {wanted.dtype} changes them by {found}")
    if share > _UNDONE:
        console.warn(
            f"that is {share:.2g} times what the adapter changes: this is noticeably another model than the one that "
            "was trained; --dtype float32 keeps it"
        )


def _ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer, as the chat template has it."""
    try:
        return end_tokens([Example("Hello", [], (), "an example")], tokenizer, "auto")
    except DpoError:  # no end of sequence, or a template that wants more than a question
        return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]


def _card(source: Source, wanted: Wanted) -> str:
    files = source.files
    how = "and merged into its base model"
    if files.quantization is not None:
        which = "taken out of the format they were trained in" if wanted.onto == "trained" else "in full precision"
        how += f", whose matrices were held in {files.quantization} in training, {which}"
    if source.settings is None or source.record is None or "about" not in source.record:
        return plain_card(files.path, license_of(files), merged=f"{how}.", weights=wanted.dtype)
    with understood(f"the run of {files.adapter} does not say what a model card needs: copy final/ out of its folder"):
        return model_card(source.settings, source.record, merged=f"{how}.", weights=wanted.dtype)
