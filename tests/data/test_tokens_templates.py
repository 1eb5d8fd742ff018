"""A template that writes the prompt differently once an answer follows is refused, with row and place."""

from __future__ import annotations

import pytest
from helpers.conversations import EFFORT, chat, conversations
from hypothesis import given, settings

from dpo_cli.data.types import Example
from dpo_cli.errors import DataError

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
UNSTABLE = {
    "thinking opened, then left out": TURNS
    + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "last turn marked": "{% for m in messages %}{{ m.role }}{{ '*' if loop.last }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "turns counted": "{{ messages | length }} turns\n" + TURNS,
    "thinking dropped from earlier turns": "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% if loop.revindex > 1 %}\n{% else %} (thinking)\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
}


@pytest.mark.parametrize("template", UNSTABLE)
@EFFORT
def test_row_and_place_are_named(template: str, effort: settings, monkeypatch: pytest.MonkeyPatch) -> None:
    case = chat("with_bos", "chatml")
    monkeypatch.setattr(case.tokenizer, "chat_template", UNSTABLE[template])

    @effort
    @given(conversations())
    def holds(example: Example) -> None:
        before = case.render(example.prompt, generation=True)
        whole = case.render([*example.prompt, *example.answers[0]])
        same = max((before[:end] for end in range(len(before)) if whole.startswith(before[:end])), key=len)
        with pytest.raises(DataError) as error:
            case.encode(example)
        assert str(error.value).startswith("rows.jsonl, line 7: ")
        assert f"after {same[-20:]!r} comes {before[len(same) :][:40]!r}" in str(error.value)

    holds()
