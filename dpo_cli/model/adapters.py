"""Adapters through peft: low-rank weights beside a model's frozen matrices, LoRA and its kin.

peft's layers are put into the model itself, without its wrapper around it, so that everything else sees the model it
knows. The adapter that is trained is ``policy``; where the reference has an adapter of its own in the same model, it
is ``reference``.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dpo_cli.data.collate import FlatBatch
from dpo_cli.data.limits import within
from dpo_cli.errors import DpoError, one_line
from dpo_cli.model.dropout import GroupDropout, Noise
from dpo_cli.model.files import ModelFiles, adapter_files, understood
from dpo_cli.model.policy import Policy
from dpo_cli.model.weight_files import Stored, read_header

POLICY, REFERENCE = "policy", "reference"
_PREFIX = "base_model.model."
"""What peft's files put before the name of each weight."""
PATIENCE = 10.0
"""Seconds for all patterns of an adapter and all names of modules; ordinary ones take milliseconds."""


@dataclass(frozen=True)
class NewAdapter:
    """An adapter to be made."""

    kind: str
    """``lora``, ``dora``, ``rslora``, ``qlora`` or ``qlora_8bit``."""
    r: int
    alpha: int
    dropout: float
    target_modules: str | Sequence[str]
    """``all-linear``, or names of modules."""


class Adapter:
    """The adapter in a model, and the ways to look at the model: with it, without it, with the reference's."""

    def __init__(self, model: PreTrainedModel, config: Any, noise: Noise, *, new: bool) -> None:
        """
        Args:
            model: with peft's layers in it.
            config: peft's.
            noise: of its dropout.
            new: whether the model before training is the base alone.
        """
        self.model = model
        self.config = config
        self.noise = noise
        self.new = new
        self.second = False
        """Whether the reference has an adapter of its own in the model."""

    def __str__(self) -> str:
        weights = sum(parameter.numel() for parameter in self.weights_of(POLICY).values())
        kind = "DoRA" if self.config.use_dora else "rsLoRA" if self.config.use_rslora else "LoRA"
        return (
            f"{kind} of rank {self.config.r}, alpha {self.config.lora_alpha:g}, dropout {self.config.lora_dropout:g} "
            f"on {', '.join(sorted(self.config.target_modules))}: {weights / 1e6:,.2f} million weights"
        )

    def settings(self) -> dict[str, Any]:
        """What ``adapter_config.json`` says of it."""
        settings = self.config.to_dict()
        plain = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
        return {**plain, "inference_mode": True}

    def layers(self) -> list[Any]:
        """peft's layers."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]

    def weights_of(self, adapter: str) -> dict[str, nn.Parameter]:
        """An adapter's parameters, by the names in the model that those of the trained adapter have."""
        return {
            _renamed(name, adapter, POLICY): parameter
            for name, parameter in self.model.named_parameters()
            if _is_of(name, adapter)
        }

    def keep_reference(self) -> None:
        """Put a frozen copy of the adapter as it is now beside it, for ``as_reference``."""
        config = copy.deepcopy(self.config)
        config.lora_dropout = 0.0
        _inject(self.model, config, REFERENCE)
        self.second = True
        now = self.weights_of(POLICY)
        for name, parameter in self.weights_of(REFERENCE).items():
            parameter.data = now[name].detach().clone()

    def reset_magnitudes(self) -> None:
        """DoRA's magnitudes as they are where the product is zero, in float32: peft rounded them."""
        for layer in self.layers():
            layer.lora_magnitude_vector[POLICY].update_layer(
                base_layer=layer.get_base_layer(),
                lora_A=layer.lora_A[POLICY].weight,
                lora_B=layer.lora_B[POLICY].weight,
                scaling=layer.scaling[POLICY],
            )

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Inside, the model is the reference: with the copy that ``keep_reference`` made, else without any adapter."""
        layers = self.layers()
        # Not peft's own switches: they freeze and thaw parameters, which DeepSpeed must not see.
        for layer in layers:
            layer._active_adapter = [REFERENCE]
            layer._disable_adapters = not self.second
        try:
            yield
        finally:
            for layer in layers:
                layer._active_adapter = [POLICY]
                layer._disable_adapters = False


def add_adapter(model: PreTrainedModel, wanted: NewAdapter, files: ModelFiles, *, seed: int) -> Adapter:
    """Put a new adapter into a model: its product is zero, so the model is what it was.

    Args:
        model: float32 or quantised, on its device.
        wanted: what kind.
        files: the model's, which the adapter will name as its base.
        seed: of its first weights, and of its dropout.

    Raises:
        DpoError: if the model has no such modules.
    """
    from peft import LoraConfig

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=wanted.r,
        lora_alpha=wanted.alpha,
        lora_dropout=wanted.dropout,
        target_modules=_targets(model, wanted.target_modules),
        use_dora=wanted.kind == "dora",
        use_rslora=wanted.kind == "rslora",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        base_model_name_or_path=_lasting(files.path),
        revision=files.revision,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _inject(model, config, POLICY)
    adapter = _ready(model, config, seed, new=True)
    if config.use_dora:
        adapter.reset_magnitudes()
    return adapter


def load_adapter(model: PreTrainedModel, files: ModelFiles, *, seed: int) -> Adapter:
    """Put an adapter that is there into its base model.

    Args:
        model: float32 or quantised, on its device.
        files: name the adapter.
        seed: of its dropout.

    Raises:
        DpoError: if it is of a kind not supported here, or its weights are not those its configuration calls for.
    """
    from peft import LoraConfig
    from peft.utils import set_peft_model_state_dict

    assert files.adapter is not None
    name = f"the adapter {files.adapter}"
    settings_file, weights_file = adapter_files(files.adapter, files.adapter_revision)
    with understood(f"{name}: {settings_file} can't be read"):
        settings = dict(json.loads(settings_file.read_text(encoding="utf-8")))
        if reason := _unsupported(settings):
            raise DpoError(f"{name} {reason}; expected plain LoRA weights (LoRA, DoRA or rsLoRA)")
        _check_numbers(settings, read_header(weights_file), name)
        config = LoraConfig.from_peft_type(**settings)
    config.inference_mode, config.init_lora_weights = False, True
    config.base_model_name_or_path, config.revision = _lasting(files.path), files.revision
    with understood(f"{name} does not fit {files.path}"):
        _check_patterns(config, model, name)
        weights = load_file(weights_file)
        _inject(model, config, POLICY)
        problems: Any = set_peft_model_state_dict(model, weights, adapter_name=POLICY)
    adapter = _ready(model, config, seed, new=False)
    absent = [key for key in problems.missing_keys if key in adapter.weights_of(POLICY)]
    if absent or problems.unexpected_keys:
        which = f"lack {absent[0]}" if absent else f"hold {problems.unexpected_keys[0]}, which is none of its own"
        raise DpoError(f"{name} does not fit {files.path}: its weights {which}")
    return adapter


def saved_names(weights: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The trained adapter's weights by the names that peft's files give them.

    Args:
        weights: by their names in the model.
    """
    found = {}
    for name, tensor in weights:
        module, _, rest = name.partition(f".{POLICY}")
        # A magnitude of DoRA is a module with one weight, but saved as if it were the weight itself.
        found[f"{_PREFIX}{module}" + ("" if module.endswith("lora_magnitude_vector") else rest)] = tensor
    return found


