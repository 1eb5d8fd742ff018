"""What a forward pass keeps for the backward pass, found without computing anything.

The model's own code is run on tensors without content (torch's ``FakeTensorMode``), and what autograd saves is counted.
So it is right for every family that can be trained here, with or without an adapter, and no formula has to be kept in
step with the models. All layers of a kind keep the same, so few are run.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

from dpo_cli.data.collate import FlatBatch, collate
from dpo_cli.data.types import Group, Pair
from dpo_cli.model.adapters import NewAdapter, add_adapter, hold_in_bfloat16
from dpo_cli.model.attention import GROUP_ATTENTION, Segments
from dpo_cli.model.attention_varlen import Kernel, Scoring, Stretches, attend
from dpo_cli.model.checkpointing import kept_operators
from dpo_cli.model.dropout import Noise
from dpo_cli.model.files import ModelFiles
from dpo_cli.model.load import switch_off_dropout

_KERNEL_ATTENTION = "dpo_groups_kernel"
"""Group attention as it is on a GPU, of which only what it keeps is right."""


@dataclass(frozen=True)
class Activations:
    """Bytes that the forward pass of one micro-batch leaves for its backward pass."""

    layers: float
    """In all layers, of its tokens."""
    layer: float
    """In one of them: what is there at a time where layers are run again in the backward pass."""
    inputs: float
    """What goes into all layers, which is all that is kept where they are run again."""
    selected: float
    """Beside that the results of all layers' matrix products and attention, for selective checkpointing."""
    head: float
    """Outside the layers: embeddings, the last norm, and what the head keeps besides the logits."""
    copies: float
    """Weights in bfloat16, made by autocast and kept until the backward pass has used them."""
    layer_copies: float
    """Those of one layer."""

    def scaled(self, share: float) -> Activations:
        """Of a micro-batch of the same kind with ``share`` as many tokens."""
        return Activations(
            self.layers * share,
            self.layer * share,
            self.inputs * share,
            self.selected * share,
            self.head * share,
            self.copies,
            self.layer_copies,
        )

    def spread(self, processes: int) -> Activations:
        """On each of several processes that share the row.

        What attention gives and what its output projection keeps are then two things, in float32 as large as what goes
        into a layer.
        """
        if processes == 1:
            return self
        part = self.scaled(1 / processes)
        more = 1 + self.inputs / self.layers
        return replace(part, layers=part.layers * more, layer=part.layer * more)


def activations(
    config: Any, batch: FlatBatch, *, precision: str, kernel: bool, adapter: NewAdapter | None = None
) -> Activations:
    """What a micro-batch keeps.

    Args:
        config: the model's, of transformers.
        batch: the micro-batch; its token ids don't matter.
        precision: ``fp32`` or ``bf16``.
        kernel: whether attention is one call of a variable-length kernel, as on a GPU in bf16; else as on a CPU.
        adapter: to be trained instead of the model's own weights.
    """
    period = _period(config)

    def kept(layers: int) -> tuple[_Kept, _Kept]:
        """Of the batch; and of so little that it is weights' copies alone, which there are none of in float32."""
        short = _cut(config, layers)
        found = _kept(short, batch, precision, kernel, adapter)
        copies = _Kept(0.0, 0.0) if precision == "fp32" else _kept(short, _one_token(), precision, kernel, adapter)
        return found, copies

    few, more = kept(period), kept(2 * period)
    layer, layer_copies = ((more[i].all - few[i].all) / period for i in (0, 1))
    count = config.get_text_config().num_hidden_layers
    rest, rest_copies = (few[i].all - period * each for i, each in ((0, layer), (1, layer_copies)))
    return Activations(
        layers=count * (layer - layer_copies),
        layer=layer - layer_copies,
        inputs=count * 4.0 * config.get_text_config().hidden_size * len(batch.input_ids),
        selected=count * (more[0].selected - few[0].selected) / period,
        head=rest - rest_copies,
        copies=count * layer_copies + rest_copies,
        layer_copies=layer_copies,
    )


