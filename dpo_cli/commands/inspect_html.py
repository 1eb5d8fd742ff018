"""``dpo inspect`` as one HTML file, with nothing from elsewhere in it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from transformers import PreTrainedTokenizerBase

from dpo_cli.commands.inspect_view import summary
from dpo_cli.commands.pages import environment
from dpo_cli.commands.token_view import view, visible
from dpo_cli.data.audit.result import Histogram, Result, Side
from dpo_cli.data.types import Group
from dpo_cli.whole_folder import write_file


def write_html(file: Path, tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group], result: Result) -> None:
    """Write the page.

    Args:
        file: its folder is made.
        tokenizer: that made the groups' tokens.
        groups: a few, to be looked at.
        result: of the audit.
    """
    pages = environment()
    pages.filters["visible"] = visible
    sides = [("Training", result.train), ("Held out", result.held_out)]
    page = pages.get_template("inspect.html.jinja").render(
        result=result,
        summary=summary(result.findings),
        rows=[view(group, tokenizer) for group in groups],
        sides=[
            (name, side, [(label, plot(histogram)) for label, histogram in _histograms(side)])
            for name, side in sides
            if side is not None
        ],
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, page)


def _histograms(side: Side) -> list[tuple[str, Histogram]]:
    found = [(f"{name}, tokens", each.histogram) for name, each in side.lengths.items()]
    return found if side.length_gap is None else [*found, ("chosen - rejected, tokens", side.length_gap)]


def plot(histogram: Histogram) -> Markup:
    """A histogram as SVG, in the colour of the text around it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 1.6), layout="constrained")
    axes = figure.add_subplot()
    widths = [after - before for before, after in zip(histogram.edges, histogram.edges[1:], strict=False)]
    axes.bar(histogram.edges[:-1], histogram.counts, widths, align="edge", color="C0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    if histogram.edges[0] < 0 < histogram.edges[-1]:
        axes.axvline(0, color="black", linewidth=0.8)
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    # matplotlib's own drawing, of numbers alone; black becomes the page's colour, which may be dark or light.
    return Markup(svg[svg.index("<svg") :].replace("#000000", "currentColor"))
