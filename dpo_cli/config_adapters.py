"""The types of ``model.adapter.*``: one model per kind, so that a key a kind makes no use of is an unknown one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dpo_cli.config_types import PositiveInt, Section, Share


class NoAdapterConfig(Section):
    """All weights are trained, unless ``model.path`` is an adapter: then that is gone on with."""

    name: Literal["none"]
    quantization: ClassVar[None] = None


class ExistingAdapterConfig(Section):
    """An adapter that is there already: its rank, modules and dropout are what its own files say."""

    name: Literal["existing"]
    path: str | None
    quantization: Literal["nf4", "nf4_double", "int8"] | None


class NewAdapterConfig(Section):
    name: Literal["lora", "dora", "rslora", "qlora_8bit"]
    r: PositiveInt
    alpha: PositiveInt
    dropout: Share
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)]

    @property
    def quantization(self) -> str | None:
        """How the base's matrices are held; None = as they are."""
        return "int8" if self.name == "qlora_8bit" else None

    def settings(self) -> dict[str, Any]:
        """As ``model.adapters.NewAdapter`` takes them."""
        return {"kind": self.name, **self.model_dump(include={"r", "alpha", "dropout", "target_modules"})}


class QloraConfig(NewAdapterConfig):
    name: Literal["qlora"]  # type: ignore[assignment]
    double_quant: bool

    @property
    def quantization(self) -> str | None:
        """How the base's matrices are held."""
        return "nf4_double" if self.double_quant else "nf4"


AdapterConfig = NoAdapterConfig | ExistingAdapterConfig | NewAdapterConfig | QloraConfig
