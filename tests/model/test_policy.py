"""Flat shared-prompt log-probs against a plain forward of one sequence at a time."""

from __future__ import annotations

import pytest
import torch
from helpers.families import FAMILIES, MIXTURES, RECURRENT, awkward_groups, build
from helpers.plain_model import gradients, plain_logps

from dpo_cli.data.collate import collate, flat_length
from dpo_cli.model import attention
from dpo_cli.model.attention import GROUP_ATTENTION
from dpo_cli.model.attention_varlen import Found, Kernel, Shape, plain
from dpo_cli.model.policy import Policy


def compare(config, dtype: torch.dtype, groups_attention: bool, tolerance: float) -> None:
    groups = awkward_groups()
    plain = build(config, "eager", dtype)
    expected = plain_logps(plain, groups)
    expected_gradients = gradients(plain, expected)
    model = build(config, GROUP_ATTENTION if groups_attention else "eager", dtype)
    batch = collate(groups, share=groups_attention)
    logps = Policy(model, precision="fp32", groups=groups_attention)(batch)
    flat = logps[torch.from_numpy(batch.answer_tokens)]
    assert flat.detach().numpy() == pytest.approx(expected.detach().numpy(), abs=tolerance)
    found_gradients = gradients(model, flat)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in found_gradients.items():
        scale = float(expected_gradients[name].abs().max()) or 1.0
        difference = float((gradient - expected_gradients[name]).abs().max())
        assert difference <= 20 * tolerance * scale, name


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_equal_plain_sequences_in_float64(family: str) -> None:
    # Norms that compute in float32 whatever the model's dtype bound the agreement; GPT-2 has none.
    compare(FAMILIES[family](), torch.float64, groups_attention=True, tolerance=1e-12 if family == "gpt2" else 1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("name", "value"), [("attention_blocks._QUERIES", 3), ("attention.MAX_KEYS", 0)])
def test_groups_equal_plain_sequences_in_small_blocks_and_when_they_are_long(
    monkeypatch: pytest.MonkeyPatch, family: str, name: str, value: int
) -> None:
    monkeypatch.setattr(f"dpo_cli.model.{name}", value)
    compare(FAMILIES[family](), torch.float64, groups_attention=True, tolerance=1e-12 if family == "gpt2" else 1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "mistral-window", "gpt2"])
def test_one_call_of_a_kernel_equals_plain_sequences(monkeypatch, family: str) -> None:
    """As on a GPU, with the kernel written out in PyTorch."""
    asked: list[Shape] = []

    def found(shape: Shape) -> Found:
        asked.append(shape)
        return Found(Kernel("written out", plain, softcaps=True))

    monkeypatch.setattr(attention, "find_kernel", found)
    compare(FAMILIES[family](), torch.float64, groups_attention=True, tolerance=1e-12 if family == "gpt2" else 1e-6)
    assert len(asked) == 2  # layers


@pytest.mark.parametrize("family", MIXTURES)
def test_groups_equal_plain_sequences_for_mixtures_of_experts(family: str) -> None:
    compare(MIXTURES[family](), torch.float32, groups_attention=True, tolerance=2e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral-window"])
def test_padded_rows_equal_plain_sequences(family: str) -> None:
    compare(FAMILIES[family](), torch.float64, groups_attention=False, tolerance=1e-6)


def test_padded_rows_equal_plain_sequences_for_a_recurrent_model() -> None:
    compare(RECURRENT(), torch.float32, groups_attention=False, tolerance=2e-4)


def test_every_token_is_run_once() -> None:
    groups = awkward_groups()
    batch = collate(groups)
    assert len(batch.input_ids) == sum(flat_length(group) for group in groups)
    apart = collate(groups, share=False)
    assert len(apart.input_ids) == sum(len(g.prompt_ids) + len(a) - 1 for g in groups for a in g.answers)
    assert len(batch.input_ids) < 0.7 * len(apart.input_ids)
    # Group b shares five first tokens of its two answers: they are predicted once and counted twice.
    assert len(batch.answer_tokens) - len(batch.targets) == 5


def test_an_unknown_attention_keyword_is_an_error() -> None:
    from dpo_cli.model.attention import Segments, group_attention

    batch = collate(awkward_groups())
    states = torch.randn(1, 2, len(batch.input_ids), 8)
    segments = Segments(batch.layouts, states.device)
    with pytest.raises(ValueError, match="tilt"):
        group_attention(torch.nn.Identity(), states, states, states, None, segments=segments, tilt=2)
    with pytest.raises(ValueError, match="mask: True"):
        group_attention(torch.nn.Identity(), states, states, states, torch.ones(1), segments=segments)
