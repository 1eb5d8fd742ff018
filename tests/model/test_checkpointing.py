"""Activation checkpointing: the same numbers, less kept, and the work that this costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.families import FAMILIES, MIXTURES, RECURRENT, awkward_groups, build
from helpers.work import held_by
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, PretrainedConfig

from dpo_cli.data.collate import FlatBatch, collate
from dpo_cli.errors import DpoError
from dpo_cli.model.adapters import NewAdapter
from dpo_cli.model.attention import GROUP_ATTENTION
from dpo_cli.model.attention_blocks import blocks_of
from dpo_cli.model.checkpointing import checkpoint_layers
from dpo_cli.model.files import ModelFiles
from dpo_cli.model.load import LoadedModel, attach
from dpo_cli.model.policy import Policy


def policy(config: PretrainedConfig, kind: str, *, groups: bool = True, precision: str = "fp32") -> Policy:
    for name in vars(config).keys() & {"attn_pdrop", "embd_pdrop", "resid_pdrop"}:  # as load_model does
        setattr(config, name, 0.0)
    model = build(config, GROUP_ATTENTION if groups else "sdpa", torch.float32)
    checkpoint_layers(model, kind)
    return Policy(model, precision=precision, groups=groups).train()


def backward(module: Policy, batch: FlatBatch) -> Tensor:
    logps: Tensor = module(batch)
    (torch.linspace(-1.0, 2.0, len(logps)) * logps).sum().backward()
    return logps.detach()


def run(module: Policy, batch: FlatBatch) -> dict[str, Tensor]:
    """Log-probs and every gradient."""
    found = {"log-probs": backward(module, batch)}
    return found | {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("kind", ["selective", "full"])
@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_log_probs_and_gradients_are_the_same_to_the_bit(family: str, kind: str) -> None:
    config, batch = (FAMILIES | MIXTURES)[family](), collate(awkward_groups())
    assert_same_bits(run(policy(config, kind), batch), run(policy(config, "none"), batch))


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_so_are_those_in_bfloat16_and_in_plain_sequences(kind: str) -> None:
    config = FAMILIES["llama"]()
    batch, apart = collate(awkward_groups()), collate(awkward_groups(), share=False)
    expected = run(policy(config, "none", precision="bf16"), batch)
    assert_same_bits(run(policy(config, kind, precision="bf16"), batch), expected)
    expected = run(policy(config, "none", groups=False), apart)
    assert_same_bits(run(policy(config, kind, groups=False), apart), expected)
    recurrent = [run(policy(RECURRENT(), each, groups=False), apart) for each in (kind, "none")]
    assert_same_bits(*recurrent)


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_an_adapters_dropout_falls_on_the_same_entries_again(kind: str) -> None:
    def adapted(kind: str) -> dict[str, Tensor]:
        loaded = LoadedModel(build(FAMILIES["llama"](), GROUP_ATTENTION, torch.float32), can_group=True)
        new = NewAdapter(kind="lora", r=4, alpha=8, dropout=0.5, target_modules="all-linear")
        attach(loaded, ModelFiles("somewhere", None), new, precision="fp32", seed=0)
        assert loaded.adapter is not None
        with torch.no_grad():  # a new adapter's second factor is zero, and the first one's gradient with it
            for name, parameter in loaded.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        checkpoint_layers(loaded.model, kind)
        noise = loaded.adapter.noise
        with noise.of(3):
            return run(
                Policy(loaded.model, precision="fp32", groups=True, noise=noise).train(), collate(awkward_groups())
            )

    assert_same_bits(adapted(kind), adapted("none"))


LAYERS, WIDTH, INNER = 4, 64, 192


def wide() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=97,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        bos_token_id=0,
        eos_token_id=1,
    )


def cost(kind: str, measure: Callable[[Callable[[], Any]], int]) -> int:
    module, batch = policy(wide(), kind), collate(awkward_groups() * 3)
    backward(module, batch)  # gradients are there, and added to
    return measure(lambda: backward(module, batch))


def test_the_work_that_is_done_again() -> None:
    def flops(function: Callable[[], Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    batch = collate(awkward_groups() * 3)
    tokens = len(batch.input_ids)
    seen = sum(size(b.queries) * (size(b.own) + size(b.trunk)) for b in blocks_of(batch.layouts))
    attention = 4 * LAYERS * WIDTH * seen
    layers = 2 * LAYERS * tokens * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER) + attention
    none = cost("none", flops)
    # A layer's last product is not asked for, and is not made again.
    unasked = 2 * LAYERS * tokens * WIDTH * INNER
    assert cost("selective", flops) - none == attention
    assert cost("full", flops) - none == layers - unasked


def test_what_is_kept() -> None:
    def peak(function: Callable[[], Any]) -> int:
        return held_by(function)[0]

    tokens = len(collate(awkward_groups() * 3).input_ids)
    none, selective, full = (cost(kind, peak) for kind in ("none", "selective", "full"))
    numbers = LAYERS * tokens * 4
    everything, inputs = numbers * (10 * WIDTH + 4 * INNER), numbers * WIDTH
    products = numbers * (5 * WIDTH + 2 * INNER)
    # Of the layer whose backward pass is under way, all is there.
    others = (LAYERS - 1) / LAYERS
    assert none > everything
    assert none - full == pytest.approx(others * (everything - inputs), rel=0.1)
    assert none - selective == pytest.approx(others * (everything - inputs - products), rel=0.1)


def size(part: slice) -> int:
    return int(part.stop - part.start)


def test_layers_that_cannot_are_said() -> None:
    class Bare(torch.nn.Module):
        config = LlamaConfig()

    with pytest.raises(DpoError, match=r"train\.activation_checkpointing=full: llama has no layers"):
        checkpoint_layers(Bare(), "full")  # type: ignore[arg-type]
    checkpoint_layers(Bare(), "none")  # type: ignore[arg-type]
