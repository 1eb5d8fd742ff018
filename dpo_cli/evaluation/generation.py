"""Sampled answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dpo_cli.data.types import Group, Tokens
from dpo_cli.model.attention import GROUP_ATTENTION, own_attention


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

    The same seed gives the same answers from the same model. The model's own attention is used, which has a cache;
    nothing cuts the distribution but the temperature, so that the samples' log-ratios estimate the KL.

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
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
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
                        do_sample=temperature > 0,
                        temperature=temperature if temperature > 0 else None,
                        top_k=0 if temperature > 0 else None,
                        top_p=1.0 if temperature > 0 else None,
                        min_p=None,
                        repetition_penalty=1.0,
                        eos_token_id=sorted(ends),
                        pad_token_id=pad,
                        use_cache=True,
                    )
                answers += [_until_end(row, ends) for row in output[:, longest:].cpu().numpy().astype(np.int32)]
                advance(len(batch))
    finally:
        model.set_attn_implementation(attention)
        model.train(was_training)
    return answers


def as_groups(prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[Group]:
    """Samples as groups to be scored."""
    return [
        Group(prompt, (answer,), (), f"sample {number}")
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), 1)
    ]


def _until_end(answer: Tokens, ends: Sequence[int]) -> Tokens:
    places = np.flatnonzero(np.isin(answer, list(ends)))
    return answer[: places[0] + 1] if len(places) else answer
