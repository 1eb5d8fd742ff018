"""``dpo inspect`` in a terminal: some rows as training sees them, and what is to be said of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.console import Group as Stack
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from dpo_cli.commands.token_view import Part, Shown, Stretch, view, visible
from dpo_cli.data.audit.result import Finding, Histogram, Lengths, Result, Side
from dpo_cli.data.types import Group

_STYLES: dict[Part, str] = {
    "prompt": "dim",
    "shared": "cyan",
    "chosen": "green",
    "rejected": "red",
    "answer": "yellow",
    "unscored": "dim italic",
}
_MEANING: dict[Part, str] = {
    "prompt": "given",
    "shared": "first tokens that all answers share, learnt, run once",
    "chosen": "learnt as the better",
    "rejected": "learnt as the worse",
    "answer": "learnt, between the best and the worst",
    "unscored": "a turn between, not learnt",
}
_SPECIAL = "bold magenta"
_LEVELS = {"error": "bold red", "warning": "yellow", "note": "blue"}
_BLOCKS = " ▁▂▃▄▅▆▇█"


def show_rows(console: Console, tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group]) -> None:
    """Rows with their tokens. Every second token is underlined; without colours a ``|`` stands between tokens.

    Args:
        console: where to.
        tokenizer: that made the tokens.
        groups: a few.
    """
    shown = [view(group, tokenizer) for group in groups]
    if not shown:
        return
    console.print(_legend(shown, colours=_colours(console)))
    for row in shown:
        console.print(Rule(visible(row.source), align="left", style="dim"))
        console.print(_labelled("prompt", f"prompt, {row.prompt.tokens} tokens"))
        console.print(_text([row.prompt], colours=_colours(console)))
        for said, stretches in row.answers:
            console.print(_labelled(stretches[-1].part, said))
            console.print(_text(stretches, colours=_colours(console)))


def _colours(console: Console) -> bool:
    return console.color_system is not None and not console.no_color


def _legend(shown: Sequence[Shown], *, colours: bool) -> Text:
    """Of the parts that occur."""
    parts = {stretch.part for row in shown for _, stretches in row.answers for stretch in stretches} | {"prompt"}
    legend = Text()
    for part, meaning in _MEANING.items():
        if part in parts:
            legend.append(part, _STYLES[part]).append(f"  {meaning}\n")
    legend.append("<special>" if not colours else "special", _SPECIAL).append("  a special token; ⏎ a line end\n")
    return legend.append(
        "every second token is underlined" if colours else "| between two tokens, [part] where one begins"
    )


def _labelled(part: Part, label: str) -> Text:
    return Text(label, style=f"bold {_STYLES[part].removeprefix('dim').strip()}".strip())


def _text(stretches: Sequence[Stretch], *, colours: bool) -> Padding:
    text = Text()
    for stretch in stretches:
        if not colours and len(stretches) > 1:
            text.append(f"[{stretch.part}]")
        for number, piece in enumerate(stretch.pieces):
            style = _SPECIAL if piece.special else _STYLES[stretch.part]
            if number and not colours:
                text.append("|")
            text.append(visible(piece.text), f"{style} underline" if colours and number % 2 else style)
    return Padding(text, (0, 0, 0, 2))


def show_result(console: Console, result: Result) -> None:
    """Sizes, lengths, findings, and a last line that sums up."""
    for name, side in (("training", result.train), ("held out", result.held_out)):
        if side is not None:
            console.print(Rule(name, align="left", style="dim"))
            console.print(_sizes(side))
            console.print(_lengths(side))
    console.print(Rule("findings", align="left", style="dim"))
    for finding in result.findings:
        console.print(_finding(finding))
    console.print(Text(summary(result.findings), style="bold"))


def summary(findings: Sequence[Finding]) -> str:
    """How many of each level, and the first."""
    counts = {level: sum(finding.level == level for finding in findings) for level in _LEVELS}
    if not findings:
        return "nothing to be said against these rows"
    told = ", ".join(f"{count} {level}{'s' * (count > 1)}" for level, count in counts.items() if count)
    return f"{told}; first: {findings[0].name}"


def _sizes(side: Side) -> Text:
    words = [
        f"{side.rows:,} rows, {side.prompts:,} different prompts, {side.comparisons:,} comparisons, "
        f"{side.answers:,} answers"
    ]
    if side.longer_wins is not None and side.longer_wins_interval is not None:
        low, high = side.longer_wins_interval
        words.append(
            f"the longer answer wins in {side.longer_wins:.1%} ({low:.1%} to {high:.1%}): what a rule of length alone "
            "would get"
        )
    for name, counted in (("turns", side.turns), ("scripts", side.scripts)):
        if counted:
            most = sorted(counted.items(), key=lambda item: -item[1])[:6]
            words.append(f"{name}: " + ", ".join(f"{key} ({count:,})" for key, count in most))
    return Text("\n".join(words))


def _lengths(side: Side) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("tokens", "mean", "median", "95 %", "longest"):
        table.add_column(heading, justify="left" if heading == "tokens" else "right")
    table.add_column("shortest to longest")
    for name, lengths in side.lengths.items():
        table.add_row(name, *_numbers(lengths), _bars(lengths.histogram))
    if side.length_gap is not None:
        edges = side.length_gap.edges
        table.add_row("chosen - rejected", "", "", f"{edges[0]:+.0f}", f"{edges[-1]:+.0f}", _bars(side.length_gap))
    return table


def _numbers(lengths: Lengths) -> Iterator[str]:
    return (f"{value:,.0f}" for value in (lengths.mean, lengths.median, lengths.p95, lengths.longest))


def _bars(histogram: Histogram) -> str:
    """A letter a bin, as high as the bin is full; what is not empty is seen."""
    most = max(histogram.counts, default=0)
    return "".join(_BLOCKS[-(-count * (len(_BLOCKS) - 1) // most)] if count else " " for count in histogram.counts)


def _finding(finding: Finding) -> Stack:
    share = "" if finding.share is None else f" ({finding.share:.1%})"
    head = Text.assemble(
        (f"{finding.level:<8}", _LEVELS[finding.level]),
        (finding.name, "bold"),
        (" of held-out rows" if finding.side == "held out" else "", "dim"),
        f"  {finding.count:,}{share}",
    )
    body = f"{finding.what} {finding.effect} {finding.advice}"
    rows = [Text(visible(f"e.g. {'; '.join(finding.rows)}"), style="dim")] if finding.rows else []
    return Stack(head, *(Padding(line, (0, 0, 0, 8)) for line in (Text(visible(body)), *rows)))
