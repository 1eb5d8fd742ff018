"""Prompts of benchmarks, in AlpacaEval's and MT-Bench's own formats, and answers written in theirs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dpo_cli.commands.caches import cache_folder
from dpo_cli.config import EvaluateConfig
from dpo_cli.data.sources import Place, open_source
from dpo_cli.data.tokenize import Encoding, tokenize
from dpo_cli.data.types import Example, Group, Message, Tokens
from dpo_cli.errors import DataError
from dpo_cli.evaluation.samples import Samples
from dpo_cli.whole_folder import write_file

_PLACEHOLDER = "-"
"""Stands where the answer will be, so that a prompt is rendered and cut as it is in training."""


@dataclass(frozen=True)
class Question:
    """What a person asks, in one turn or several."""

    turns: tuple[str, ...]
    row: dict[str, Any]


def read_questions(config: EvaluateConfig) -> list[Question]:
    """The first ``eval.samples`` questions of ``prompts``.

    Raises:
        DataError: a row that is no question.
    """
    source = open_source(Place(str(config.prompts)), key="prompts", cache=cache_folder(config.data.cache_dir))
    found = []
    for row in islice(source.rows(), config.eval.samples):
        values = row.values
        if row.problem:
            raise DataError(f"{row.source}: {row.problem}")
        turns = values.get("turns")
        if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
            found.append(Question(tuple(turns), values))
            continue
        text = next((values[name] for name in ("instruction", "prompt") if isinstance(values.get(name), str)), None)
        if text is None:
            raise DataError(
                f"{row.source}: expected a question: turns (MT-Bench), instruction (AlpacaEval) or prompt, as text"
            )
        found.append(Question((text,), values))
    if not found:
        raise DataError(f"{source.name}: no row")
    return found


def ask(
    questions: Sequence[Question],
    config: EvaluateConfig,
    tokenizer: Any,
    ends: Sequence[int],
    sample: Callable[[list[Tokens]], list[Tokens]],
) -> tuple[Samples, list[list[str]]]:
    """Answer every turn, each after the model's own answers to those before.

    Args:
        questions: to be answered.
        config: how text becomes tokens.
        tokenizer: the model's.
        ends: of answers.
        sample: gives an answer to each prompt.

    Returns:
        All answers, first turns first, and the same by question and turn.
    """
    said: list[list[str]] = [[] for _ in questions]
    samples = Samples([], [], [], None)
    for turn in range(max(len(question.turns) for question in questions)):
        places = [place for place, question in enumerate(questions) if len(question.turns) > turn]
        dialogues = [_dialogue(questions[place], said[place], turn, config.data.system) for place in places]
        prompts = _prompts(dialogues, config, tokenizer, ends)
        for place, prompt, tokens in zip(places, prompts, sample(prompts), strict=True):
            answer = str(tokenizer.decode(tokens, skip_special_tokens=True))
            said[place].append(answer)
            samples.answers.append(answer)
            samples.questions.append("\n\n".join(questions[place].turns[: turn + 1]))
            samples.groups.append(Group(prompt, (tokens,), (), f"prompts, row {place + 1}, turn {turn + 1}"))
    return samples, said


def _dialogue(question: Question, said: Sequence[str], turn: int, system: str | None) -> list[Message]:
    messages = [Message(role="system", content=system)] if system else []
    for number in range(turn + 1):
        messages.append(Message(role="user", content=question.turns[number]))
        if number < turn:
            messages.append(Message(role="assistant", content=said[number] or " "))
    return messages


def _prompts(
    dialogues: Sequence[list[Message]], config: EvaluateConfig, tokenizer: Any, ends: Sequence[int]
) -> list[Tokens]:
    """Tokens of the prompts, as in training.

    Raises:
        DataError: one that does not fit.
    """
    encoding = Encoding(
        text=config.data.text,
        max_length=config.data.max_length,
        max_prompt_length=config.data.max_prompt_length,
        truncate_prompt=config.data.truncate_prompt,
        template_args=config.data.template_args,
    )
    plain = config.data.text == "plain" or (config.data.text == "auto" and not tokenizer.chat_template)
    examples = [
        Example("\n\n".join(turn["content"] for turn in dialogue), [_PLACEHOLDER], (), f"prompts, row {number}")
        if plain
        else Example(dialogue, [[Message(role="assistant", content=_PLACEHOLDER)]], (), f"prompts, row {number}")
        for number, dialogue in enumerate(dialogues, 1)
    ]
    found = []
    for encoded in tokenize(examples, tokenizer, encoding, ends):
        if encoded.group is None:
            raise DataError(f"{encoded}: {encoded.left_out.replace('_', ' ')}")
        found.append(encoded.group.prompt_ids)
    return found


def write_answers(
    folder: Path, name: str, model: str, questions: Sequence[Question], said: Sequence[list[str]]
) -> Path:
    """The answers in the format of the benchmark that the questions are of: AlpacaEval's model outputs, MT-Bench's
    model answers, or prompt and answer.

    Args:
        folder: to write into.
        name: of the file, without its ending.
        model: as it is to be called there.
        questions: that were asked.
        said: for each, for each turn, the answer.
    """
    rows: list[dict[str, Any]] = []
    for question, answers in zip(questions, said, strict=True):
        row = question.row
        if "turns" in row:
            rows.append(
                {
                    "question_id": row.get("question_id"),
                    "answer_id": f"{model}-{row.get('question_id')}",
                    "model_id": model,
                    "choices": [{"index": 0, "turns": answers}],
                    "tstamp": time.time(),
                }
            )
        elif "instruction" in row:
            kept: dict[str, Any] = {key: row[key] for key in ("instruction", "dataset") if key in row}
            rows.append({**kept, "output": answers[0], "generator": model})
        else:
            rows.append({"prompt": question.turns[0], "output": answers[0], "generator": model})
    listed = any("instruction" in question.row for question in questions)
    file = folder / f"{name}.{'json' if listed else 'jsonl'}"
    text = (
        json.dumps(rows, ensure_ascii=False, indent=1)
        if listed
        else "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    )
    write_file(file, text + "\n")
    return file
