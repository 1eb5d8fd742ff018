"""The trained model as a plain Hugging Face folder, or peft's, complete or not there, and proven readable."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from dpo_cli import faults
from dpo_cli.errors import StorageError
from dpo_cli.model.adapters import Adapter, saved_names
from dpo_cli.model.files import CONFIG_FILE, WEIGHTS_FILE
from dpo_cli.training.tensor_files import Tensors, in_parts, save
from dpo_cli.whole_folder import in_place_of

_PART = 5 * 10**9
"""Bytes of a file of weights, as transformers has it; the next ones go into another file."""


def export(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: Iterable[tuple[str, Tensor]],
    *,
    dropout: Mapping[str, float],
    card: str,
    ends: Sequence[int],
    first: bool,
) -> None:
    """Write the model in float32. All ranks must call it, as ``weights`` is a collective; only the first writes.

    float32, because rounding to bfloat16 undoes much of an update at DPO's learning rates.

    Args:
        folder: to be made; a complete one that is there is replaced.
        model: gives configuration and names; its own weights are not read.
        tokenizer: saved with its chat template.
        weights: every parameter by its name in ``model``.
        dropout: values of the configuration to put back.
        card: text of README.md.
        ends: tokens that end an answer, at which generation is to stop.
        first: whether this is the first rank.

    Raises:
        StorageError: if what was written is not what was meant.
    """
    if not first:
        for _ in weights:
            pass
        return
    with _whole_or_not(folder) as partial:
        write_model(partial, model, tokenizer, weights, dropout=dropout, card=card, ends=ends)


def write_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: Iterable[tuple[str, Tensor]],
    *,
    dropout: Mapping[str, float],
    card: str,
    ends: Sequence[int],
) -> None:
    """Write a plain Hugging Face folder, and read its weights back.

    Args:
        folder: there, and empty.
        model, tokenizer, weights, dropout, card, ends: as for ``export``.

    Raises:
        StorageError: if what was written is not what was meant.
    """
    _write_settings(folder, model, dropout, ends)
    _save_tokenizer(tokenizer, folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    _write_weights(folder, model, weights)


def rehearse(
    folder: Path,
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dropout: Mapping[str, float],
    ends: Sequence[int],
) -> None:
    """Write all that the end of a run writes but the weights, and remove it: transformers loads configurations that it
    then refuses to save, and after hours of training is too late to hear of it.

    Args:
        folder: to be made.
        model: None = its configuration is not written, as with an adapter.
        tokenizer, dropout, ends: as for ``export``.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
        if model is not None:
            _write_settings(folder, model, dropout, ends)
        _save_tokenizer(tokenizer, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_settings(folder: Path, model: PreTrainedModel, dropout: Mapping[str, float], ends: Sequence[int]) -> None:
    """``config.json`` and ``generation_config.json``."""
    during = {name: getattr(model.config, name) for name in dropout}
    for name, value in dropout.items():
        setattr(model.config, name, value)
    try:
        _stop_at(model, ends)
        model.save_pretrained(folder, state_dict={})
    finally:
        for name, value in during.items():
            setattr(model.config, name, value)


def _write_weights(folder: Path, model: PreTrainedModel, weights: Iterable[tuple[str, Tensor]]) -> None:
    """In the files that transformers would write, which has all weights in memory for it; here it is a few layers."""
    parts: list[dict[str, Tensor]] = []
    files: list[Path] = []
    for part in in_parts(weights, _PART, _layer):
        # On disk some families' parameters have other names and cuts than in memory (experts, above all).
        state = {name: tensor.contiguous() for name, tensor in revert_weight_conversion(model, part).items()}
        files.append(folder / f"part-{len(files) + 1:05}.safetensors")
        save(state, files[-1])
        _verify_file(files[-1], state)
        parts.append({name: tensor.to("meta") for name, tensor in state.items()})
    if len(files) == 1:
        files[0].rename(folder / "model.safetensors")
        return
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    for file, name in zip(files, names, strict=True):
        file.rename(folder / name)
    tensors = [tensor for part in parts for tensor in part.values()]
    totals = {"total_parameters": sum(t.numel() for t in tensors), "total_size": sum(t.nbytes for t in tensors)}
    where = {key: name for part, name in zip(parts, names, strict=True) for key in part}
    index = {"metadata": totals, "weight_map": dict(sorted(where.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _layer(name: str) -> str:
    """What a parameter is converted together with, where it is: ``model.layers.3``; else it is on its own."""
    found = re.match(r"(?:.*?\.)??\d+(?=\.)", name)
    return found.group() if found else name


def export_adapter(
    folder: Path,
    adapter: Adapter,
    tokenizer: PreTrainedTokenizerBase,
    weights: Iterable[tuple[str, Tensor]],
    *,
    card: str,
    first: bool,
) -> None:
    """Write an adapter as peft does: its configuration, which names the base model, and its weights in float32.

    All ranks must call it, as ``weights`` is a collective; only the first writes.

    Args:
        folder: to be made; a complete one that is there is replaced.
        adapter: its own weights are not read.
        tokenizer: saved with its chat template.
        weights: every trained parameter by its name in the model.
        card: text of README.md.
        first: whether this is the first rank.

    Raises:
        StorageError: if what was written is not what was meant.
    """
    state = saved_names((name, tensor.contiguous()) for name, tensor in weights if first)
    if not first:
        return
    with _whole_or_not(folder) as partial:
        (partial / CONFIG_FILE).write_text(json.dumps(adapter.settings(), indent=2, sort_keys=True), encoding="utf-8")
        save(state, partial / WEIGHTS_FILE)
        _save_tokenizer(tokenizer, partial)
        (partial / "README.md").write_text(card, encoding="utf-8")
        _verify_file(partial / WEIGHTS_FILE, state)


@contextmanager
def _whole_or_not(folder: Path) -> Iterator[Path]:
    """A folder to write in, which takes the place of ``folder`` once everything is in it.

    Raises:
        StorageError: if it can't be written.
    """
    place = folder.resolve()  # a link to a larger disk stays one
    try:
        with in_place_of(place, place.with_name(f".partial-{place.name}")) as partial:
            yield partial
            faults.reached("final")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{folder} could not be written ({reason}); checkpoints are as they were") from None


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """
    Raises:
        OSError: it can't be written; ``tokenizers``, in Rust, raises a plain Exception for that.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise OSError(str(error)) from error


def _stop_at(model: PreTrainedModel, ends: Sequence[int]) -> None:
    """Let generation stop where the answers that were trained on end, also if only a chat template brought it."""
    config = model.generation_config
    if config is None:
        return
    before = config.eos_token_id
    known = before if isinstance(before, list) else [] if before is None else [before]
    if new := [token for token in ends if token not in known]:
        config.eos_token_id = [*known, *new]


def _verify_file(file: Path, state: Mapping[str, Tensor]) -> None:
    """Read weights back and compare.

    Raises:
        StorageError: if a parameter is missing, empty, not finite or different.
    """
    tensors = Tensors([file])  # opened anew for each: all that is read through one opening stays in memory
    if missing := sorted(state.keys() - tensors.keys()):
        raise StorageError(f"{file} lacks {len(missing)} parameters, {missing[0]} first")
    for name, meant in state.items():
        tensor = tensors[name]
        if tensor.numel() == 0 or not torch.equal(tensor, meant) or not torch.isfinite(tensor).all():
            raise StorageError(f"{file}: {name} is not what was trained; the disk or a library is at fault")
