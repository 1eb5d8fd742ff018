"""``dpo inspect``: what training will see of the rows, and an audit of them all. No weight is loaded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from dpo_cli.commands.revisions import check_revisions
from dpo_cli.commands.rows import held_out_part, make_loader, training_parts
from dpo_cli.commands.writable import check_writable
from dpo_cli.config import DataConfig, InspectConfig
from dpo_cli.data.audit import NAMES, audit
from dpo_cli.data.audit.result import LEVELS, Finding
from dpo_cli.errors import DpoError, FindingsError
from dpo_cli.losses import make_loss
from dpo_cli.tracking.console import Console, Terminal


def run(config: InspectConfig) -> None:
    """Read, measure, show.

    Raises:
        FindingsError: there is what ``inspect.fail_on`` names.
        DpoError: rows that can't be read at all, or a name in ``inspect.fail_on`` that no finding has.
    """
    settings = config.inspect
    _check_names(settings.fail_on)
    if settings.html is not None:
        check_writable(Path(settings.html).parent, "--html", "choose another place for the page")
    console, screen = Console(), Terminal()
    kind = make_loss(config.loss.settings()).kind
    check_revisions(config, kind)
    loader = make_loader(config.model, config.data, console)
    result, groups = audit(
        training_parts(config.data, kind),
        held_out_part(config.data, kind),
        loader,
        limit=config.data.limit,
        seed=config.seed,
        show=settings.rows,
        model=config.model.path,
        data=_name(config.data),
    )
    if settings.html is not None:
        from dpo_cli.commands.inspect_html import write_html

        write_html(Path(settings.html), loader.tokenizer, groups, result)
    if settings.as_json:
        print(json.dumps(dataclasses.asdict(result), indent=2))
    else:
        from dpo_cli.commands.inspect_view import show_result, show_rows

        show_rows(screen, loader.tokenizer, groups)
        show_result(screen, result)
        if settings.html is not None:
            console.result(f"written to {settings.html}")
    failing = [finding.name for finding in result.findings if _fails(finding, settings.fail_on)]
    if failing:
        raise FindingsError(f"--fail-on {','.join(settings.fail_on)}: found {', '.join(dict.fromkeys(failing))}")


def _check_names(fail_on: Sequence[str]) -> None:
    unknown = [name for name in fail_on if name not in (*LEVELS, *NAMES)]
    if unknown:
        raise DpoError(f"--fail-on {unknown[0]}: expected {', '.join(LEVELS)}, or some of {', '.join(NAMES)}")


def _fails(finding: Finding, fail_on: Sequence[str]) -> bool:
    """By its name, or by a level that it reaches."""
    reached = LEVELS[LEVELS.index(finding.level) :]
    return finding.name in fail_on or any(level in fail_on for level in reached)


def _name(data: DataConfig) -> str:
    return data.path or ", ".join(f"{name} ({part.path})" for name, part in (data.mix or {}).items())
