"""A reward model as a judge: any sequence-classification model with one output."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dpo_cli.data.limits import bounded
from dpo_cli.distributed import device
from dpo_cli.errors import DpoError
from dpo_cli.evaluation.winrate import Judge
from dpo_cli.model.files import check_folder, understood
from dpo_cli.model.load import plain_config


def check_reward_model(path: str) -> None:
    """Whether there is such a model, by its configuration; its weights are not looked at.

    Raises:
        DpoError: there is none, or it has not one output.
    """
    check_folder(path, f"judge.path={path}")
    with understood(f"judge.path={path} can't be loaded as a reward model"):
        config = plain_config(path)
    if config.num_labels != 1:
        raise DpoError(f"judge.path={path} has {config.num_labels} outputs: expected a reward model, which has one")


def reward_model(path: str, advance: Callable[[int], None] = lambda answers: None) -> Judge:
    """A judge that prefers the answer with the higher reward.

    Question and answer go through the model's chat template, or, where it has none, stand with a line break between
    them. One at a time: models that look for the last token by its id go wrong on padded ones.

    Args:
        path: a hub id or a folder; safetensors only, none of its code is run.
        advance: told of answers scored since the last time.

    Raises:
        DpoError: there is no such model, or it has not one output.
    """
    check_reward_model(path)
    with understood(f"judge.path={path} can't be loaded as a reward model"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model = AutoModelForSequenceClassification.from_pretrained(
            path, config=plain_config(path), use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        )
    model.to(device()).eval()
    known: dict[tuple[str, str], float] = {}

    def reward(question: str, answer: str) -> float:
        if (question, answer) not in known:
            if tokenizer.chat_template:
                turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                with bounded() as bounds:
                    bounds.begin(f"judge.path={path}")
                    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
            else:
                ids = tokenizer(f"{question}\n{answer}")["input_ids"]
            with torch.no_grad():
                output = model(input_ids=torch.tensor([ids], device=device()))
            known[question, answer] = float(output.logits[0, 0])
            advance(1)
        return known[question, answer]

    def judge(pairs: Sequence[tuple[str, str, str]]) -> list[float | None]:
        found: list[float | None] = []
        for question, first, second in pairs:
            difference = reward(question, first) - reward(question, second)
            found.append(0.5 if difference == 0 else float(difference > 0))
        return found

    return judge
