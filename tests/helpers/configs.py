"""Typed configurations of a command line, without the command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from dpo_cli.compose import SCHEMAS, _register_resolvers, _with_run
from dpo_cli.config import TrainConfig, read_config
from dpo_cli.config_folder import config_folder


def composed(command: str, words: Sequence[str]) -> Any:
    """What Hydra's own composition of ``words`` comes to, checked by the command's schema.

    Raises:
        ConfigError: if the schema refuses it.
    """
    _register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base=None):
        found = compose(command.replace("-", "_"), list(words))
    GlobalHydra.instance().clear()
    tree = OmegaConf.to_container(found, resolve=True, throw_on_missing=False)
    assert isinstance(tree, dict)
    values = {str(key): value for key, value in tree.items() if key != "hydra"}
    return read_config(_with_run(values, words), SCHEMAS[command])


def with_changes(base: TrainConfig, words: Sequence[str]) -> TrainConfig:
    """What a few words would change."""
    config = base
    for word in words:
        key, _, value = word.partition("=")
        section, _, name = key.partition(".")
        if name:
            changed = getattr(config, section).model_copy(update={name: yaml.safe_load(value)})
            config = config.model_copy(update={section: changed})
    return config
