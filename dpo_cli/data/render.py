"""From Examples to the text that is tokenised: through the chat template, or as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from dpo_cli.data.template import CHOICES
from dpo_cli.data.types import Example, Message
from dpo_cli.errors import DataError, DpoError


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt's text, and for each answer the text that goes on from it."""

    prompt: str
    answers: list[str]


def goes_through_template(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, text: Literal["auto", "chat", "plain"]
) -> bool:
    """Whether these rows are rendered by the chat template (or tokenised as they stand).

    Raises:
        DpoError: it can't be as ``text`` says with these rows and this tokenizer.
    """
    messages = any(not isinstance(example.prompt, str) for example in examples)
    if text == "plain":
        if messages:
            raise DpoError("data.text=plain: the rows are messages, which only a chat template can render; use auto")
        return False
    if tokenizer.chat_template:
        return True
    if text == "chat" or messages:
        reason = "the rows are messages" if messages else "data.text=chat"
        raise DpoError(
            f"{reason}, but the tokenizer has no chat template: name one with model.chat_template (one of {CHOICES})"
        )
    return False


def render(example: Example, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """The example through the chat template, each answer as the end of one whole conversation.

    Rendering prompt and answer apart would give the answer a system prompt and a beginning of its own. The prompt is
    what a model is given to generate from.

    Raises:
        DataError: the template refuses the row, or writes the prompt differently once an answer follows, so that
            there would be no telling where the answer starts.
    """
    prompt = _prompt_messages(example)
    before = _apply(example, tokenizer, prompt, add_generation_prompt=True)
    answers = []
    for answer in example.answers:
        turns = [Message(role="assistant", content=answer)] if isinstance(answer, str) else answer
        whole = _apply(example, tokenizer, [*prompt, *turns])
        if not whole.startswith(before):
            raise DataError(f"{example.source}: {_difference(before, whole)}")
        answers.append(whole[len(before) :])
    return Rendered(before, answers)


def as_it_stands(example: Example) -> Rendered:
    """A text example as it is. Messages can't be: see ``goes_through_template``."""
    return Rendered(cast(str, example.prompt), cast(list[str], example.answers))


def text_after_answer(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes after an answer to this example's prompt."""
    answer = Message(role="assistant", content="Answer")
    return _apply(example, tokenizer, [*_prompt_messages(example), answer]).rpartition("Answer")[2]


def question(example: Example) -> str:
    """The last user turn, or the plain prompt."""
    turns = reversed(_prompt_messages(example))
    return next((turn["content"] for turn in turns if turn["role"] == "user"), "")


def _prompt_messages(example: Example) -> list[Message]:
    prompt = example.prompt
    return [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt


def _apply(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    *,
    add_generation_prompt: bool = False,
) -> str:
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise DataError(f"{example.source}: the chat template refuses this dialogue ({error})") from error
    return str(text)


def _difference(before: str, whole: str) -> str:
    same = next(
        (place for place, (one, other) in enumerate(zip(before, whole, strict=False)) if one != other), len(whole)
    )
    return (
        "the chat template writes the prompt differently once an answer follows: "
        f"after {before[max(0, same - 20) : same]!r} comes {before[same : same + 40]!r} without an answer "
        f"and {whole[same : same + 40]!r} with one; another template can be given with model.chat_template"
    )
