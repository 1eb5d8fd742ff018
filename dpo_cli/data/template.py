"""Chat templates by name, for base models that have none."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from dpo_cli.data.limits import bounded, check_output
from dpo_cli.errors import DpoError, one_line


@dataclass(frozen=True, slots=True)
class _Needs:
    """What a template asks of the tokenizer."""

    tokens: tuple[str, ...]
    """Each must be one token."""
    end: str | None
    """What ends a turn; None = the tokenizer's own end-of-sequence."""


# The markers of zephyr and mistral are plain text in their own models too.
_TEMPLATES = {
    "chatml": _Needs(("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "zephyr": _Needs((), None),
    "llama3": _Needs(("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    "mistral": _Needs((), None),
    "gemma": _Needs(("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
}
CHOICES = f"{', '.join(_TEMPLATES)}, or a .jinja file"


def set_chat_template(tokenizer: PreTrainedTokenizerBase, name_or_file: str) -> list[str]:
    """Give the tokenizer a chat template, and the special tokens it takes.

    With a named template the tokenizer's end-of-sequence becomes the token that ends a turn, so that generation
    stops there. A file changes nothing but the template.

    Returns:
        The tokens added: the model's embeddings may have to grow by as many.

    Raises:
        DpoError: no such template or file, a template with mistakes, or a tokenizer without the end-of-sequence
            that the template ends turns with.
    """
    key = f"model.chat_template={name_or_file}"
    needs = _TEMPLATES.get(name_or_file)
    if needs is None:
        tokenizer.chat_template = _read_file(name_or_file, key)
        _check(tokenizer, key)
        return []
    if needs.end is None and tokenizer.eos_token is None:
        raise DpoError(f"{key}: it ends turns with the end-of-sequence token, and the tokenizer has none")
    added = [token for token in needs.tokens if not _is_token(tokenizer, token)]
    if added:
        tokenizer.add_special_tokens({"extra_special_tokens": added}, replace_extra_special_tokens=False)
    if needs.end is not None:
        tokenizer.eos_token = needs.end
    file = resources.files("dpo_cli.data") / "templates" / f"{name_or_file}.jinja"
    tokenizer.chat_template = file.read_text("utf-8")
    return added


def _read_file(name: str, key: str) -> str:
    if not name.endswith(".jinja"):
        raise DpoError(f"{key}: there is no such template; choose {CHOICES}")
    try:
        return Path(name).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DpoError(f"{key}: can't be read ({error}); choose {CHOICES}") from error


def _is_token(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    return bool(tokenizer.convert_ids_to_tokens(ids) == [token])


def _check(tokenizer: PreTrainedTokenizerBase, key: str) -> None:
    hello = [{"role": "user", "content": "Hello"}]
    with bounded() as bounds:
        bounds.begin(key)
        try:
            check_output(tokenizer.apply_chat_template(hello, tokenize=False, add_generation_prompt=True), key)
        except (MemoryError, DpoError):
            raise
        except Exception as error:  # a template is a program: it may raise anything
            line = f" at line {error.lineno}" if hasattr(error, "lineno") else ""
            reason = one_line(str(error)) or type(error).__name__
            raise DpoError(f"{key}: the template has a mistake{line} ({reason}); choose {CHOICES}") from error
