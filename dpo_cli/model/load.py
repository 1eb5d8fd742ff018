"""From a hub id or a folder to a model in float32, dropout off, with attention over groups where it can."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from dpo_cli.errors import DpoError
from dpo_cli.model.adapters import Adapter, NewAdapter, add_adapter, hold_in_bfloat16, load_adapter
from dpo_cli.model.attention import GROUP_ATTENTION
from dpo_cli.model.files import ModelFiles, check_folder, check_links, find_files, first_line, understood
from dpo_cli.model.sequence_parallel import why_not as why_not_spread
from dpo_cli.model.weight_files import INDEX, SINGLE, Stored, check_quantised, check_sizes, read_headers, read_index

# Layer kinds whose whole notion of the past is the attention function's. Recurrent, convolution and chunked
# layers keep or mask it elsewhere, and would mix answers without any error.
_GROUP_LAYERS = {"full_attention", "sliding_attention"}


@dataclass
class LoadedModel:
    """A model ready to be trained, and what was changed to get there."""

    model: PreTrainedModel
    can_group: bool
    """Whether its attention goes through ``group_attention``; numbers must still prove it right."""
    why_not: str = ""
    dropout: dict[str, float] = field(default_factory=dict)
    """The configuration's dropout probabilities, set to 0 for training and put back when the model is saved."""
    added_rows: int = 0
    """Rows that the embedding lacked for the tokenizer."""
    adapter: Adapter | None = None
    """The adapter that was put into it."""


