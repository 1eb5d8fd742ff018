"""Sampled answers. What is drawn for a prompt follows from the model, the seed and the prompt, not from its company."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from dpo_cli.data.types import Group, Tokens
from dpo_cli.model.attention import GROUP_ATTENTION, own_attention

Answering = Callable[[Sequence[Tokens]], list[Tokens]]
"""Gives an answer to each prompt, ``[P]`` token ids each."""


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    *,
    ends: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    precision: str,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda prompts: None,
) -> list[Tokens]:
    """One answer to each prompt, end-of-turn included where the model came to it.

    The same seed gives a prompt the same answer from the same model, whatever prompts it is asked with and however many
    at a time, but for rounding: padding and batch size change a log-prob's last bits, which seldom decides a token in
    float32, and in bfloat16 often one of an answer's. The model's own attention is used, which has a cache; nothing
    cuts the distribution but the temperature, so that the samples' log-ratios estimate the KL.

    Args:
        model: on its device; its attention is put back as it was.
        tokenizer: names the padding.
        prompts: ``[P]`` token ids each.
        ends: tokens that end an answer.
        max_new_tokens: per answer.
        temperature: 0 = greedy.
        seed: of the samples.
        precision: ``fp32`` or ``bf16``.
        batch_size: prompts at a time.
        advance: told how many prompts are done since the last time.
    """
    attention = model.config._attn_implementation
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends)
    answers: list[Tokens] = []
    was_training = model.training
    model.eval()
    model.set_attn_implementation(own_attention(model) if attention == GROUP_ATTENTION else attention)
    try:
        with torch.no_grad():
            for start in range(0, len(prompts), batch_size):
                batch = prompts[start : start + batch_size]
                longest = max(len(prompt) for prompt in batch)
                ids = torch.full((len(batch), longest), pad, dtype=torch.int64)
                mask = torch.zeros_like(ids)
                for row, prompt in enumerate(batch):
                    ids[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
                    mask[row, longest - len(prompt) :] = 1
                with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                    output = model.generate(
                        input_ids=ids.to(model.device),
                        attention_mask=mask.to(model.device),
                        max_new_tokens=max_new_tokens,
                        do_sample=False,
                        logits_processor=_draws(batch, seed, temperature, max_new_tokens, model.device),
                        temperature=None,
                        top_k=None,
                        top_p=None,
                        min_p=None,
                        repetition_penalty=1.0,
                        eos_token_id=sorted(ends),
                        pad_token_id=pad,
                        use_cache=True,
                    )
                answers += [until_end(row, ends) for row in output[:, longest:].cpu().numpy().astype(np.int32)]
                advance(len(batch))
    finally:
        model.set_attn_implementation(attention)
        model.train(was_training)
    return answers


def prompt_seed(seed: int, prompt: Tokens) -> int:
    """A prompt's own seed, below 2^63.

    Args:
        seed: of all samples.
        prompt: its token ids.
    """
    told = f"{seed} ".encode() + prompt.astype("<i8").tobytes()
    return int.from_bytes(hashlib.sha256(told).digest()[:8], "little") >> 1


def _draws(
    prompts: Sequence[Tokens], seed: int, temperature: float, longest: int, device: torch.device
) -> LogitsProcessorList:
    """What makes samples of the greedy answers to a batch of prompts; nothing at temperature 0."""
    if not temperature:
        return LogitsProcessorList()
    uniform = np.stack([np.random.default_rng(prompt_seed(seed, prompt)).random(longest) for prompt in prompts])
    return LogitsProcessorList([_Draws(torch.from_numpy(uniform).to(device), temperature)])


class _Draws(LogitsProcessor):
    """Leaves of each row's scores the token that its own random number falls on, so that the greedy choice is a sample.

    One number per token is enough: it is looked up in the distribution function. ``generate`` itself would draw from
    one stream for all rows.
    """

    def __init__(self, uniform: Tensor, temperature: float) -> None:
        """
        Args:
            uniform: ``[B, max_new_tokens]`` float64 in [0, 1), on the device of the scores.
            temperature: above 0.
        """
        self._uniform, self._temperature = uniform, temperature
        self._place = 0
        """Tokens drawn so far."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``[B, V]`` scores with all but one token per row at minus infinity."""
        summed = (scores.double() / self._temperature).softmax(dim=-1).cumsum(dim=-1)
        point = self._uniform[:, self._place, None] * summed[:, -1:]
        self._place += 1
        # The first token whose sum is above the point: one of probability 0 has no room of its own.
        drawn = torch.searchsorted(summed, point, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)


def as_groups(prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[Group]:
    """Samples as groups to be scored."""
    return [
        Group(prompt, (answer,), (), f"sample {number}")
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), 1)
    ]


def until_end(answer: Tokens, ends: Sequence[int]) -> Tokens:
    """An answer up to its first end, which stays in it."""
    places = np.flatnonzero(np.isin(answer, list(ends)))
    return answer[: places[0] + 1] if len(places) else answer
