"""The models that ``bench_gpu.py`` measures, and the ways to train each, best first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Setup:
    """A way to train a model."""

    label: str
    optimizer: str = "adamw"
    zero_stage: int = 0
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    lora: bool = False
    gpu_bytes: float = 18.0
    """For each weight: float32 weight, gradient and moments, and the bfloat16 copy that autocast keeps for the
    backward pass. Activations come on top."""
    host_bytes: float = 0.0


@dataclass(frozen=True)
class Case:
    """A model's shape, a LlamaConfig's keys, and what to try."""

    config: Mapping[str, Any]
    setups: tuple[Setup, ...]
    budgets: tuple[int, ...]
    """Tokens per micro-batch in training, rising: the first that does not fit ends the trials."""
    reference_budgets: tuple[int, ...]
    pairs: int
    """In the reference pass."""


def _llama(layers: int, width: int, heads: tuple[int, int], mlp: int, vocabulary: int, tied: bool) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 8192,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


_8B = _llama(32, 4096, (32, 8), 14336, 128256, tied=False)
_FULL = (Setup("AdamW, float32 moments"),)
_OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}

CASES = {
    "tiny": Case(_llama(2, 32, (4, 2), 64, 256, tied=True), _FULL, (1024, 2048), (4096,), 16),
    "135m": Case(_llama(30, 576, (9, 3), 1536, 49152, tied=True), _FULL, (8192, 16384, 32768), (32768, 65536), 4096),
    "1b": Case(_llama(16, 2048, (32, 8), 8192, 128256, tied=True), _FULL, (8192, 16384), (16384, 32768), 1024),
    "8b-lora": Case(
        _8B,
        # The frozen matrices in bfloat16, the embeddings in float32.
        (Setup("LoRA of rank 16, AdamW", lora=True, gpu_bytes=2.2),),
        (2048, 4096, 6144),
        (16384,),
        192,
    ),
    "8b": Case(
        _8B,
        (
            Setup("adamw_8bit", "adamw_8bit", gpu_bytes=12.0),
            # ZeRO's float32 copy of the weights, gradients and moments are in CPU memory.
            Setup("AdamW in CPU memory, ZeRO 2", "adamw", 2, _OFFLOAD, gpu_bytes=6.5, host_bytes=16.0),
            Setup("RMSprop in CPU memory, ZeRO 2", "rmsprop", 2, _OFFLOAD, gpu_bytes=6.5, host_bytes=12.0),
        ),
        (2048, 4096),
        (16384,),
        192,
    ),
}