def load_tokenizer(path: str, revision: str | None, *, name: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; ``name`` is what messages call it (None = ``model.path=...``).

    Raises:
        DpoError: if the folder or hub id has none.
    """
    name = name or f"model.path={path}"
    check_folder(path, name)
    files = find_files(path, revision, name=name)
    check_links(Path(path))
    try:
        with understood(f"{name}: no tokenizer could be loaded from it"):
            tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
            tokenizer.init_kwargs.pop("auto_map", None)  # names code, and would come into what is written
            tokenizer("a")  # much of what its files say is not looked at before
            return tokenizer
    except DpoError:
        if files.path != path:  # an adapter without a tokenizer of its own
            return load_tokenizer(files.path, files.revision, name=f"{name} on {files.path}")
        raise


def load_model(
    path: str,
    revision: str | None,
    *,
    vocabulary: int,
    attention: str,
    quantization: Mapping[str, Any] | None = None,
    name: str | None = None,
    place: Callable[[nn.Parameter], None] | None = None,
    sequence_parallel: int = 1,
) -> LoadedModel:
    """The model in float32, or with matrices quantised.

    Args:
        path: hub id or folder.
        revision: of the hub repository.
        quantization: keywords of ``from_pretrained`` for it; None = float32.
        vocabulary: the tokenizer's length; if the embedding is shorter, it is lengthened. New rows are the mean of
            the old ones, which is deterministic and an unsurprising token to start from.
        attention: ``auto``, ``groups`` or ``plain``.
        name: what messages call it; None = ``model.path=...``.
        place: what each weight is given to as soon as it is read, to keep a part of it only, say; it may be given one
            more than once. None = all are kept whole, as they are read.
        sequence_parallel: processes that are to share each row; with several, its attention goes through
            ``group_attention`` whatever ``attention`` says.

    Raises:
        DpoError: if it is no model folder, its weights can't be read or aren't all there, or it can't do what
            ``attention`` asks for.
    """
    name = name or f"model.path={path}"
    check_folder(path, name)
    with understood(f"{name} is not a model"):
        config = plain_config(path, revision)
        dropout = switch_off_dropout(config)
        why_not = why_no_groups(config)
        if attention == "plain" and sequence_parallel == 1:
            why_not = "model.attention=plain"
        settings = config.get_text_config().to_dict()
    if sequence_parallel > 1 and (problem := why_not or why_not_spread(config, sequence_parallel)):
        raise not_spread(sequence_parallel, problem)
    try:
        stored = _stored(path, revision)
        check_sizes(settings, stored)
        check_quantised(config.to_dict(), stored)
    except DpoError as error:
        raise DpoError(f"{name}: its weights could not be loaded ({error})") from None
    model = None
    if not why_not:
        try:
            with nullcontext() if place is None else _placed_when_read(config, place):
                model = _build(path, revision, config, GROUP_ATTENTION, name, quantization)
        except DpoError as error:
            if not isinstance(error.__cause__, KeyError | ValueError | TypeError):
                raise
            why_not = f"{config.model_type} can't be built with it ({first_line(error.__cause__)})"
            if sequence_parallel > 1:
                raise not_spread(sequence_parallel, why_not) from None
    if model is None:
        if attention == "groups":
            raise DpoError(f"model.attention=groups: {why_not}; use model.attention=auto")
        with nullcontext() if place is None else _placed_when_read(config, place):
            model = _build(path, revision, config, None, name, quantization)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    rows = model.get_input_embeddings().weight.shape[0]
    added = max(0, vocabulary - rows)
    loaded = LoadedModel(model, can_group=not why_not, why_not=why_not, dropout=dropout, added_rows=added)
    if added:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
        with torch.no_grad():
            for embedding in {model.get_input_embeddings(), model.get_output_embeddings()} - {None}:
                for weight in embedding.parameters(recurse=False):  # a head's bias as well
                    weight[rows:] = weight[:rows].mean(dim=0)
    if place is not None:
        for parameter in model.parameters():
            place(parameter)
    return loaded


def plain_config(path: str, revision: str | None = None) -> PretrainedConfig:
    """A model's configuration without what it says of code, which may be anybody's on the hub (kernels for attention
    and experts, classes beside the model), and of what a forward pass gives back, which is for us to say."""
    config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    config._attn_implementation = None
    config._experts_implementation = None
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if isinstance(part, PretrainedConfig):
            part.return_dict, part.output_attentions, part.output_hidden_states = True, False, False
            vars(part).pop("auto_map", None)
    return config


def not_spread(sequence_parallel: int, problem: str) -> DpoError:
    """That processes can't share this model's rows."""
    return DpoError(f"engine.sequence_parallel={sequence_parallel}: {problem}; use engine.sequence_parallel=1")


def attach(loaded: LoadedModel, files: ModelFiles, new: NewAdapter | None, *, precision: str, seed: int) -> None:
    """Put an adapter into a model that is on its device; all else in the model is frozen.

    Args:
        loaded: float32 or quantised. In bf16 its frozen matrices are held in bfloat16 from now on.
        files: the model's; they name the adapter if there is one already.
        new: the adapter to be made otherwise.
        precision: ``fp32`` or ``bf16``.
        seed: of a new adapter's weights, and of its dropout.

    Raises:
        DpoError: if the adapter does not fit the model, or the model has embeddings that an adapter's files can't hold.
    """
    if loaded.added_rows:
        raise DpoError(
            f"the tokenizer has {loaded.added_rows} tokens more than {files.path} has embeddings for, and an adapter "
            "can't hold those: choose a model.chat_template whose tokens the model knows, or train all weights with "
            "model/adapter=none"
        )
    if precision == "bf16":
        hold_in_bfloat16(loaded.model)
    if new is not None:
        loaded.adapter = add_adapter(loaded.model, new, files, seed=seed)
    else:
        loaded.adapter = load_adapter(loaded.model, files, seed=seed)


@contextmanager
def _placed_when_read(config: Any, place: Callable[[nn.Parameter], None]) -> Iterator[None]:
    """Inside, what ``from_pretrained`` reads is given to ``place``, tensor by tensor.

    All but embeddings and what else is as long as the vocabulary: these are compared, tied and lengthened whole.
    """
    vocabulary = config.get_text_config().vocab_size

    def registered(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        read = getattr(parameter, "_is_hf_initialized", False) and parameter.device.type != "meta"
        if read and not isinstance(module, nn.Embedding) and parameter.shape[:1] != (vocabulary,):
            place(parameter)

    # Or transformers' threads would read all tensors ahead of their use.
    before = os.environ.get(_ONE_BY_ONE)
    os.environ[_ONE_BY_ONE] = "1"
    handle = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        handle.remove()
        os.environ.pop(_ONE_BY_ONE)
        if before is not None:
            os.environ[_ONE_BY_ONE] = before


_ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"


def _build(
    path: str,
    revision: str | None,
    config: Any,
    attention: str | None,
    name: str,
    quantization: Mapping[str, Any] | None,
) -> PreTrainedModel:
    options = dict(quantization or {}) | ({} if attention is None else {"attn_implementation": attention})
    with understood(f"{name}: its weights could not be loaded"):
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # found out below, with a message of ours
            output_loading_info=True,
            **options,
        )
    # transformers fills such weights with random numbers and goes on.
    absent = [*sorted(found["missing_keys"]), *sorted(str(key[0]) for key in found["mismatched_keys"])]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise DpoError(
            f"{name}: its files hold no weights of the right shape for {', '.join(absent[:3])}{more}; expected all "
            "that its config.json calls for"
        )
    return model


def switch_off_dropout(config: Any) -> dict[str, float]:
    """DPO compares log-probs of one model with another's; dropout would make both random."""
    names = [name for name in vars(config) if "dropout" in name or name.endswith("pdrop")]
    values = {name: getattr(config, name) for name in names}
    before = {name: value for name, value in values.items() if type(value) in (int, float) and value != 0}
    for name in before:
        setattr(config, name, 0.0)
    return before


def why_no_groups(config: Any) -> str:
    """Why a model's attention can't go through ``group_attention``; empty = its configuration does not say."""
    text_config = config.get_text_config()
    other = sorted(set(getattr(text_config, "layer_types", None) or []) - _GROUP_LAYERS)
    if other:
        return f"{config.model_type} has layers that groups can't reach: {', '.join(other)}"
    return ""


def _stored(path: str, revision: str | None) -> dict[str, Stored]:
    """What the model's weight files say they hold; of a hub's they are fetched, as they are about to be anyway."""
    if Path(path).is_dir():
        return read_headers(Path(path))

    def fetched(name: str) -> Path | None:
        file = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        return None if file is None else Path(file)

    with suppress(OSError):  # which loading is about to explain
        found = fetched(SINGLE) or fetched(INDEX)
        for shard in read_index(found) if found is not None and found.name == INDEX else ():
            fetched(shard)
        return {} if found is None else read_headers(found.parent)
    return {}
