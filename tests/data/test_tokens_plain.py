"""Texts that no template touches keep their characters, and nothing comes between prompt and answer."""

from __future__ import annotations

import pytest
from helpers.conversations import EFFORT, NAMES, plain, row, texts
from hypothesis import assume, given, settings
from hypothesis import example as known

from dpo_cli.data.types import Example

WITH_END = [each for each in NAMES if each.values[0] != "endless"]


@pytest.mark.parametrize("name", WITH_END)
@EFFORT
def test_prompt_answer_and_end(name: str, effort: settings) -> None:
    case = plain(name)
    bos, eos = case.tokenizer.bos_token_id, case.tokenizer.eos_token_id

    @effort
    @given(texts())
    @known(row("Q: ", ["12", "世界"]))
    @known(row("1", ["23", " 4"]))
    @known(row("a\n", ["\n the end", "ing"]))
    @known(row("e", ["\u0301", "e"]))
    def holds(example: Example) -> None:
        assume(case.begins or case.ids(example.prompt))
        group = case.group(example)
        assume(group is not None)
        prompt = group.prompt_ids.tolist()
        alone = case.tokenizer(example.prompt)["input_ids"]  # with whatever it puts before and after
        assert prompt == alone[: len(prompt)]
        assert alone[len(prompt) :] in ([], [eos])
        assert not case.begins or prompt.count(bos) == 1
        for answer, ids in zip(example.answers, group.answers, strict=True):
            assert ids.tolist().index(eos) == len(ids) - 1
            assert bos == eos or bos not in ids
            decoded = case.text(*prompt[case.begins :], *ids[:-1])
            joint = case.ids(example.prompt + answer)
            unknown = case.tokenizer.unk_token_id in joint  # then one token stands for the whole word
            assert unknown or case.kept(decoded) == case.kept(case.text(*joint))
            assert not case.exact or decoded == example.prompt + answer

    holds()
