"""From Examples to the text that is tokenised: through the chat template, or as it stands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from dpo_cli.data.limits import bounded, check_output
from dpo_cli.data.special import END, MARK, SpecialTokens
from dpo_cli.data.template import CHOICES
from dpo_cli.data.types import Example, Message
from dpo_cli.errors import DataError, DpoError, one_line

# What apply_chat_template takes for itself; a template would never see it. Templates name their messages so.
_TAKEN = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {"messages"}
_RESERVED = _TAKEN - {"tools", "documents"}
_PROBE = f"{MARK}content{END}"

Apply = Callable[..., str]
"""Messages through the chat template; ``add_generation_prompt=True`` for an answer to follow."""


class Span(NamedTuple):
    """A stretch of an answer's text."""

    text: str
    scored: bool


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt's text, and for each answer the text that goes on from it."""

    prompt: str
    answers: list[list[Span]]
    """The last span is scored. Its text may go on after the answer's end."""
    after_prompt: str = ""
    """The end of the prompt's text that nobody but the template wrote; empty if not asked for."""
    special: str = ""
    """A special token that stands in what people wrote; empty = none does."""
    hidden: bool = False
    """Whether such are to stay text: the texts here are from ``SpecialTokens.for_copy``."""


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


def check_template_args(given: Mapping[str, Any], place: str) -> None:
    """
    Raises:
        DataError: a name that would not reach the template, or tools that are no JSON schemas.
    """
    if reserved := sorted(_RESERVED & given.keys()):
        raise DataError(f"{place}: {reserved[0]} can't be given to the chat template; expected names it knows itself")
    tools = given.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise DataError(f"{place}: expected tools to be a list of JSON schemas, found {type(tools).__name__}")


def render_all(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, **options: Any) -> list[Rendered]:
    """``render`` of each, with its ``options``, in bounded time and memory.

    Raises:
        DataError: as ``render``.
        DpoError: a template that is out of bounds.
    """
    rendered = []
    with bounded() as bounds:
        for example in examples:
            bounds.begin(example.source)
            rendered.append(render(example, tokenizer, **options))
    return rendered


def render(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template_args: Mapping[str, Any],
    ends: Sequence[str],
    special: SpecialTokens,
    after_prompt: bool,
) -> Rendered:
    """The example through the chat template, each answer as the end of one whole conversation.

    Rendering prompt and answer apart would give the answer a system prompt and a beginning of its own. The prompt is
    what a model is given to generate from, and so is what precedes each scored turn.

    Args:
        example: a row.
        tokenizer: whose template.
        template_args: for the template, where the row says nothing else.
        ends: what ends an answer, as text.
        special: the tokenizer's special tokens, which stay text where the row has them.
        after_prompt: whether that of ``Rendered`` is wanted.

    Raises:
        DataError: the template refuses the row, or writes the prompt or a scored turn differently once more follows,
            so that there would be no telling which tokens are the model's.
    """
    check_template_args(example.template_args, example.source)
    found = special.first_in([example.prompt, example.answers, example.template_args])
    if found:
        _check_can_hide(example, tokenizer, found)
        hidden = [special.hide(part) for part in (example.prompt, example.answers, example.template_args)]
        example = replace(example, prompt=hidden[0], answers=hidden[1], template_args=hidden[2])
    apply = partial(_apply, example, tokenizer, {**template_args, **example.template_args})
    before = apply(_prompt_messages(example), add_generation_prompt=True)
    answers = [_answer(example, number, before, apply, ends) for number in range(len(example.answers))]
    after = _after_content(apply, _prompt_messages(example), add_generation_prompt=True) if after_prompt else ""
    rendered = Rendered(before, answers, after, found, bool(found))
    return _for_copy(rendered, special, example.source) if found else rendered


def as_it_stands(example: Example, special: SpecialTokens) -> Rendered:
    """A text example as it is, its special tokens too: it may be a whole conversation that was rendered before.

    Messages can't be: see ``goes_through_template``.
    """
    prompt, answers = cast(str, example.prompt), cast(list[str], example.answers)
    spans = [[Span(answer, True)] for answer in answers]
    return Rendered(prompt, spans, special=special.first_in([prompt, answers]))


