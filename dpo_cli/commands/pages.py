"""HTML pages in one file, with nothing from elsewhere in them: what the pages of all commands share."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup


def environment() -> jinja2.Environment:
    """For the templates beside this file. What is put into them is text, never markup."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("dpo_cli.commands"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def source(pages: jinja2.Environment, name: str) -> Markup:
    """A file of ours beside the templates, as it stands."""
    assert pages.loader is not None
    return Markup(pages.loader.get_source(pages, name)[0])


def script_hash(script: str) -> str:
    """What a content security policy calls a script, so that the browser runs this one and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def embedded(values: Mapping[str, Any]) -> Markup:
    """JSON that can stand inside a ``<script>`` element: no text in it can end the element or begin a comment.

    Numbers that are not finite become null.
    """
    text = json.dumps(_finite(values), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
