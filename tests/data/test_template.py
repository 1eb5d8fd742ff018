"""Named chat templates: their exact text, and the tokens they bring."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.tokenizers import quickstart, with_bos, without_bos
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dpo_cli.data.template import set_chat_template
from dpo_cli.errors import DpoError

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
]
TEXTS = {
    "chatml": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
    "zephyr": (
        "<|system|>\nBe kind.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello!</s>\n<|user|>\nBye</s>\n",
        "<|assistant|>\n",
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": ("<s> [INST] Be kind.\n\nHi [/INST] Hello!</s> [INST] Bye [/INST]", ""),
    "gemma": (
        "<s><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n",
        "<start_of_turn>model\n",
    ),
}
ADDED = {
    "chatml": (["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "zephyr": ([], "</s>"),
    "llama3": (["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
    "mistral": ([], "</s>"),
    "gemma": (["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text(name: str) -> None:
    tokenizer = with_bos()
    set_chat_template(tokenizer, name)
    text, generation = TEXTS[name]
    assert tokenizer.apply_chat_template(TALK, tokenize=False) == text
    assert tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True) == text + generation


@pytest.mark.parametrize("name", ADDED)
def test_tokens_and_end_of_turn(name: str, tmp_path: Path) -> None:
    tokenizer = with_bos()
    before = len(tokenizer)
    added, end = ADDED[name]
    assert set_chat_template(tokenizer, name) == added
    assert tokenizer.eos_token == end
    assert [tokenizer(token, add_special_tokens=False)["input_ids"] for token in added] == [
        [before + place] for place in range(len(added))
    ]
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert (saved.chat_template, saved.eos_token, len(saved)) == (tokenizer.chat_template, end, before + len(added))


def test_tokens_that_are_there_are_not_added() -> None:
    tokenizer = quickstart()
    before = len(tokenizer)
    assert set_chat_template(tokenizer, "chatml") == []
    assert (len(tokenizer), tokenizer.eos_token_id) == (before, 2)


def test_special_tokens_that_are_there_stay_special() -> None:
    tokenizer = quickstart()
    set_chat_template(tokenizer, "gemma")
    kept = ["<|im_start|>", "<start_of_turn>", "<end_of_turn>"]
    assert set(kept) <= set(tokenizer.all_special_tokens)


def test_no_bos_is_no_trouble() -> None:
    tokenizer = without_bos()
    set_chat_template(tokenizer, "gemma")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<start_of_turn>user\nHi<end_of_turn>\n"


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}\n")
    tokenizer = with_bos()
    assert set_chat_template(tokenizer, str(file)) == []
    assert tokenizer.apply_chat_template(TALK[:2], tokenize=False) == "[system]Be kind.[user]Hi"
    assert tokenizer.eos_token == "</s>"


CHOICES = "choose chatml, zephyr, llama3, mistral, gemma, or a .jinja file"


def test_mistakes_name_the_choices(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jinja"
    broken.write_text("{{ bos_token }}\n{% for message in messages %}{{ message['role'] }}")
    with pytest.raises(DpoError) as error:
        set_chat_template(with_bos(), "llama2")
    assert str(error.value) == f"model.chat_template=llama2: there is no such template; {CHOICES}"
    with pytest.raises(DpoError, match=rf"can't be read \(.*No such file.*\); {CHOICES}$"):
        set_chat_template(with_bos(), str(tmp_path / "missing.jinja"))
    with pytest.raises(DpoError, match=rf"broken.jinja: the template has a mistake at line 2 \(.*\); {CHOICES}$"):
        set_chat_template(with_bos(), str(broken))


@pytest.mark.parametrize("name", ["zephyr", "mistral"])
def test_end_of_sequence_is_needed(name: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=with_bos().backend_tokenizer)
    with pytest.raises(DpoError, match="ends turns with the end-of-sequence token, and the tokenizer has none"):
        set_chat_template(tokenizer, name)


@pytest.mark.parametrize("name", ["mistral", "gemma"])
def test_roles_a_template_has_no_place_for_are_refused(name: str) -> None:
    tokenizer = with_bos()
    set_chat_template(tokenizer, name)
    with pytest.raises(Exception, match=f"the {name} template has no role tool here"):
        tokenizer.apply_chat_template([*TALK, {"role": "tool", "content": "42"}], tokenize=False)
