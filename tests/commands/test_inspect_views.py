"""What a person sees of rows and of findings: all of it, in order, and nothing that acts on terminal or browser."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.tokenizers import quickstart, sentencepiece
from rich.console import Console

from dpo_cli.commands.inspect_html import write_html
from dpo_cli.commands.inspect_view import show_result, show_rows, summary
from dpo_cli.commands.token_view import view, visible
from dpo_cli.data.audit.result import Finding, Histogram, Lengths, Result, Side
from dpo_cli.data.types import Group, Pair

TOKENIZER = quickstart()


def group(prompt: str, *answers: str, tokenizer=TOKENIZER, **options) -> Group:
    ids = [np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32) for text in (prompt, *answers)]
    return Group(ids[0], tuple(ids[1:]), options.pop("pairs", (Pair(0, 1),)), "a.jsonl, row 1", **options)


ROW = group("<|im_start|>user\nsort<|im_end|>\n", "same then good<|im_end|>", "same then bad<|im_end|>")


def said(show, *what, width: int = 100, colours: bool = False) -> str:
    out = io.StringIO()
    options = {"force_terminal": True, "color_system": "truecolor"} if colours else {"color_system": None}
    show(Console(file=out, width=width, **options), *what)
    return out.getvalue()


@pytest.mark.parametrize("text", ["plain words", "世界 😊 é", "a\n\nb", "  two  spaces "])
@pytest.mark.parametrize("tokenizer", [TOKENIZER, sentencepiece()], ids=["byte-level", "sentencepiece"])
def test_the_pieces_are_the_text(text: str, tokenizer) -> None:
    shown = view(group("p" + text, "a", "b", tokenizer=tokenizer), tokenizer)
    assert "".join(piece.text for piece in shown.prompt.pieces).lstrip() == "p" + text
    assert shown.prompt.tokens == len(tokenizer("p" + text, add_special_tokens=False)["input_ids"])


def test_parts_of_answers() -> None:
    shown = view(ROW, TOKENIZER)
    (chosen, better), (rejected, worse) = shown.answers
    assert chosen.startswith("chosen, ")
    assert rejected.startswith("rejected, ")
    assert [stretch.part for stretch in (*better, *worse)] == ["shared", "chosen", "shared", "rejected"]
    assert "".join(piece.text for piece in better[0].pieces) == "same then "
    assert [piece.text for piece in better[1].pieces if piece.special] == ["<|im_end|>"]


def test_what_is_not_learnt_is_said() -> None:
    masked = group("p", "abc", "xyz")
    scored = tuple(np.arange(len(answer)) != 1 for answer in masked.answers)
    shown = view(Group(masked.prompt_ids, masked.answers, masked.pairs, "row", scored=scored), TOKENIZER)
    assert [stretch.part for stretch in shown.answers[0][1]] == ["chosen", "unscored", "chosen"]


def test_judged_and_ranked_answers() -> None:
    assert view(group("p", "a", labels=(False,), pairs=()), TOKENIZER).answers[0][0].startswith("bad, ")
    ranked = view(group("p", "a", "b", "c", ranks=(1, 0, 2)), TOKENIZER)
    assert [said.split(",")[0] for said, _ in ranked.answers] == ["rank 2", "rank 1", "rank 3"]


def test_the_middle_of_long_texts_is_left_out_and_counted() -> None:
    long = group("x " * 400, "a", "b")
    shown = view(long, TOKENIZER).prompt
    assert shown.tokens == len(long.prompt_ids)
    assert shown.hidden == shown.tokens - 120
    assert f"… {shown.hidden:,} tokens …" in said(show_rows, TOKENIZER, [long])


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("colours", [True, False])
def test_rows_in_a_terminal(width: int, colours: bool) -> None:
    text = said(show_rows, TOKENIZER, [ROW], width=width, colours=colours)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("|", "")
    assert max(map(len, plain.splitlines())) <= width
    order = [plain.index(words) for words in ("prompt, ", "user⏎", "chosen, ", "good", "rejected, ", "bad")]
    assert order == sorted(order)
    assert ("\x1b[" in text) == colours
    assert ("[shared]" in text) != colours


def test_nothing_raw_reaches_the_terminal() -> None:
    assert visible("a\x1b[31m\tb\r\n\u202e\x00") == "a\\u001b[31m⇥b␍⏎\n\\u202e\\u0000"
    nasty = group("\x1b]0;title\x07", "\x1b[2J", "b")
    assert "\x1b" not in said(show_rows, TOKENIZER, [nasty])


def test_no_rows_need_no_legend() -> None:
    assert said(show_rows, TOKENIZER, []) == ""


def side(**options) -> Side:
    histogram = Histogram([0.0, 1.0, 2.0], [3, 0])
    fields = {
        "rows": 1234,
        "comparisons": 3,
        "answers": 6,
        "prompts": 2,
        "lengths": {"prompt": Lengths(1.5, 2.0, 3.0, 4, histogram)},
        "length_gap": Histogram([-2.0, 0.0, 2.0], [1, 2]),
        "longer_wins": 0.75,
        "longer_wins_interval": (0.5, 0.875),
        "turns": {"2": 5},
        "scripts": {"Latin": 6},
        "system_prompts": 0,
        "counts": {},
    }
    return Side(**fields | options)


def finding(name: str, level: str, **options) -> Finding:
    fields = {
        **{"name": name, "side": "training", "level": level, "count": 3, "share": 0.5},
        **{"what": "What.", "effect": "Effect.", "advice": "Advice.", "rows": ["row 7"]},
    }
    return Finding(**fields | options)


FINDINGS = [
    finding("bad-rows", "error"),
    finding("ties", "note", side="held out", share=None, what="<script>alert(1)</script>\x1b[2J", rows=["row \x1b"]),
]
RESULT = Result(1, "a model", "pairs & more.jsonl", side(), side(length_gap=None, longer_wins=None), FINDINGS)


def test_findings_and_sizes_in_a_terminal() -> None:
    text = said(show_result, RESULT)
    for words in ("1,234 rows", "75.0% (50.0% to 87.5%)", "bad-rows  3 (50.0%)", "What. Effect. Advice.", "e.g. row 7"):
        assert words in text
    assert "ties of held-out rows  3" in text
    assert text.splitlines()[-1] == "1 error, 1 note; first: bad-rows"
    assert "█ " in text
    assert "\x1b" not in text


def test_the_summary_of_nothing() -> None:
    assert summary([]) == "nothing to be said against these rows"


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes) -> None:
        self.found.append(tag)
        self.links += [
            value for name, value in attributes if name in ("src", "href", "xlink:href") and value[:1] != "#"
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_safe(tmp_path: Path) -> None:
    nasty = group('<script>alert("x")</script>', "<img src=x onerror=y>", "b")
    file = tmp_path / "new" / "page.html"
    write_html(file, TOKENIZER, [ROW, nasty], RESULT)
    page = Tags(file.read_text(encoding="utf-8"))
    assert not {"script", "img", "iframe", "object", "link"} & set(page.found)
    assert page.links == []
    assert page.found.count("svg") == 3  # a gap on one side, lengths on both
    assert '<script>alert("x")</script>' in page.text
    for words in ("pairs & more.jsonl", "same then good", "1,234 rows", "<script>alert(1)</script>", "bad-rows"):
        assert words in page.text
    assert "of held-out rows" in page.text
    assert "row \\u001b" in page.text
