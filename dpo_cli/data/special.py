"""Special tokens that people wrote: in a conversation they stay text.

A tokenizer makes a special token of every string that reads like one, whoever wrote it: ``<|im_end|>`` inside a
user's message would end the turn, and what follows could pass for another speaker's. So such strings are hidden from
the chat template behind marks, and what it rendered is then tokenised by a copy of the tokenizer in which special
tokens have other names, which nobody can know: the template's are called by them, and what people wrote is text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

# Unlike any text: a code point that is no character, and a number drawn anew in each process. No result depends on it.
MARK, END = f"\ufdd0{secrets.token_hex(8)}", "\ufdd1"
_HIDDEN = re.compile(f"{MARK}hidden(\\d+){END}")


@dataclass(frozen=True)
class SpecialTokens:
    """A tokenizer's special tokens."""

    tokens: tuple[AddedToken, ...]
    ids: tuple[int, ...]
    """As many."""
    pattern: re.Pattern[str]
    """Finds any of them, of those that begin alike the longest."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
        """All that the tokenizer looks for in texts."""
        found = [(number, token) for number, token in tokenizer.added_tokens_decoder.items() if token.special]
        longest_first = sorted((token.content for _, token in found), key=len, reverse=True)
        pattern = "|".join(map(re.escape, filter(None, longest_first))) or "(?!)"
        return cls(tuple(token for _, token in found), tuple(number for number, _ in found), re.compile(pattern))

    def first_in(self, value: Any) -> str:
        """The first one in a text, or in the texts of nested lists and objects; empty where there is none."""
        if isinstance(value, str):
            match = self.pattern.search(value)
            return match[0] if match else ""
        inner: Sequence[Any] = ()
        if isinstance(value, Mapping):
            inner = [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            inner = value
        return next(filter(None, map(self.first_in, inner)), "")

    def hide(self, value: Any) -> Any:
        """The value with a mark in place of each one in its texts."""
        if isinstance(value, str):
            return self.pattern.sub(lambda match: f"{MARK}hidden{self._place(match[0])}{END}", value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(inner) for inner in value]
        return value

    def for_copy(self, rendered: str) -> str:
        """What a template made of hidden texts, for ``encode_copy``: its own special tokens by their other names, the
        hidden ones as they were written.

        Raises:
            ValueError: the template changed a mark, so that there is no telling what was written.
        """
        if {MARK[0], END} & set(_HIDDEN.sub("", rendered)):
            raise ValueError("the template changed a mark")
        named = self.pattern.sub(lambda match: _name(self._place(match[0])), rendered)
        return _HIDDEN.sub(lambda match: self.tokens[int(match[1])].content, named)

    def encode_copy(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts from ``for_copy``. ``tokenizer`` must have a ``backend_tokenizer`` in which to rename."""
        copy = _renamed(tokenizer, len(tokenizer))
        names = {copy.token_to_id(_name(place)): number for place, number in enumerate(self.ids)}
        encoded = copy.encode_batch(list(texts), add_special_tokens=False)
        return [[names.get(number, number) for number in encoding.ids] for encoding in encoded]

    def _place(self, content: str) -> int:
        return next(place for place, token in enumerate(self.tokens) if token.content == content)


def _name(place: int) -> str:
    return f"{MARK}token{place}{END}"


@lru_cache(maxsize=2)
def _renamed(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Tokenizer:
    """The copy; ``vocabulary`` is there for the cache, as tokens may be added to a tokenizer."""
    special = SpecialTokens.of(tokenizer).tokens
    copy: Tokenizer = Tokenizer.from_str(_without_pieces(tokenizer.backend_tokenizer.to_str(), special))
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True  # which says: special tokens in a text are text
    copy.add_tokens(
        [
            AddedToken(
                _name(place),
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
            )
            for place, token in enumerate(special)
        ]
    )
    return copy


def _without_pieces(saved: str, special: Sequence[AddedToken]) -> str:
    """A saved tokenizer in which no special token is a piece of words: a Unigram model has them among its own."""
    tokenizer = json.loads(saved)
    if tokenizer["model"]["type"] != "Unigram":
        return saved
    names = {token.content: _name(place) for place, token in enumerate(special)}
    pieces = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = [[names.get(piece, piece), score] for piece, score in pieces]
    for token in tokenizer["added_tokens"]:
        if token["content"] in names:  # no longer special: special tokens in a text are text, to the copy
            token |= {"content": names[token["content"]], "special": False}
    return json.dumps(tokenizer)
