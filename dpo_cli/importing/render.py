"""A draft as the text of an experiment."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]

from dpo_cli.importing.draft import Draft

_WIDTH = 116
_SECTIONS = ("model", "data", "loss", "reference", "optim", "train", "engine", "tracker", "seed", "run_dir")
_KEYS = (
    *("path", "mix", "subset", "split", "revision", "streaming", "shape", "columns", "rows", "weight"),
    *("chat_template", "eval", "limit", "text", "system", "template_args"),
    *("max_length", "max_prompt_length", "truncate_prompt", "on_too_long", "workers"),
    *(
        "lr",
        "betas",
        "eps",
        "weight_decay",
        "schedule",
        "min_lr_ratio",
        "warmup_ratio",
        "warmup_steps",
        "max_grad_norm",
    ),
    *("epochs", "max_steps", "batch_size", "precision", "log_every", "eval_every", "save_every", "keep_last"),
)
"""The order in which they are written; others follow in the order in which they were found."""


def render(draft: Draft, heading: list[str]) -> str:
    """The experiment's YAML, then comments on what could not be converted.

    Args:
        draft: what was found.
        heading: lines of the comment that opens it.
    """
    lines = ["# @package _global_", *comment(heading), *_defaults(draft)]
    tree = _tree(draft)
    for section in sorted(tree, key=_SECTIONS.index):
        if section not in ("run_dir",):
            lines.append("")
        lines += _yaml({section: tree[section]})
    for title, entries in _remarks(draft):
        lines += ["", *comment([f"-- {title}"])]
        for entry in entries:
            lines += textwrap.wrap(
                entry, _WIDTH, initial_indent="# * ", subsequent_indent="#   ", break_on_hyphens=False
            )
    return "\n".join(lines) + "\n"


def comment(paragraphs: list[str]) -> list[str]:
    """Wrapped lines with a # before them."""
    return [
        line for text in paragraphs for line in textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")
    ]


def _defaults(draft: Draft) -> list[str]:
    lines = [f"  - {place}: {option}" for place, option in draft.added.items()]
    lines += [f"  - override /{group}: {option}" for group, option in sorted(draft.groups.items())]
    return ["defaults:", *lines] if lines else []


def _remarks(draft: Draft) -> Iterator[tuple[str, list[str]]]:
    sections = {
        "Not the same here: please check": draft.checks,
        "Not converted, and the run differs without it": _by_reason(draft.lost),
        "Unknown, perhaps misspelt": draft.unknown,
        "Not converted, without effect on what is learnt": _by_reason(draft.harmless),
        "At the tool's defaults, with nothing to convert": [", ".join(draft.at_default)] if draft.at_default else [],
    }
    return ((title, entries) for title, entries in sections.items() if entries)


def _by_reason(entries: Mapping[str, list[str]]) -> list[str]:
    return [f"{'; '.join(options)} -- {reason}" for reason, options in entries.items()]


def _tree(draft: Draft) -> dict[str, Any]:
    """Full keys as a tree, with ``(value, remark)`` at its leaves."""
    tree: dict[str, Any] = {}
    lacking = {key: ("???", f"{key}=... on the command line: {why}") for key, why in draft.missing.items()}
    for key, leaf in (lacking | draft.values).items():
        *path, name = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[name] = leaf
    return tree


def _yaml(tree: Mapping[str, Any], indent: int = 0) -> Iterator[str]:
    pad = "  " * indent
    for key in sorted(tree, key=lambda name: _KEYS.index(name) if name in _KEYS else len(_KEYS)):
        node = tree[key]
        if isinstance(node, dict):
            yield f"{pad}{key}:"
            yield from _yaml(node, indent + 1)
        else:
            value, remark = node
            yield f"{pad}{key}: {scalar(value)}" + (f"  # {remark}" if remark else "")


def scalar(value: Any) -> str:
    """A value in YAML's flow style, which OmegaConf reads as that very value.

    A dollar sign with a brace would be an interpolation to it, and is one to none of the other tools.
    """
    value = _escaped(value)
    if not _printable(value):
        text = json.dumps(value)
    else:
        text = str(yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)).strip()
        text = text.removesuffix("...").strip()
    return re.sub(r"e([+-])0(\d)$", r"e\1\2", text)


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def _printable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_printable(item) for pair in value.items() for item in pair)
    if isinstance(value, list):
        return all(map(_printable, value))
    return value.isprintable() if isinstance(value, str) else True
