"""The other model of ``dpo eval against=...``: a run with its own loss and reference, or any model under the same."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from dpo_cli.config import EvaluateConfig, filled, read_config
from dpo_cli.config_adapters import NoAdapterConfig
from dpo_cli.errors import DpoError
from dpo_cli.reporting.runs import read_config_file


def other_model(config: EvaluateConfig) -> EvaluateConfig:
    """The same evaluation, of the same rows, of the model that ``against`` names.

    A run's rewards are by its own loss and reference; another model's by the loss and the reference of the first.

    Raises:
        DpoError: a run folder with a configuration that can't be read.
    """
    against = str(config.against)
    file = Path(against, "config.yaml")
    if file.is_file():
        ran = OmegaConf.to_container(OmegaConf.load(file)) if read_config_file(file) else None
        if not isinstance(ran, dict):
            raise DpoError(f"{file} is not a configuration")
        own = config.model_dump(mode="json")
        given = {section: filled(ran.get(section), own[section]) for section in ("model", "loss", "reference")}
        return read_config({**own, **given, "run": against, "step": None}, EvaluateConfig, [file])
    reference = config.reference.path
    if reference is None and config.run is not None:
        reference = config.model.path
    return config.model_copy(
        update={
            "run": None,
            "step": None,
            "model": config.model.model_copy(
                update={"path": against, "revision": None, "adapter": NoAdapterConfig(name="none")}
            ),
            "reference": config.reference.model_copy(update={"path": reference, "mode": "cached"}),
        }
    )