def text_after_answer(example: Example, tokenizer: PreTrainedTokenizerBase, template_args: Mapping[str, Any]) -> str:
    """What the template writes after an answer to this example's prompt."""
    apply = partial(_apply, example, tokenizer, {**template_args, **example.template_args})
    with bounded() as bounds:
        bounds.begin(example.source)
        return _after_content(apply, [*_prompt_messages(example), Message(role="assistant", content="")])


def question(example: Example) -> str:
    """The last user turn, or the plain prompt."""
    turns = reversed(_prompt_messages(example))
    return next((turn["content"] for turn in turns if turn["role"] == "user"), "")


def _prompt_messages(example: Example) -> list[Message]:
    prompt = example.prompt
    return [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt


def _answer(example: Example, number: int, before: str, apply: Apply, ends: Sequence[str]) -> list[Span]:
    """An answer's spans, each scored turn up to its end and what stands between."""
    prompt, answer = _prompt_messages(example), example.answers[number]
    turns = [Message(role="assistant", content=answer)] if isinstance(answer, str) else answer
    whole = apply([*prompt, *turns])
    if not whole.startswith(before):
        raise DataError(f"{example.source}: {_difference('the prompt', before, whole, 'an answer')}")
    scored = example.scored[number] if example.scored else (0,)
    if scored == (0,) and len(turns) == 1:
        return [Span(whole[len(before) :], True)]
    spans: list[Span] = []
    place = len(before)
    for turn in scored:
        last = turn == len(turns) - 1
        until = before if turn == 0 else apply([*prompt, *turns[:turn]], add_generation_prompt=True)
        after = whole if last else apply([*prompt, *turns[: turn + 1]])
        for part in (until, after):
            if not whole.startswith(part):
                what = f"turn {turn + 1} of answer {number + 1}"
                raise DataError(f"{example.source}: {_difference(what, part, whole, 'more turns')}")
        start = max(place, len(until))
        stop = len(whole) if last else _end_of_turn(whole, start, len(after), ends)
        spans += [Span(whole[place:start], False)] * (start > place) + [Span(whole[start:stop], True)]
        place = stop
    return spans


def _end_of_turn(whole: str, start: int, stop: int, ends: Sequence[str]) -> int:
    places = ((whole.find(end, start, stop), end) for end in ends)
    return min((place + len(end) for place, end in places if place >= 0), default=stop)


def _after_content(apply: Apply, messages: list[Message], **options: Any) -> str:
    """What the template writes after the last message's content."""
    last = cast(Message, {**messages[-1], "content": _PROBE})
    return apply([*messages[:-1], last], **options).rpartition(_PROBE)[2]


def _check_can_hide(example: Example, tokenizer: PreTrainedTokenizerBase, found: str) -> None:
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise DataError(
            f"{example.source}: the text {found!r} would become a special token, and this tokenizer "
            f"({type(tokenizer).__name__}) can't be kept from it; leave the row out or change it"
        )


def _for_copy(rendered: Rendered, special: SpecialTokens, source: str) -> Rendered:
    try:
        return replace(
            rendered,
            prompt=special.for_copy(rendered.prompt),
            answers=[[Span(special.for_copy(text), scored) for text, scored in spans] for spans in rendered.answers],
            after_prompt=special.for_copy(rendered.after_prompt),
        )
    except ValueError as error:
        raise DataError(
            f"{source}: the chat template changes the text {rendered.special!r}, which must not become a special "
            "token; leave the row out or change it"
        ) from error


def _apply(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    template_args: Mapping[str, Any],
    messages: list[Message],
    *,
    add_generation_prompt: bool = False,
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **template_args
        )
    except MemoryError:  # see limits
        raise
    except Exception as error:  # a template is a program: it may raise anything
        reason = one_line(str(error)) or type(error).__name__
        raise DataError(f"{example.source}: the chat template refuses this dialogue ({reason})") from error
    check_output(text, example.source)
    return str(text)


def _difference(what: str, before: str, whole: str, following: str) -> str:
    same = next(
        (place for place, (one, other) in enumerate(zip(before, whole, strict=False)) if one != other), len(whole)
    )
    it = "one" if following == "an answer" else "them"
    return (
        f"the chat template writes {what} differently once {following} follow{'s' * (it == 'one')}: "
        f"after {before[max(0, same - 20) : same]!r} comes {before[same : same + 40]!r} without {following} "
        f"and {whole[same : same + 40]!r} with {it}; another template can be given with model.chat_template"
    )
