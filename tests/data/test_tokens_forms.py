"""The same conversation is the same tokens, however its row is written, whatever stands beside it, up to the batch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from helpers.conversations import ANSWER, EFFORT, NAMES, chat, conversations, templates
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dpo_cli.data.collate import Layout, collate
from dpo_cli.data.formats import to_example
from dpo_cli.data.sources import Row
from dpo_cli.data.tokenize import Encoded

EVERY_TOKENIZER = pytest.mark.parametrize("name", NAMES)


def ids(encoded: Sequence[Encoded]) -> list[list[list[int]] | None]:
    """Prompt and answers of each row; None where there is no group."""
    groups = [each.group for each in encoded]
    return [group and [part.tolist() for part in (group.prompt_ids, *group.answers)] for group in groups]


def shapes(prompt: str, chosen: str, rejected: str) -> list[dict[str, object]]:
    """One comparison, as rows have it."""
    user = {"role": "user", "content": prompt}
    answers = {
        "chosen": {"role": "assistant", "content": chosen},
        "rejected": {"role": "assistant", "content": rejected},
    }
    return [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected},
        {"prompt": [user], **{key: [turn] for key, turn in answers.items()}},
        {"prompt": [user], **{key: [user, turn] for key, turn in answers.items()}},
        {key: [user, turn] for key, turn in answers.items()},
        {
            "conversations": [{"from": "human", "value": prompt}],
            "chosen": {"from": "gpt", "value": chosen},
            "rejected": {"from": "gpt", "value": rejected},
        },
    ]


@EVERY_TOKENIZER
@EFFORT
def test_shape_of_the_row(name: str, effort: settings) -> None:
    @effort
    @given(st.sampled_from(templates(name)), ANSWER, ANSWER, ANSWER)
    def holds(template: str, prompt: str, chosen: str, rejected: str) -> None:
        assume(chosen != rejected)
        examples = [to_example(Row("row 1", values)) for values in shapes(prompt, chosen, rejected)]
        first, *others = ids(chat(name, template).encode(*examples))
        assert all(other == first for other in others)

    holds()


@EVERY_TOKENIZER
@EFFORT
def test_rows_beside_it_and_the_padding_token(name: str, effort: settings) -> None:
    @effort
    @given(st.sampled_from(templates(name)), st.lists(conversations(), min_size=2, max_size=3))
    def holds(template: str, rows: list) -> None:
        case = chat(name, template)
        together = ids(case.encode(*rows))
        assert together == [one for row in rows for one in ids(case.encode(row))]
        assert together == ids(case.encode(*rows[::-1]))[::-1]
        before = case.tokenizer.pad_token
        for padding in (case.tokenizer.eos_token, case.tokenizer.convert_ids_to_tokens(5)):
            case.tokenizer.pad_token = padding
            assert ids(case.encode(*rows)) == together
        case.tokenizer.pad_token = before

    holds()


@EVERY_TOKENIZER
@EFFORT
def test_targets_of_a_batch_are_the_answers_after_their_prompts(name: str, effort: settings) -> None:
    @effort
    @given(st.sampled_from(templates(name)), st.lists(conversations(), min_size=1, max_size=3), st.booleans())
    def holds(template: str, rows: list, share: bool) -> None:
        groups = [each.group for each in chat(name, template).encode(*rows) if each.group is not None]
        assume(groups)
        batch = collate(groups, share=share)
        assert sum(len(answer) for group in groups for answer in group.answers) == len(batch.answer_tokens)
        branches = [place for layout in batch.layouts for place in visible(layout)]
        sequences = [(group.prompt_ids, answer) for group in groups for answer in group.answers]
        for number, (places, (prompt, answer)) in enumerate(zip(branches, sequences, strict=True)):
            tokens = batch.answer_tokens[batch.answer == number]
            assert batch.targets[tokens].tolist() == answer.tolist()
            assert batch.input_ids[places].tolist() == [*prompt, *answer[:-1]]
            assert batch.position_ids[places].tolist() == list(range(len(places)))
            assert batch.rows[batch.token_rows[tokens]].tolist() == places[len(prompt) - 1 :]

    holds()


def visible(layout: Layout) -> list[list[int]]:
    """For each branch, the places of its trunk and of itself."""
    trunk = list(range(layout.start, layout.start + layout.trunk))
    starts = [layout.start + layout.trunk + sum(layout.branches[:number]) for number in range(len(layout.branches))]
    return [trunk + list(range(start, start + size)) for start, size in zip(starts, layout.branches, strict=True)]
