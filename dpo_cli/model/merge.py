"""An adapter's product added to the matrices of its base model, and how far the log-probs are from what they were."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dpo_cli.errors import DpoError, NumericsError
from dpo_cli.model.files import ModelFiles, adapter_files
from dpo_cli.model.load import load_model

SEQUENCES, LENGTH = 8, 32
"""Of the tokens that models are compared on."""
_ROUNDING = 5e-5
"""Nats a token, on average, that float32 alone may make of the same product in another order. Measured: 6e-6 in 30
layers."""
_SHARE = 0.01
_MOST = 1e-3


@dataclass(frozen=True)
class Gap:
    """How far two models' log-probs are apart, in nats a token."""

    mean: float
    largest: float

    @staticmethod
    def between(one: Tensor, other: Tensor) -> Gap:
        """Of two results of ``token_logps``.

        Raises:
            NumericsError: one of them is not finite.
        """
        if not bool(torch.isfinite(one).all() and torch.isfinite(other).all()):
            raise NumericsError("log-probs are not finite: the adapter or its base model is spoilt")
        difference = (one - other).abs()
        return Gap(float(difference.mean()), float(difference.max()))

    def __str__(self) -> str:
        return f"{self.mean:.1e} nats a token ({self.largest:.1e} at most)"


@dataclass(frozen=True)
class Merged:
    """A model with an adapter's product in its matrices, and what it was compared with."""

    model: PreTrainedModel
    dropout: dict[str, float]
    """The configuration's dropout probabilities, to be put back when the model is saved."""
    untied: bool
    """Whether embeddings and output layer were one matrix, and are two now, as the adapter changes one of them."""
    unmerged: Tensor
    """``token_logps`` of the same base with the adapter beside it."""
    logps: Tensor
    """``token_logps`` of the merged model."""


def probe_tokens(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The fixed sequences that models are compared on, ``[SEQUENCES, LENGTH]``: ordinary tokens, drawn by a seed."""
    ordinary = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    drawn = np.random.default_rng(0).choice(ordinary, (SEQUENCES, LENGTH))
    return torch.from_numpy(drawn.astype(np.int64))


def token_logps(model: nn.Module, ids: Tensor) -> Tensor:
    """Log-probs of each token after the first, given those before it, ``[S, L - 1]`` float64, on the CPU."""
    device = next(model.parameters()).device
    with torch.no_grad():
        logits = model(input_ids=ids.to(device), use_cache=False).logits[:, :-1].double().cpu()
    logps: Tensor = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return logps


def allowed_gap(effect: float) -> float:
    """How far apart, in nats a token on average, two computations of the same model may be.

    A hundredth of what the adapter changes (a module that was left out, or a wrong scale, is more), and what float32
    rounds; never more than ``_MOST``.
    """
    return min(_MOST, _ROUNDING + _SHARE * effect)


def dequantised(model: nn.Module) -> dict[str, Tensor]:
    """What the matrices held in 4 or 8 bits stand for, by the names of their weights, in float32 on the CPU."""
    from peft.utils.integrations import dequantize_module_weight

    found = {}
    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt") and not hasattr(module, "base_layer"):
            plain = name.replace(".base_layer", "")
            with torch.no_grad():
                found[f"{plain}.weight"] = dequantize_module_weight(module).detach().float().cpu()
    return found


def merge(files: ModelFiles, matrices: Mapping[str, Tensor], *, vocabulary: int, ids: Tensor) -> Merged:
    """Load a base model in float32 on the CPU, and let peft merge an adapter into it.

    Args:
        files: name both; how matrices were held is not looked at.
        matrices: to be put in the place of the base's own, by name.
        vocabulary: the tokenizer's length.
        ids: to compare on.

    Raises:
        DpoError: the base model lacks what the adapter is for.
        NumericsError: what came of it is not finite.
    """
    assert files.adapter is not None
    loaded = load_model(
        files.path, files.revision, vocabulary=vocabulary, attention="plain", name=f"the base model {files.path}"
    )
    own = dict(loaded.model.named_parameters())
    with torch.no_grad():
        for name, matrix in matrices.items():
            own[name].copy_(matrix.reshape(own[name].shape))
    loaded.model.eval()
    wrapped = _with_adapter(loaded.model, files)
    unmerged = token_logps(wrapped, ids)
    untied = _untie(loaded.model)
    try:
        model: Any = wrapped.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise NumericsError(f"the adapter {files.adapter} can't be merged: {error}") from None
    model._hf_peft_config_loaded = False
    return Merged(model, loaded.dropout, untied, unmerged, token_logps(model, ids))


def _with_adapter(model: PreTrainedModel, files: ModelFiles) -> Any:
    """By peft's own wrapper and loader, which are not those that training uses."""
    from peft import PeftModel

    folder = adapter_files(str(files.adapter), files.adapter_revision)[0].parent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is missing or too much was found out when it was loaded for scoring
        try:
            return PeftModel.from_pretrained(model, str(folder), torch_device="cpu")
        except (ValueError, RuntimeError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DpoError(f"the adapter {files.adapter} does not fit {files.path}: {reason}") from None


def _untie(model: PreTrainedModel) -> bool:
    """Make embeddings and output layer two matrices, if they are one and the adapter changes only one of them."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    changed = [hasattr(end, "get_base_layer") for end in ends]  # it is a layer of peft's
    plain = [end.get_base_layer() if wrapped else end for end, wrapped in zip(ends, changed, strict=True)]
    if None in plain or plain[0].weight is not plain[1].weight or not any(changed):
        return False
    plain[1].weight = nn.Parameter(plain[1].weight.detach().clone(), requires_grad=False)
    for config in {id(part): part for part in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    return True
