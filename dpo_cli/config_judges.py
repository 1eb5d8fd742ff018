"""Who judges answers side by side in ``dpo eval``: types and ranges of ``judge``."""

from __future__ import annotations

from typing import Literal

from dpo_cli.config_types import CountFromZero, Positive, PositiveInt, Section


class NoJudgeConfig(Section):
    name: Literal["none"]


class RewardModelConfig(Section):
    name: Literal["reward_model"]
    path: str


class EndpointConfig(Section):
    name: Literal["openai"]
    url: str
    model: str
    key_variable: str | None
    max_tokens: PositiveInt
    parallel: PositiveInt
    retries: CountFromZero
    timeout: Positive
    cache_dir: str | None


JudgeConfig = NoJudgeConfig | RewardModelConfig | EndpointConfig
