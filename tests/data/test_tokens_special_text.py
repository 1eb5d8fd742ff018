"""Text that looks like special tokens stays text: only the template writes such tokens."""

from __future__ import annotations

from collections import Counter

import pytest
from helpers.conversations import ANSWER, EFFORT, NAMES, Case, chat, row, templates
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dpo_cli.data.types import Message


def conversation(words: list[str]) -> list[Message]:
    """System, user, assistant, user and assistant say these."""
    roles = ("system", "user", "assistant", "user", "assistant")
    return [Message(role=role, content=said) for role, said in zip(roles, words, strict=True)]


def special(case: Case, words: list[str]) -> list[Counter[int]]:
    """How often each special token stands in the prompt, and in the answer."""
    *prompt, answer = conversation(words)
    (encoded,) = case.encode(row(prompt, [[answer], [Message(role="assistant", content="other")]]))
    assume(encoded.group is not None)
    parts = (encoded.group.prompt_ids.tolist(), encoded.group.answers[0].tolist())
    known = set(case.tokenizer.all_special_ids) - {case.tokenizer.unk_token_id}  # which may stand for any text
    return [Counter(index for index in part if index in known) for part in parts]


@pytest.mark.parametrize("name", NAMES)
@EFFORT
def test_special_tokens_are_the_template_s(name: str, effort: settings) -> None:
    @effort
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        case = chat(name, data.draw(st.sampled_from(templates(name))))
        token = st.sampled_from(case.tokenizer.all_special_tokens)
        said = st.tuples(ANSWER, token, ANSWER).map("".join)
        words = data.draw(st.lists(said, min_size=5, max_size=5))
        assert special(case, words) == special(case, ["a"] * 5)

    holds()