class AsReference(Policy):
    """A policy's own model as the reference: with its adapter off, or with the reference's in its place."""

    def __init__(self, policy: Policy, adapter: Adapter) -> None:
        """
        Args:
            policy: whose model it is.
            adapter: that model's.
        """
        super().__init__(policy.model, precision=policy.precision, groups=policy.groups, spread=policy.spread)
        self.adapter = adapter

    def forward(self, batch: FlatBatch, concentration: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """As ``Policy.forward``, without gradient."""
        with torch.no_grad(), self.adapter.as_reference():
            return super().forward(batch, concentration)


def hold_in_bfloat16(model: PreTrainedModel) -> None:
    """Hold the frozen matrices in bfloat16, which autocast would round them to at every use anyway.

    So the numbers are to the bit those of float32 weights under autocast; embeddings and norms, which autocast leaves
    in float32, stay so, and a head that is tied to the embeddings with them. Done before an adapter is put in.
    """
    kept = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in kept:
            for parameter in module.parameters(recurse=False):
                if parameter.dtype == torch.float32:
                    parameter.data = parameter.data.to(torch.bfloat16)


def _ready(model: PreTrainedModel, config: Any, seed: int, *, new: bool) -> Adapter:
    noise = Noise(seed)
    for name, module in model.named_modules():
        dropouts = getattr(module, "lora_dropout", {})
        if POLICY in dropouts and isinstance(dropouts[POLICY], nn.Dropout):
            dropouts[POLICY] = GroupDropout(dropouts[POLICY].p, noise, name)
    return Adapter(model, config, noise, new=new)


def _inject(model: PreTrainedModel, config: Any, name: str) -> None:
    """Put peft's layers into the model. Of all parameters, only those of ``POLICY`` are to be trained."""
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft's, about what is decided here on purpose
        inject_adapter_in_model(config, model, adapter_name=name)
    model._hf_peft_config_loaded = False  # or transformers would save and load adapters by itself
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_of(parameter_name, POLICY))
        if _is_of(parameter_name, name):  # peft gives it the matrix's own format
            parameter.data = parameter.data.float()
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module._active_adapter = [POLICY]


