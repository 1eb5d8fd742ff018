"""Which files the configuration's models stand for."""

from __future__ import annotations

from dpo_cli.config import ModelConfig, ReferenceConfig
from dpo_cli.config_adapters import ExistingAdapterConfig, NewAdapterConfig
from dpo_cli.errors import DpoError
from dpo_cli.model.adapters import NewAdapter
from dpo_cli.model.files import ModelFiles, find_files


def policy_files(model: ModelConfig) -> ModelFiles:
    """The model before training: with its adapter, if training goes on from one.

    Raises:
        DpoError: if ``model.path`` and ``model.adapter`` don't go together.
    """
    adapter = model.adapter
    existing = isinstance(adapter, ExistingAdapterConfig)
    files = find_files(
        model.path,
        model.revision,
        adapter=adapter.path if isinstance(adapter, ExistingAdapterConfig) else None,
        quantization=adapter.quantization,
    )
    if existing and files.adapter is None:
        raise DpoError(
            f"model/adapter=existing: model.path={model.path} is not an adapter; name one with model.adapter.path, or "
            "start a new one with model/adapter=lora"
        )
    if isinstance(adapter, NewAdapterConfig) and files.adapter is not None:
        raise DpoError(
            f"model/adapter={adapter.name} makes a new adapter, and model.path={model.path} is one already: to go on "
            "from it choose model/adapter=existing, to train a new one on top of it merge it into its base "
            "first, with dpo merge"
        )
    return files


def new_adapter(model: ModelConfig) -> NewAdapter | None:
    """The adapter that training puts into the model; None where there is none to make."""
    adapter = model.adapter
    return NewAdapter(**adapter.settings()) if isinstance(adapter, NewAdapterConfig) else None


def reference_place(config: ReferenceConfig, model: ModelConfig) -> ModelFiles:
    """The reference model: the policy as it is before training, unless another is named."""
    if config.path is None:
        return policy_files(model)
    return find_files(config.path, config.revision, name=f"reference.path={config.path}")
