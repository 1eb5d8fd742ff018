"""Held-out data by prompt: a prompt is in training or held out, never both."""

from __future__ import annotations

from collections.abc import Sequence

from dpo_cli.data.formats import content_hash
from dpo_cli.data.types import Example, Message
from dpo_cli.errors import DataError


def hold_out(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples, each in the order given.

    Which prompts are held out depends on their content, the fraction and the seed alone, not on the order of rows.

    Args:
        examples: with at least two different prompts.
        fraction: of the prompts, between 0 and 1; at least one prompt is held out and at least one is not.
        seed: another seed holds out other prompts.

    Raises:
        DataError: fewer than two prompts.
    """
    keys = [_prompt_key(example) for example in examples]
    prompts = sorted(set(keys), key=lambda key: content_hash([seed, key.hex()]))
    if len(prompts) < 2:
        raise DataError(
            f"data.eval={fraction}: holding out prompts takes at least 2 different ones, found {len(prompts)}"
        )
    held = set(prompts[: min(max(1, round(fraction * len(prompts))), len(prompts) - 1)])
    train = [example for example, key in zip(examples, keys, strict=True) if key not in held]
    held_out = [example for example, key in zip(examples, keys, strict=True) if key in held]
    return train, held_out


def check_overlap(train: Sequence[Example], held_out: Sequence[Example]) -> tuple[list[Example], int]:
    """The training examples whose prompt is not held out, and how many are left out.

    Raises:
        DataError: no training example is left.
    """
    held = {_prompt_key(example) for example in held_out}
    kept = [example for example in train if _prompt_key(example) not in held]
    if not kept:
        raise DataError(f"nothing is left to train on: the prompts of all {len(train)} rows are in data.eval too")
    return kept, len(train) - len(kept)


def _prompt_key(example: Example) -> bytes:
    """The same for a text and for its one user turn."""
    prompt = example.prompt
    return content_hash([Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt)
