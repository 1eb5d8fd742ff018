"""Conversations become the template's own text, with one beginning and one end, whatever the tokenizer."""

from __future__ import annotations

import pytest
from helpers.conversations import EFFORT, NAMES, Case, chat, conversations, templates
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dpo_cli.data.types import Example, Group

EVERY_TOKENIZER = pytest.mark.parametrize("name", NAMES)


def drawn(data: st.DataObject, name: str) -> tuple[Case, Example, Group]:
    """A conversation, and what it becomes with some template."""
    case = chat(name, data.draw(st.sampled_from(templates(name))))
    example = data.draw(conversations())
    group = case.group(example)
    assume(group is not None)  # left out where the tokenizer, or the template, can't tell the answers apart
    return case, example, group


def begun(case: Case, ids: list[int]) -> list[int]:
    """With the BOS that the tokenizer puts, once."""
    bos = case.tokenizer.bos_token_id
    return [bos, *ids] if case.begins and ids[:1] != [bos] else ids


@EVERY_TOKENIZER
@EFFORT
def test_the_prompt_is_what_generation_is_given(name: str, effort: settings) -> None:
    @effort
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        case, example, group = drawn(data, name)
        given_ids = case.tokenizer.apply_chat_template(
            example.prompt, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert group.prompt_ids.tolist() == begun(case, given_ids)

    holds()


@EVERY_TOKENIZER
@EFFORT
def test_prompt_and_answer_are_the_template_s_own_text(name: str, effort: settings) -> None:
    @effort
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        case, example, group = drawn(data, name)
        for answer, ids in zip(example.answers, group.answers, strict=True):
            text = case.render([*example.prompt, *answer])
            if case.written_end is None:
                text += case.end
            text = text[: text.rindex(case.end) + len(case.end)]
            decoded = case.text(*group.prompt_ids, *ids)
            assert case.kept(decoded) == case.kept(case.text(*begun(case, case.ids(text))))
            assert not case.exact or decoded.removeprefix(case.tokenizer.bos_token or "") == text.removeprefix(
                case.tokenizer.bos_token or ""
            )

    holds()


@EVERY_TOKENIZER
@EFFORT
def test_one_beginning_and_one_end(name: str, effort: settings) -> None:
    @effort
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        case, example, group = drawn(data, name)
        bos, end = case.tokenizer.bos_token_id, case.tokenizer.convert_tokens_to_ids(case.end)
        written = bos is not None and case.render(example.prompt).startswith(case.tokenizer.bos_token)
        prompt, answers = group.prompt_ids.tolist(), [ids.tolist() for ids in group.answers]
        assert [ids.index(end) for ids in answers] == [len(ids) - 1 for ids in answers]
        assert case.tokenizer.eos_token_id not in [index for ids in answers for index in ids[:-1]]
        if (
            bos is not None
            and bos not in (end, case.tokenizer.eos_token_id)
            and case.tokenizer.bos_token != "<|im_start|>"
        ):
            assert [place for place, index in enumerate(prompt) if index == bos] == [0] * (written or case.begins)
            assert not any(bos in ids for ids in answers)

    holds()
