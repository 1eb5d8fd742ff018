"""Tokens of prompts and answers: one beginning, one end, nothing merged, cuts by rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.tokenizers import quickstart, sentencepiece, with_bos, without_bos
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from dpo_cli.data.template import set_chat_template
from dpo_cli.data.tokenize import Encoding, TokenizeCounts, cut, end_tokens, tokenize
from dpo_cli.data.types import Example, Group, Pair
from dpo_cli.errors import DataError, DpoError

TOKENIZERS = {make.__name__: make for make in (without_bos, with_bos, sentencepiece)}


def with_template(make: Callable[[], PreTrainedTokenizerBase], name: str) -> PreTrainedTokenizerBase:
    tokenizer = make()
    set_chat_template(tokenizer, name)
    return tokenizer


PLAIN = {name: make() for name, make in TOKENIZERS.items()}
CHAT = {
    (name, template): with_template(make, template)
    for name, make in TOKENIZERS.items()
    for template in ("chatml", "zephyr", "llama3", "mistral", "gemma")
}


def text_row(prompt: str = "Q", chosen: str = "A", rejected: str = "B", source: str = "row 1") -> Example:
    return Example(prompt, [chosen, rejected], (Pair(0, 1),), source)


def chat_row(*turns: tuple[str, str], chosen: str = "A", rejected: str = "B") -> Example:
    answers = [[{"role": "assistant", "content": answer}] for answer in (chosen, rejected)]
    return Example([{"role": role, "content": text} for role, text in turns], answers, (Pair(0, 1),), "row 1")


def run(rows: list[Example], tokenizer: PreTrainedTokenizerBase, **options: Any) -> tuple[list[Group], TokenizeCounts]:
    encoding = Encoding(**{"max_length": 4096, "on_too_long": "drop"} | options)
    counts = TokenizeCounts()
    encoded = tokenize(rows, tokenizer, encoding, end_tokens(rows, tokenizer, encoding.text))
    for each in encoded:
        counts.add(each)
    return [each.group for each in encoded if each.group is not None], counts


def one(row: Example, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Group:
    (group,), _ = run([row], tokenizer, **options)
    return group


def whole(tokenizer: PreTrainedTokenizerBase, group: Group, answer: int) -> str:
    return str(tokenizer.decode([*group.prompt_ids, *group.answers[answer]]))


# Special tokens are spelled with < and |; a text that holds one is another test.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<|")).filter(str.strip)
SPIKY = st.sampled_from(["Q: ", "Say [/INST] ", "a\n", "x\n\n", "$", "12", "345 ", " 世界", "😊", " é", "  two", "▁"])
PIECE = TEXT | SPIKY


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PIECE, PIECE, PIECE)
@example("Q: ", "12", "世界")
@example("Say [/INST] ", "$5", "😊")
@example("1", "23", " 4")
def test_plain_rows_keep_their_text(name: str, prompt: str, chosen: str, rejected: str) -> None:
    tokenizer = PLAIN[name]
    row = text_row(prompt, chosen, rejected + "!" * (chosen == rejected))
    group = one(row, tokenizer)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    own_bos = [] if bos is None else [bos]
    assert group.prompt_ids.tolist() == own_bos + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    space = "" if name != "sentencepiece" or prompt.startswith((" ", "▁")) else " "
    for number, answer in enumerate(row.answers):
        assert group.answers[number].tolist().count(eos) == 1
        assert group.answers[number][-1] == eos
        expected = (tokenizer.bos_token or "") + space + prompt + answer + tokenizer.eos_token
        assert whole(tokenizer, group, number) == (expected.replace("▁", " ") if name == "sentencepiece" else expected)


@pytest.mark.parametrize(("name", "template"), CHAT)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PIECE, PIECE, PIECE)
@example("Q: ", "12", "世界")
@example("Say [/INST] ", "$5", "😊")
def test_chat_rows_are_the_conversation(name: str, template: str, prompt: str, chosen: str, rejected: str) -> None:
    tokenizer = CHAT[name, template]
    row = text_row(prompt, chosen, rejected.strip() + "!" * (chosen.strip() == rejected.strip()))
    group = one(row, tokenizer)
    turns = [{"role": "user", "content": prompt}]
    before = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = group.prompt_ids.tolist()
    assert ids.count(tokenizer.bos_token_id) == (tokenizer.bos_token_id is not None)
    assert ids[-1] == tokenizer(before, add_special_tokens=False)["input_ids"][-1]
    for number, answer in enumerate(row.answers):
        assert group.answers[number].tolist().count(tokenizer.eos_token_id) == 1
        assert group.answers[number][-1] == tokenizer.eos_token_id
        turn = {"role": "assistant", "content": answer}
        text = tokenizer.apply_chat_template([*turns, turn], tokenize=False)
        joint = tokenizer.decode(tokenizer(text)["input_ids"])
        once = joint.replace("<s><s>", "<s>").rstrip("\n")
        assert whole(tokenizer, group, number) == once


def test_exact_ids() -> None:
    tokenizer = quickstart()
    group = one(text_row("hi", "a", "bc"), tokenizer)
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert group.prompt_ids.dtype == group.answers[0].dtype == np.int32
    assert group.prompt_ids.tolist() == tokenizer(text)["input_ids"]
    assert [answer.tolist() for answer in group.answers] == [[67, 2], [68, 69, 2]]
    assert (group.pairs, group.source, group.question) == ((Pair(0, 1),), "row 1", "hi")


@pytest.mark.parametrize("template", ["chatml", "zephyr", "llama3", "mistral", "gemma"])
def test_text_and_its_messages_are_the_same_tokens(template: str) -> None:
    tokenizer = CHAT["with_bos", template]
    text, messages = one(text_row("Q", "A", "B"), tokenizer), one(chat_row(("user", "Q")), tokenizer)
    assert text.prompt_ids.tolist() == messages.prompt_ids.tolist()
    assert [ids.tolist() for ids in text.answers] == [ids.tolist() for ids in messages.answers]


def test_a_system_prompt_of_the_template_stands_once() -> None:
    tokenizer = quickstart()
    tokenizer.chat_template = "{% if messages[0]['role'] != 'system' %}SYSTEM {% endif %}" + tokenizer.chat_template
    group = one(text_row(), tokenizer)
    assert [whole(tokenizer, group, answer).count("SYSTEM") for answer in (0, 1)] == [1, 1]
    assert tokenizer.decode(group.answers[0]) == "A<|im_end|>"


def test_end_token_in_the_data_is_not_doubled() -> None:
    tokenizer = with_bos()
    group = one(text_row("<s>Q", "A</s>", "B</s></s>"), tokenizer)
    assert tokenizer.decode(group.prompt_ids) == "<s>Q"
    assert [tokenizer.decode(answer) for answer in group.answers] == ["A</s>", "B</s>"]


def test_end_of_turn_that_is_not_eos() -> None:
    tokenizer = with_bos()
    set_chat_template(tokenizer, "gemma")
    tokenizer.eos_token = "</s>"
    group = one(text_row("Q", "A", "B</s>"), tokenizer)
    assert [tokenizer.decode(answer) for answer in group.answers] == ["A<end_of_turn>", "B</s>"]


def test_eos_where_the_template_has_no_end_of_turn() -> None:
    tokenizer = with_bos()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }};{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    group = one(text_row(), tokenizer)
    assert whole(tokenizer, group, 0) == "<s>user: Q;assistant: A;</s>"


def test_template_that_rewrites_the_prompt_is_refused() -> None:
    tokenizer = quickstart()
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}[answer]{% endif %}"
        "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}[answer]<think>{% endif %}"
    )
    with pytest.raises(DataError) as error:
        run([text_row("What?", "Yes", "No")], tokenizer)
    assert str(error.value) == (
        "row 1: the chat template writes the prompt differently once an answer follows: after 'What?[answer]' comes "
        "'<think>' without an answer and 'Yes' with one; another template can be given with model.chat_template"
    )


def test_dialogue_that_the_template_refuses() -> None:
    tokenizer = CHAT["with_bos", "mistral"]
    with pytest.raises(
        DataError, match=r"^row 1: the chat template refuses this dialogue \(the mistral template has no"
    ):
        run([chat_row(("user", "Q"), ("tool", "42"))], tokenizer)


def test_question_is_the_last_user_turn() -> None:
    row = chat_row(("user", "first"), ("assistant", "x"), ("user", "second"), ("tool", "42"))
    assert one(row, quickstart()).question == "second"
    assert one(text_row("as it stands"), without_bos()).question == "as it stands"


def test_auto_follows_the_tokenizer() -> None:
    tokenizer = quickstart()
    assert tokenizer.decode(one(text_row(), tokenizer, text="plain").prompt_ids) == "Q"
    assert tokenizer.decode(one(text_row(), tokenizer, text="auto").prompt_ids).startswith("<|im_start|>")
    assert one(text_row(), without_bos(), text="auto").prompt_ids.tolist() == without_bos()("Q")["input_ids"]


NO_TEMPLATE = (
    "but the tokenizer has no chat template: name one with model.chat_template "
    "(one of chatml, zephyr, llama3, mistral, gemma, or a .jinja file)"
)


def test_text_and_rows_that_do_not_go_together() -> None:
    messages = chat_row(("user", "Q"))
    with pytest.raises(DpoError) as error:
        run([text_row(), messages], without_bos())
    assert str(error.value) == f"the rows are messages, {NO_TEMPLATE}"
    with pytest.raises(DpoError) as error:
        run([text_row()], without_bos(), text="chat")
    assert str(error.value) == f"data.text=chat, {NO_TEMPLATE}"
    with pytest.raises(
        DpoError, match=r"^data.text=plain: the rows are messages, which only a chat template can render"
    ):
        run([messages], quickstart(), text="plain")


def test_prompt_without_a_token() -> None:
    assert one(text_row(""), with_bos()).prompt_ids.tolist() == [0]
    with pytest.raises(DataError, match=r"^row 1: the prompt is empty, and this tokenizer has no token to begin with$"):
        run([text_row("")], without_bos())


def test_tokenizer_without_an_end() -> None:
    tokenizer = without_bos()
    tokenizer.eos_token = None
    with pytest.raises(DpoError, match="has no end-of-sequence token"):
        run([text_row()], tokenizer)


@pytest.mark.parametrize(
    ("prompt", "answers", "max_length", "max_prompt_length", "expected"),
    [
        ([1, 2, 3], [[4, 5], [6]], 5, None, ([1, 2, 3], [[4, 5], [6]])),
        ([1, 2, 3, 4], [[5, 6], [7]], 5, None, ([2, 3, 4], [[5, 6], [7]])),
        ([0, 1, 2, 3], [[5, 6], [7]], 5, None, ([0, 2, 3], [[5, 6], [7]])),
        ([1, 2], [[3, 4, 5, 6], [7]], 5, None, ([1, 2], [[3, 4, 5], [7]])),
        ([1, 2, 3, 4], [[5, 6, 7, 8], [9]], 5, None, ([3, 4], [[5, 6, 7], [9]])),
        ([0, 2, 3, 4], [[5, 6, 7, 8], [9]], 2, None, ([4], [[5], [9]])),
        ([1, 2, 3, 4], [[5], [6]], 9, 2, ([3, 4], [[5], [6]])),
        ([0, 2, 3, 4], [[5], [6]], 9, 2, ([0, 4], [[5], [6]])),
        ([1, 2, 3, 4], [[5, 6], [7]], 5, 4, ([1, 2, 3, 4], [[5], [7]])),
        ([1, 2, 3, 4], [[5, 6], [7]], 3, 9, ([3, 4], [[5], [7]])),
    ],
)
def test_what_is_cut(
    prompt: list[int],
    answers: list[list[int]],
    max_length: int,
    max_prompt_length: int | None,
    expected: tuple[list[int], list[list[int]]],
) -> None:
    assert cut(prompt, answers, max_length, max_prompt_length, bos=0) == expected


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.lists(st.lists(st.integers(), min_size=1, max_size=30), min_size=1, max_size=3),
    st.integers(2, 40),
    st.none() | st.integers(1, 40),
)
def test_cuts_leave_a_token_of_everything(
    prompt: list[int], answers: list[list[int]], max_length: int, max_prompt_length: int | None
) -> None:
    kept_prompt, kept = cut(prompt, answers, max_length, max_prompt_length, bos=0)
    longest = max(map(len, answers))
    assert 1 <= len(kept_prompt) <= (max_prompt_length or max_length)
    assert len(kept_prompt) + max(map(len, kept)) <= max_length
    assert all(part and part == answer[: len(part)] for part, answer in zip(kept, answers, strict=True))
    if len(prompt) + longest <= max_length and len(prompt) <= (max_prompt_length or max_length):
        assert (kept_prompt, kept) == (prompt, answers)
    elif max_prompt_length is None:
        assert max(map(len, kept)) >= min(longest, max_length // 2)


LONG = [
    text_row("Q", "A", "B", "row 1"),
    text_row("Q" * 10, "A", "B", "row 2"),
    text_row("Q", "A" * 12, "B", "row 3"),
    text_row("Q", "A" * 12, "A" * 13, "row 4"),
]


def test_truncate() -> None:
    tokenizer = with_bos()
    groups, counts = run(LONG, tokenizer, max_length=8, on_too_long="truncate")
    decoded = [[tokenizer.decode(ids) for ids in (group.prompt_ids, *group.answers)] for group in groups]
    assert decoded == [
        ["<s>Q", "A</s>", "B</s>"],
        ["<s>QQQQQ", "A</s>", "B</s>"],
        ["<s>Q", "AAAAAA", "B</s>"],
    ]
    assert counts.as_dict() == {
        "groups": 3,
        "prompts_truncated": 1,
        "answers_truncated": 1,
        "dropped_too_long": 0,
        "made_equal": 1,
        "longest": 16,
    }


def test_drop() -> None:
    groups, counts = run(LONG, with_bos(), max_length=8, on_too_long="drop")
    assert [group.source for group in groups] == ["row 1"]
    assert (counts.groups, counts.dropped_too_long, counts.made_equal) == (1, 3, 0)


def test_raise_names_rows_and_lengths() -> None:
    rows = LONG + [text_row("Q", "A" * 20, "B", f"row {number}") for number in range(5, 20)]
    with pytest.raises(DataError) as error:
        run(rows, with_bos(), max_length=8)
    lines = str(error.value).splitlines()
    assert lines[:2] == [
        "row 2: prompt of 11 tokens, answers of 2 and 2",
        "row 3: prompt of 2 tokens, answers of 13 and 2",
    ]
    assert len(lines) == 11
    assert lines[10] == (
        "... 18 of 19 rows are too long, the longest 23 (data.max_length=8, data.max_prompt_length=null); "
        "data.on_too_long=truncate cuts such rows, drop leaves them out"
    )


def test_answers_that_the_template_makes_equal_are_left_out() -> None:
    tokenizer = CHAT["with_bos", "gemma"]
    groups, counts = run([text_row("Q", "A", "A "), text_row("Q", "A", "B")], tokenizer)
    assert (len(groups), counts.made_equal) == (1, 1)


def test_nothing_left() -> None:
    with pytest.raises(DataError) as error:
        run(LONG[1:], with_bos(), max_length=8, max_prompt_length=4, on_too_long="drop")
    assert str(error.value) == (
        "no row is left of 3: 3 too long (data.max_length=8, data.max_prompt_length=4), "
        "0 with answers that the template or the cut made equal"
    )


def test_progress_and_order_over_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpo_cli.data.tokenize._CHUNK", 2)
    told: list[int] = []
    rows = [text_row(f"Q{number}", source=f"row {number}") for number in range(5)]
    groups, _ = run(rows, without_bos(), advance=told.append)
    assert [group.question for group in groups] == ["Q0", "Q1", "Q2", "Q3", "Q4"]
    assert told == [2, 2, 1]