def _period(config: Any) -> int:
    """Layers after which their kinds repeat."""
    kinds = list(getattr(config.get_text_config(), "layer_types", None) or [])
    return next((n for n in range(1, len(kinds) // 2 + 1) if kinds[n:] == kinds[:-n]), max(1, len(kinds) // 2))


def _cut(config: Any, layers: int) -> Any:
    """The same model with its first layers alone."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    text.num_hidden_layers = layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == config.get_text_config().num_hidden_layers:
            setattr(text, name, value[:layers])
    return short


class _Kept(NamedTuple):
    """Bytes."""

    all: float
    """Of all tensors that autograd saves, each once, the weights aside."""
    selected: float
    """Of the results of matrix products and of attention."""


def _kept(config: Any, batch: FlatBatch, precision: str, kernel: bool, adapter: NewAdapter | None) -> _Kept:
    kept: dict[int, tuple[Any, int]] = {}
    model, noise = outline(config, adapter, precision, attention=_KERNEL_ATTENTION if kernel else GROUP_ATTENTION)
    with FakeTensorMode(allow_non_fake_inputs=True), _Products() as products:
        _without_content(model)
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage, storage.nbytes()  # held, so that no other gets its number
            return tensor

        dropping = noise.of(0) if noise is not None else nullcontext()
        with dropping, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if noise is not None:
                noise.look_at(batch, share=True)
            held = _forward(model, batch, precision)
    total = float(sum(size for _, size in kept.values()))
    del held
    return _Kept(total, products.bytes)


def outline(
    config: Any, adapter: NewAdapter | None, precision: str, *, attention: str = GROUP_ATTENTION
) -> tuple[PreTrainedModel, Noise | None]:
    """A model as it is trained, without its weights: on the meta device. With its dropout's noise, if it has any.

    Args:
        config: of transformers.
        adapter: to be put in; matrices in 4 or 8 bits are as they are in 16.
        precision: ``fp32`` or ``bf16``, in which the frozen matrices beside an adapter are held.
        attention: the function.
    """
    config = copy.deepcopy(config)
    switch_off_dropout(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
        if adapter is None:
            return model, None
        if precision == "bf16":
            hold_in_bfloat16(model)
        model.train()
        made = add_adapter(model, adapter, ModelFiles(""), seed=0)
    return model, made.noise if adapter.dropout else None


def _without_content(model: nn.Module) -> None:
    """Parameters and buffers of a model on the meta device as a CPU's, under the fake mode that is on."""
    known: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad)
                module._parameters[name] = known.setdefault(id(parameter), made)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


class _Products(TorchDispatchMode):
    """Adds up the results of matrix products and of attention in a kernel.

    And lets experts' matrix products have any number format; torch's fake ones know bfloat16 alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._grouped_mm.default:
            left, right = args[:2]
            result = left.new_empty(left.shape[0], right.shape[-1])
        else:
            result = func(*args, **(kwargs or {}))
        if func in kept_operators():
            first = result[0] if isinstance(result, tuple | list) else result
            self.bytes += first.nbytes
        return result


def _forward(model: PreTrainedModel, batch: FlatBatch, precision: str) -> Tensor:
    """As ``Policy`` does it, up to the logits."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits: Tensor = model(
            input_ids=torch.from_numpy(batch.input_ids)[None],
            position_ids=torch.from_numpy(batch.position_ids)[None],
            segments=Segments(batch.layouts, torch.device("cpu")),
            logits_to_keep=torch.from_numpy(batch.rows),
            use_cache=False,
        ).logits
    return logits


class _Keeps(torch.autograd.Function):
    """What variable-length kernels keep: what they are given, what they give, and a number per query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.mm(query.new_empty(query.shape[0], 0), query.new_empty(0, query[0].numel())).view(query.shape)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:2], dtype=torch.float32))
        return out


def _call(query: Tensor, key: Tensor, value: Tensor, stretches: Stretches, scoring: Scoring) -> Tensor:
    out: Tensor = _Keeps.apply(query, key, value)
    return out


def _kernel_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments,
    **others: Any,
) -> tuple[Tensor, None]:
    """As ``group_attention`` where there is a kernel."""
    states = (query, key, value)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    return attend(Kernel("", _call, softcaps=True), segments.stretches, *states, Scoring(), dtype), None


AttentionInterface.register(_KERNEL_ATTENTION, _kernel_attention)


def _one_token() -> FlatBatch:
    """What is kept of it is nothing beside the weights' copies."""
    one = np.zeros(1, dtype=np.int32)
    return collate([Group(one, (one, one), (Pair(0, 1),), "")])
