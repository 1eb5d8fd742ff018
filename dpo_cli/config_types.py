"""The types that the parts of the configuration are made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Auto = Literal["auto"]
PositiveInt = Annotated[int, Field(gt=0, strict=True)]
CountFromZero = Annotated[int, Field(ge=0, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, strict=True)]
Precision = Literal["auto", "fp32", "bf16"]


class Section(BaseModel):
    """A part of the configuration: no defaults (they are in YAML), no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
