"""What a person sees is text: no markup, and nothing that a terminal would act on."""

from __future__ import annotations

import pytest
from rich.table import Table

from dpo_cli.errors import one_line, printable
from dpo_cli.tracking.console import Console

STRANGE = "[INST] sort [/INST] [bold]x :smile: \x1b[31mred\x1b]0;title\x07 \u202egnp.exe \x9b2J \r\x08"
SHOWN = "[INST] sort [/INST] [bold]x :smile: \\x1b[31mred\\x1b]0;title\\x07 \\u202egnp.exe \\x9b2J \\r\\x08"


def test_text_of_strangers_is_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    console = Console()
    console.say(STRANGE)
    console.warn(STRANGE)
    console.result(STRANGE)
    with console.phase(STRANGE) as advance:
        advance(1)
    table = Table(title=STRANGE, title_justify="left")
    table.add_column(STRANGE, no_wrap=True)
    table.add_row(STRANGE)
    console.table(table)
    out, err = capsys.readouterr()
    assert err.count(SHOWN) == 3
    assert out.count(SHOWN) == 4
    assert all(letter.isprintable() or letter == "\n" for letter in out + err)


def test_what_is_printable() -> None:
    assert printable("ein Stück\n\tTon 声 é") == "ein Stück\n\tTon 声 é"
    assert printable(STRANGE) == SHOWN
    assert one_line("a\nb\x1b") == "a\\nb\\x1b"