def _is_of(name: str, adapter: str) -> bool:
    """Whether a parameter is an adapter's: ``...q_proj.lora_A.policy.weight``."""
    _, found, rest = name.rpartition(".lora_")
    return bool(found) and rest.split(".")[1] == adapter


def _renamed(name: str, adapter: str, other: str) -> str:
    """The name of another adapter's parameter at the same place."""
    before, found, rest = name.rpartition(".lora_")
    kind, _, *last = rest.split(".")
    return ".".join([f"{before}{found}{kind}", other, *last])


def _targets(model: PreTrainedModel, wanted: str | Sequence[str]) -> list[str]:
    """The modules' names; of ``all-linear`` the last parts of the names of all matrices but the output layer."""
    head = model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    there = sorted({name.rpartition(".")[2] for name in linear})
    if isinstance(wanted, str):
        return there
    for name in wanted:
        if not any(f".{full}".endswith(f".{name}") for full in linear):
            raise DpoError(
                f"model.adapter.target_modules: {name} is not a matrix of this model; there are {', '.join(there)}"
            )
    return list(wanted)


def _unsupported(settings: Mapping[str, Any]) -> str:
    """Why training can't go on from an adapter; empty if it can."""
    if settings.get("peft_type") != "LORA":
        return f"is of another type ({_shown('peft_type', settings.get('peft_type'))})"
    if settings.get("bias", "none") != "none":
        return f"has biases ({_shown('bias', settings['bias'])})"
    for key in ("modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters", "lora_bias"):
        if settings.get(key):
            return f"has {key}"
    if settings.get("init_lora_weights", True) not in (True, False, "gaussian", "eva", "orthogonal"):
        shown = _shown("init_lora_weights", settings["init_lora_weights"])
        return f"changes its base model as well ({shown})"
    other = ("alora_invocation_tokens", "arrow_config", "velora_config", "monteclora_config", "use_bdlora")
    return next((f"has {key}" for key in other if settings.get(key)), "")


def _check_numbers(settings: Mapping[str, Any], tensors: Mapping[str, Stored], name: str) -> None:
    """Refuse numbers that are none, and a rank far larger than the weights, before memory is taken for it."""
    widest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    ranks = {"r": settings.get("r", 8), **dict(settings.get("rank_pattern") or {})}
    for key, rank in ranks.items():
        if type(rank) is not int or rank < 1:
            raise DpoError(f"{name} says {_shown(key, rank)}; expected a rank of 1 or more")
        if rank > widest:
            raise DpoError(f"{name} says it has rank {rank:,}, and its weights have no side longer than {widest:,}")
    for key, alpha in {
        "lora_alpha": settings.get("lora_alpha", 8),
        **dict(settings.get("alpha_pattern") or {}),
    }.items():
        if type(alpha) not in (int, float) or not math.isfinite(alpha):
            raise DpoError(f"{name} says {_shown(key, alpha)}; expected a number")
    dropout = settings.get("lora_dropout", 0.0)
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise DpoError(
            f"{name} says {_shown('lora_dropout', dropout)}; expected a share from 0 up to, not including, 1"
        )
    for tensor, stored in tensors.items():
        if "F" not in stored.dtype:
            raise DpoError(f"{name} holds {one_line(tensor)} as {stored.dtype}, in which no weights are trained")


def _shown(key: str, value: Any) -> str:
    return one_line(f"{key}={value!r}", 100)


def _check_patterns(config: Any, model: PreTrainedModel, name: str) -> None:
    """Ask of each module whether it is to have an adapter, and its rank: regular expressions may take for ever."""
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    refusal = (
        f"{name} has patterns that take more than {PATIENCE:g} s to be compared with the names of modules: look at "
        "target_modules, exclude_modules, layers_pattern, rank_pattern and alpha_pattern in its adapter_config.json"
    )
    with within(PATIENCE, refusal):
        for module, _ in model.named_modules():
            if check_target_module_exists(config, module):
                get_pattern_key(config.rank_pattern, module)
                get_pattern_key(config.alpha_pattern, module)


def _lasting(path: str) -> str:
    """A path that means the same from any folder; a hub id as it is."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path
