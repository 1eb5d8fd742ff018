"""What is found by giving the tokenizer a row's text or tokens once more."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from dpo_cli.data.encode import encoder
from dpo_cli.data.render import Span
from dpo_cli.data.tokenize import Encoded
from dpo_cli.data.types import Message

_NEAR = 2000
"""Characters on each side of where an answer begins, that are looked at for a token across it."""


def lost_text(encoded: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
    """For each row, and each of its answers whose tokens don't give its text back, the characters that are missing.

    Such as ``U+0000, é``; empty where it is their order or number that is lost. What the template leaves out or changes
    is not the tokenizer's loss.
    """
    ids = [answer.ids for each in encoded for answer in each.whole.answers]
    texts = iter(tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    lost = []
    for each in encoded:
        missing = [
            _missing(said, spans, next(texts))
            for said, spans in zip([*each.example.answers], each.rendered.answers, strict=True)
        ]
        lost.append([characters for characters in missing if characters is not None])
    return lost


def _missing(said: Sequence[Message] | str, spans: Sequence[Span], text: str) -> str | None:
    rendered = "".join(span.text for span in spans)
    contents = [said] if isinstance(said, str) else [turn["content"] for turn in said]
    for content in map(str.strip, contents):
        if content in rendered and content not in text:
            return ", ".join(map(_name, sorted(set(content) - set(text))[:3]))
    return None


def _name(letter: str) -> str:
    return letter if letter.isprintable() and not letter.isspace() else f"U+{ord(letter):04X}"


def merges(encoded: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """Whether a token would span prompt and answer, were the two tokenised as one text.

    Args:
        encoded: rows without special tokens in what people wrote.
        tokenizer: the model's.
    """
    texts = []
    for each in encoded:
        before = each.rendered.prompt[-_NEAR:]
        answers = ["".join(span.text for span in spans)[:_NEAR] for spans in each.rendered.answers]
        texts.append([before, *(before + answer for answer in answers)])
    ids = iter(encoder(tokenizer)([text for of_row in texts for text in of_row]) if texts else [])
    found = []
    for of_row in texts:
        prompt, *whole = [next(ids) for _ in of_row]
        found.append(any(tokens[: len(prompt)] != prompt for tokens in whole))
    return found
