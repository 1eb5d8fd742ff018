"""Tiny random models of many families, and groups of every awkward shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from dpo_cli.data.types import Group, Pair

VOCABULARY = 97
WINDOW = 8

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}

FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_COMMON),
    "llama-tied": lambda: LlamaConfig(**_COMMON, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_COMMON),
    "qwen3": lambda: Qwen3Config(**_COMMON, head_dim=16),
    "gemma2": lambda: Gemma2Config(
        **_COMMON,
        head_dim=16,
        sliding_window=WINDOW,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=4.0,
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **_COMMON,
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=24,
    ),
    "mistral-window": lambda: MistralConfig(**_COMMON, sliding_window=WINDOW),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_positions=256, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1
    ),
}

# Their grouped matrix product has no float64.
MIXTURES: dict[str, Callable[[], PretrainedConfig]] = {
    "mixtral": lambda: MixtralConfig(**_COMMON, num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **_COMMON, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
}

# Recurrent: groups are wrong for it, and must not be tried.
RECURRENT: Callable[[], PretrainedConfig] = lambda: FalconH1Config(  # noqa: E731
    **_COMMON, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1
)


def build(config: PretrainedConfig, attention: str, dtype: torch.dtype) -> PreTrainedModel:
    """The same random weights for the same config, whatever the attention."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():  # large enough to make attention matter
            parameter.mul_(3.0) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def awkward_groups(seed: int = 0) -> list[Group]:
    """Pairs, single answers, four answers; shared first tokens, one-token answers, answers beyond the window."""
    random = np.random.default_rng(seed)

    def tokens(count: int) -> Any:
        return random.integers(2, VOCABULARY, count, dtype=np.int32)

    shared = tokens(5)
    one = tokens(1)
    return [
        Group(tokens(7), (tokens(6), tokens(9)), (Pair(0, 1),), "a pair"),
        Group(
            tokens(3), (np.concatenate((shared, tokens(3))), np.concatenate((shared, tokens(1)))), (Pair(1, 0),), "b"
        ),
        Group(tokens(12), (tokens(2 * WINDOW + 3), tokens(WINDOW + 1)), (Pair(0, 1),), "beyond the window"),
        Group(tokens(1), (tokens(1), tokens(4)), (Pair(0, 1),), "a one-token prompt and answer"),
        Group(tokens(4), (one, np.concatenate((one, tokens(2)))), (Pair(0, 1),), "an answer that starts the other"),
        Group(tokens(5), (tokens(3),), (), "a single answer"),
        Group(
            tokens(6),
            (tokens(3), tokens(5), tokens(2), tokens(4)),
            (Pair(0, 1), Pair(0, 2), Pair(3, 2)),
            "four answers",
        ),
    ]


def masked_groups(seed: int = 1) -> list[Group]:
    """Of several turns: gaps inside the shared part and across its end, a scored token in one answer that isn't in the
    other, an answer that begins unscored, one that is scored whole; beside a group without a mask."""
    random = np.random.default_rng(seed)

    def tokens(count: int) -> Any:
        return random.integers(2, VOCABULARY, count, dtype=np.int32)

    def mask(bits: str) -> Any:
        return np.array([bit == "1" for bit in bits])

    shared = tokens(5)
    one, other = np.concatenate((shared, tokens(6))), np.concatenate((shared, tokens(4)))
    return [
        Group(tokens(6), (one, other), (Pair(0, 1),), "a", scored=(mask("11001100111"), mask("110010011"))),
        Group(tokens(3), (one, other), (Pair(1, 0),), "b", scored=(mask("00000000001"), mask("000011111"))),
        Group(tokens(4), (one, tokens(3)), (Pair(0, 1),), "c", scored=(mask("10000000001"), mask("111"))),
        Group(tokens(2 * WINDOW), (one,), (), "d", scored=(mask("01110000001"),)),
        Group(tokens(5), (tokens(4), tokens(2)), (Pair(0, 1),), "e"),
    ]
