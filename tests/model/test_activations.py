"""What a micro-batch keeps, counted without computing, against what autograd holds when it is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.families import FAMILIES, MIXTURES, build
from torch import Tensor
from transformers import LlamaConfig, PretrainedConfig

from dpo_cli.data.collate import FlatBatch, collate
from dpo_cli.data.types import Group, Pair
from dpo_cli.model.activations import Activations, activations, outline
from dpo_cli.model.adapters import NewAdapter, add_adapter, hold_in_bfloat16
from dpo_cli.model.attention import GROUP_ATTENTION
from dpo_cli.model.files import ModelFiles
from dpo_cli.model.policy import Policy


def batch(groups: int = 4, prompt: int = 24, answer: int = 32) -> FlatBatch:
    random = np.random.default_rng(0)

    def tokens(length: int, first: int) -> Any:
        return np.concatenate(([first], random.integers(4, 90, length - 1))).astype(np.int32)

    rows = [
        Group(tokens(prompt, 0), (tokens(answer, 1), tokens(answer, 2)), (Pair(0, 1),), str(number))
        for number in range(groups)
    ]
    return collate(rows)


def held(config: PretrainedConfig, micro_batch: FlatBatch, precision: str, adapter: NewAdapter | None) -> int:
    """Bytes of all tensors that a forward pass leaves for the backward pass, each once, weights and logits aside."""
    model = build(config, GROUP_ATTENTION, torch.float32)
    noise = None
    if adapter is not None:
        if precision == "bf16":
            hold_in_bfloat16(model)
        noise = add_adapter(model.train(), adapter, ModelFiles(""), seed=0).noise
        noise.update = 0
    policy = Policy(model, precision=precision, groups=True, noise=noise)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, tuple[Any, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage, storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = policy(micro_batch)
    total = sum(size for _, size in kept.values())
    del output
    return total


def deep(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    kinds = getattr(config, "layer_types", None)
    config.num_hidden_layers = layers
    if kinds:
        config.layer_types = (list(kinds) * layers)[:layers]
    return config


def total(found: Activations) -> float:
    return found.layers + found.head + found.copies


@pytest.mark.parametrize(
    ("family", "precision"),
    [("llama-tied", "fp32"), ("llama-tied", "bf16"), ("gemma2", "bf16"), ("qwen3-moe", "bf16"), ("gpt2", "fp32")],
)
def test_all_that_autograd_keeps_is_counted(family: str, precision: str) -> None:
    config = deep((FAMILIES | MIXTURES)[family](), 4)
    found = activations(config, batch(), precision=precision, kernel=False)
    assert total(found) == pytest.approx(held(config, batch(), precision, None), rel=0.01)


@pytest.mark.parametrize(("kind", "precision"), [("lora", "bf16"), ("dora", "fp32")])
def test_beside_an_adapter_too(kind: str, precision: str) -> None:
    config = deep(FAMILIES["llama"](), 4)
    new = NewAdapter(kind=kind, r=8, alpha=16, dropout=0.1, target_modules="all-linear")
    found = activations(config, batch(), precision=precision, kernel=False, adapter=new)
    assert total(found) == pytest.approx(held(config, batch(), precision, new), rel=0.01)


WIDTH, INNER, LAYERS, HEADS, KEY_HEADS, VOCABULARY = 64, 176, 3, 4, 2, 128


def test_on_a_gpu_a_layer_keeps_what_can_be_counted_by_hand() -> None:
    """A Llama in bf16 with a variable-length kernel, which keeps no probabilities."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
    )
    micro_batch = batch()
    tokens, prompts = len(micro_batch.input_ids), 4 * 24
    found = activations(config, micro_batch, precision="bf16", kernel=True)
    key_width = WIDTH * KEY_HEADS // HEADS
    # Of each token, in float32 what goes into each of the two norms, what its scaling gives, and the scale; in bfloat16
    # what the norm gives, once for each product that takes it: three after the first, two after the second.
    norms = 2 * (4 + 4) * WIDTH + (3 + 2) * 2 * WIDTH + 2 * 4
    # In bfloat16 queries and results, with a number per head; gate, its silu, up and their product.
    attention = (2 + 2) * WIDTH + 4 * HEADS
    mlp = 4 * 2 * INNER
    gathered = 2 * 2 * key_width * (tokens + prompts)  # a prompt's keys and values stand there for each answer
    by_hand = LAYERS * (tokens * (norms + attention + mlp) + gathered)
    assert found.layers == pytest.approx(by_hand, rel=0.01)
    matrices = 2 * WIDTH * WIDTH + 2 * WIDTH * key_width + 3 * WIDTH * INNER
    assert found.copies == pytest.approx(2 * (LAYERS * matrices + VOCABULARY * WIDTH), rel=0.05)
    assert found.inputs == LAYERS * tokens * WIDTH * 4
    assert found.layer == pytest.approx(found.layers / LAYERS)
    products = 2 * tokens * (2 * WIDTH + 2 * key_width + 2 * INNER + WIDTH)  # of the last, and attention's result
    assert found.selected == pytest.approx(LAYERS * (products + 2 * tokens * WIDTH), rel=0.01)


def test_more_of_the_same_keeps_as_much_more() -> None:
    config = deep(FAMILIES["mistral-window"](), 2)
    few, more = (activations(config, batch(count), precision="bf16", kernel=True) for count in (2, 6))
    assert few.scaled(3).layers == pytest.approx(more.layers, rel=0.01)
    assert few.scaled(3).copies == few.copies


def test_counting_leaves_the_random_numbers_as_they_were() -> None:
    before = torch.random.get_rng_state()
    outline(FAMILIES["llama"](), None, "bf16")
    activations(FAMILIES["llama"](), batch(1), precision="fp32", kernel=False)
    assert torch.equal(torch.random.get_rng_state(), before)
