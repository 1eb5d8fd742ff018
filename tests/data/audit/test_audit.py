"""Every finding is found where it is, and nowhere else; numbers are those counted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from helpers.tokenizers import quickstart, unigram, unsplit
from transformers import PreTrainedTokenizerBase

import dpo_cli.data.pool
from dpo_cli.data.audit import NAMES, again, audit
from dpo_cli.data.audit.facts import facts_of
from dpo_cli.data.audit.findings import findings
from dpo_cli.data.audit.result import Result
from dpo_cli.data.audit.scripts import main_script, mixed, scripts
from dpo_cli.data.audit.side import Measured, histogram, wilson
from dpo_cli.data.build import Recipe
from dpo_cli.data.encode import encoder
from dpo_cli.data.formats import Reading
from dpo_cli.data.load import Loader, Part, load_data
from dpo_cli.data.render import Rendered, Span
from dpo_cli.data.sources import Place
from dpo_cli.data.tokenize import AnswerIds, Encoded, Encoding, Ids
from dpo_cli.data.types import Example, Group
from dpo_cli.errors import DataError

TOKENIZER = quickstart()
WORDS = [
    *("acorn", "bell", "candle", "desk", "eagle", "fig", "garden", "hat", "igloo"),
    *("kettle", "lamp", "mango", "nest", "olive", "river", "sand", "tent", "vase"),
]


@contextmanager
def phase(name: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    yield lambda units: None


def part(folder: Path, rows: list[dict[str, Any]], name: str = "a", **options: Any) -> Part:
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    recipe = Recipe(
        options.pop("reading", Reading()),
        Encoding(**{"max_length": 200} | options.pop("encoding", {})),
        options.pop("kind", "pairs"),
        options.pop("on_bad_row", "raise"),
        **options,
    )
    return Part("data.path", Place(str(file)), recipe)


def loader_of(train: Part, tokenizer: PreTrainedTokenizerBase = TOKENIZER, workers: int = 1) -> Loader:
    return Loader(tokenizer, Path(train.place.path).parent / "cache", workers, phase, pytest.fail)


def look(
    train: Part,
    held_out: Part | float | None = None,
    show: int = 0,
    limit: int | None = None,
    loader: Loader | None = None,
) -> tuple[Result, list[Group]]:
    loader = loader or loader_of(train)
    return audit([train], held_out, loader, limit=limit, seed=0, show=show, model="m", data="d")


def clean(count: int = 600) -> list[dict[str, Any]]:
    """Rows with nothing to be said against: different words, and neither side longer."""
    rows = []
    for number in range(count):
        order = [WORDS[(number * step + number // 7) % len(WORDS)] for step in (1, 5, 7, 11)]
        answers = [f"{order[0]} {number} good {order[1]}", f"{order[2]} {number} bad {order[3]}"]
        answers[number % 2] += " more"
        rows.append({"prompt": f"sort {number} {' '.join(order)}", "chosen": answers[0], "rejected": answers[1]})
    return rows


def names(result: Result) -> set[str]:
    return {finding.name for finding in result.findings}


def test_nothing_is_said_against_clean_rows(tmp_path: Path) -> None:
    result, groups = look(part(tmp_path, clean()), 0.1, show=2)
    assert [(finding.name, finding.side) for finding in result.findings] == [("few-comparisons", "held out")]
    assert "60 held-out comparisons" in result.findings[0].what
    assert "within 13%" in result.findings[0].effect  # 1.96 * sqrt(0.25 / 60)
    assert (result.train.rows, result.held_out.rows) == (540, 60)  # type: ignore[union-attr]
    assert (result.train.comparisons, result.train.answers, result.train.prompts) == (540, 1080, 540)
    assert result.train.turns == {"2": 540}
    assert result.train.scripts == {"latin": 1080}
    assert len(groups) == 2
    assert json.loads(json.dumps(asdict(result)))["version"] == 1


PAIR = {"prompt": "sort b a", "chosen": "a b", "rejected": "b a"}
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], int]] = {
    "bad-rows": ([{"prompt": "p"}, PAIR | {"chosen": 3}, PAIR], {}, 2),
    "empty-answers": (
        [PAIR | {"chosen": " "}, PAIR | {"rejected": ""}, PAIR | {"chosen": "", "rejected": ""}, PAIR],
        {},
        3,
    ),
    "equal-answers": ([PAIR, PAIR | {"chosen": "b a"}], {}, 1),
    "duplicates": ([PAIR, PAIR, PAIR], {}, 2),
    "near-duplicates": (
        [PAIR | {"prompt": " ".join(f"w{n}" for n in range(60)) + end} for end in (" one", " two")],
        {},
        1,
    ),
    "contradictions": ([PAIR, PAIR | {"chosen": "b a", "rejected": "a b"}], {}, 1),
    "special-tokens-in-text": ([PAIR | {"prompt": "sort <|im_start|> a"}], {}, 1),
    "too-long": ([PAIR | {"prompt": "long " * 200}], {"encoding": {"on_too_long": "drop"}}, 1),
    "answers-cut": ([PAIR | {"chosen": "long " * 200}], {}, 1),
    "prompts-cut": ([PAIR | {"prompt": "long " * 200}], {}, 1),
    "made-equal": ([PAIR | {"chosen": "long " * 200 + "a", "rejected": "long " * 200 + "b"}], {}, 1),
    "other-script": ([PAIR | {"chosen": "世界"}], {}, 1),
    "scripts-differ": ([PAIR | {"chosen": "世界"}, PAIR, PAIR | {"chosen": "世界", "rejected": "世"}], {}, 1),
    "mixed-scripts": ([PAIR | {"chosen": "the world is 世界世界世界 a b"}, PAIR], {}, 1),
    "one-token-answers": ([PAIR | {"chosen": "a"}], {}, 1),
    "few-comparisons": ([PAIR], {}, 1),
    "without-preference": (
        [PAIR, {"prompt": "p", "completions": ["x", "y"], "scores": [1, 1]}],
        {},
        1,
    ),
    "few-prompts": ([{"prompt": "p", "chosen": f"a {n}", "rejected": f"b {n}"} for n in range(20)], {}, 1),
    "same-opening": ([PAIR | {"prompt": f"p {n}", "chosen": f"As an old fox, {n}"} for n in range(25)], {}, 25),
    "longer-wins": ([PAIR | {"prompt": f"p {n}", "chosen": f"much longer {n}"} for n in range(30)], {}, 30),
    "shorter-wins": ([PAIR | {"prompt": f"p {n}", "rejected": f"much longer {n}"} for n in range(30)], {}, 30),
    "label-imbalance": (
        [{"prompt": f"p {n}", "completion": f"a {n}", "label": n > 0} for n in range(10)],
        {"kind": "answers"},
        9,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_finding(name: str, tmp_path: Path) -> None:
    rows, options, count = CASES[name]
    result, _ = look(part(tmp_path, rows, **options))
    (finding,) = [found for found in result.findings if found.name == name]
    assert (finding.side, finding.count) == ("training", count)
    assert finding.what.endswith(".")
    assert finding.effect.endswith(".")
    assert finding.advice.endswith(".")


@pytest.mark.parametrize(
    "name",
    [
        *("duplicates", "contradictions", "near-duplicates", "special-tokens-in-text", "answers-cut", "other-script"),
        *("longer-wins", "label-imbalance", "empty-answers", "without-preference"),
    ],
)
def test_the_same_of_held_out_rows(name: str, tmp_path: Path) -> None:
    rows, options, count = CASES[name]
    train = part(tmp_path, clean(20))
    held = part(tmp_path, rows, "held", **options)
    if "kind" in options:
        train = replace(train, recipe=replace(train.recipe, kind=options["kind"]))
    result, _ = look(train, held)
    (finding,) = [found for found in result.findings if found.name == name]
    assert (finding.side, finding.count) == ("held out", count)
    assert "held-out" in finding.what
    assert all(row.startswith("held.jsonl") for row in finding.rows)


def test_bad_rows_are_told_apart_also_where_they_are_left_out(tmp_path: Path) -> None:
    rows = [*CASES["empty-answers"][0], *CASES["equal-answers"][0], *CASES["bad-rows"][0]]
    result, _ = look(part(tmp_path, rows, on_bad_row="skip"))
    found = {finding.name: finding for finding in result.findings}
    assert {name: found[name].count for name in ("bad-rows", "empty-answers", "equal-answers")} == {
        **{"bad-rows": 2, "empty-answers": 3, "equal-answers": 1}
    }
    assert sum(found[name].level == "warning" for name in ("bad-rows", "empty-answers", "equal-answers")) == 3
    assert found["equal-answers"].rows == ["a.jsonl, line 6: chosen and rejected are the same"]
    assert found["empty-answers"].rows[0] == "a.jsonl, line 1: chosen is empty"
    assert found["equal-answers"].share == 1 / 9


LONG = "please tell me how old the trees in this park are and who planted them so long ago"
NEAR = [
    {"prompt": f"{LONG} {number}", "chosen": f"yes {number} a", "rejected": f"no {number} b"} for number in range(3)
]


def test_held_out_prompts_that_are_nearly_trained_on(tmp_path: Path) -> None:
    held = part(tmp_path, [*clean(3), NEAR[0], NEAR[0], NEAR[1]], "held")
    result, _ = look(part(tmp_path, [*clean(20)[3:], NEAR[2]]), held)
    (finding,) = [found for found in result.findings if found.name == "nearly-in-both-sides"]
    assert (finding.side, finding.level, finding.count, finding.share) == ("held out", "warning", 3, 3 / 6)
    assert finding.rows[0] == "held.jsonl, line 4 (like a.jsonl, line 18)"
    system = [{"prompt": f"q {n}", "chosen": "a", "rejected": "b", "system": LONG} for n in range(2)]
    result, _ = look(part(tmp_path, system[:1]), part(tmp_path, system[1:], "held"))
    assert "nearly-in-both-sides" not in names(result)  # a system turn that rows share is no likeness


def test_a_fraction_that_holds_out_what_is_nearly_trained_on(tmp_path: Path) -> None:
    result, _ = look(part(tmp_path, NEAR), 0.3)
    (finding,) = [found for found in result.findings if found.name == "nearly-in-both-sides"]
    assert (finding.count, finding.share) == (1, 1.0)


def test_text_that_the_tokenizer_loses(tmp_path: Path) -> None:
    rows = [
        *({"prompt": f"p{number}", "chosen": f"fine {number}", "rejected": "b"} for number in range(3)),
        {"prompt": "p", "chosen": "two\nlines\x04", "rejected": "two  spaces"},
    ]
    train = part(tmp_path, rows, encoding={"text": "plain"})
    result, _ = look(train, loader=loader_of(train, unigram()))
    (finding,) = [found for found in result.findings if found.name == "text-lost"]
    assert (finding.level, finding.count, finding.share) == ("warning", 2, 2 / 8)
    assert finding.rows == ["a.jsonl, line 4 (U+0004, U+000A)"]
    result, _ = look(train)  # bytes keep everything
    assert "text-lost" not in names(result)


def test_tokens_across_prompt_and_answer_are_counted_in_a_sample(tmp_path: Path) -> None:
    rows = [{"prompt": "Say hel", "chosen": f"lo {number}", "rejected": f"no {number}"} for number in range(30)]
    tokenizer = unsplit()
    train = part(tmp_path, rows, encoding={"text": "plain"})
    result, _ = look(train, loader=loader_of(train, tokenizer))
    (finding,) = [found for found in result.findings if found.name == "boundary-merges"]
    assert (finding.level, finding.count, finding.share) == ("note", 25, 1.0)
    assert "25 of 25 sampled rows" in finding.what
    result, _ = look(part(tmp_path, [row | {"prompt": "Say "} for row in rows], encoding={"text": "plain"}))
    assert "boundary-merges" not in names(result)


@pytest.mark.slow
def test_other_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = part(tmp_path, [*clean(60), *NEAR, *CASES["bad-rows"][0], PAIR, PAIR])
    alone, _ = look(train, 0.2)
    monkeypatch.setattr(dpo_cli.data.pool, "CHUNK", 3)
    monkeypatch.setattr(dpo_cli.data.pool, "ALONE", 1)
    together, _ = look(train, 0.2, loader=loader_of(train, workers=2))
    assert together == alone


def test_tokens_across_are_looked_for_near_the_answer_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of megabytes would be tokenised once more for each answer."""
    seen: list[int] = []

    def watched(tokenizer: Any) -> Any:
        encode = encoder(tokenizer)

        def watching(texts: Sequence[str]) -> list[list[int]]:
            seen.extend(map(len, texts))
            return encode(texts)

        return watching

    monkeypatch.setattr(again, "encoder", watched)
    rows = [{"prompt": f"{'word ' * 2000}Say hel", "chosen": f"lo {'and ' * 2000}", "rejected": "no"}]
    train = part(tmp_path, rows, encoding={"text": "plain"})
    result, _ = look(train, loader=loader_of(train, unsplit()))
    assert "boundary-merges" in names(result)
    assert max(seen) == 2 * again._NEAR


def test_rows_that_the_cut_leaves_nothing_of() -> None:
    """No shape makes such a row as yet: answers begin with a turn that is scored."""
    example = Example([{"role": "user", "content": "Q"}], [[{"role": "assistant", "content": "A"}]], (), "row 1")
    measured = Measured()
    whole = Ids([1], [AnswerIds([2], None)], 0)
    measured.add(facts_of(Encoded(example, Rendered("", [[Span("A", True)]]), whole, None, "nothing_scored"), [], None))
    (finding,) = [found for found in findings(measured, None, stops=True) if found.name == "cut-to-nothing"]
    assert (finding.level, finding.count, finding.share, finding.rows) == ("warning", 1, 1.0, ["row 1"])


def test_every_finding_has_a_case_and_a_word_in_the_docs() -> None:
    elsewhere = {"in-both-sides", "nearly-in-both-sides", "cut-to-nothing", "text-lost", "boundary-merges"}
    assert set(NAMES) == set(CASES) | elsewhere
    docs = (Path(__file__).parents[3] / "docs" / "inspect.md").read_text("utf-8")
    assert [name for name in NAMES if f"`{name}`" not in docs] == []


def test_a_prompt_on_both_sides(tmp_path: Path) -> None:
    rows = clean()
    held = part(tmp_path, rows[:3], "held")
    result, _ = look(part(tmp_path, rows), held)
    (finding,) = [finding for finding in result.findings if finding.level == "warning"]
    assert (finding.name, finding.side, finding.count) == ("in-both-sides", "training", 3)
    assert (finding.share, finding.rows[0]) == (3 / 600, "a.jsonl, line 1")
    assert result.train.rows == 597


SHORT = {"max_length": 33, "on_too_long": "drop"}


@pytest.mark.parametrize("encoding", [{}, SHORT], ids=["all fit", "some are dropped"])
@pytest.mark.parametrize("limit", [None, 30])
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_the_sides_are_those_of_training(
    fraction: float, limit: int | None, encoding: dict[str, Any], tmp_path: Path
) -> None:
    train = part(tmp_path, clean(200), encoding=encoding)
    data = load_data([train], fraction, loader_of(train), limit=limit, seed=0)
    result, shown = look(train, fraction, show=1000, limit=limit)
    assert [group.source for group in shown] == [group.source for group in data.train]
    assert result.held_out is not None
    assert result.held_out.rows == len(data.held_out)
    kept = result.train.counts["tokenized"]["groups"]
    assert (kept < 200) == (encoding == SHORT)


def test_a_mixture_holds_out_what_training_does(tmp_path: Path) -> None:
    parts = [
        replace(part(tmp_path, clean(100), "a"), key="a", rows=20),
        replace(part(tmp_path, clean(160)[100:], "b"), key="b", rows=30),
    ]
    data = load_data(parts, 0.2, loader_of(parts[0]), limit=None, seed=3)
    result, shown = audit(parts, 0.2, loader_of(parts[0]), limit=None, seed=3, show=1000, model="m", data="d")
    held = {group.source for group in data.held_out}
    assert {group.source for group in data.train} <= {group.source for group in shown}
    assert not held & {group.source for group in shown}
    assert result.held_out is not None
    assert result.held_out.rows == len(held)


def test_held_out_rows_that_are_left_out_hold_nothing_out(tmp_path: Path) -> None:
    long = {"prompt": "sort b a", "chosen": "long " * 200, "rejected": "b"}
    held = part(tmp_path, [*clean(3), long], "held", encoding={"on_too_long": "drop"})
    train = part(tmp_path, [PAIR, *clean(600)[3:]], encoding={"on_too_long": "drop"})
    result, shown = look(train, held, show=1000)
    data = load_data([train], held, loader_of(train), limit=None, seed=0)
    assert [group.source for group in shown] == [group.source for group in data.train]
    assert "in-both-sides" not in names(result)


@pytest.mark.parametrize(("changed", "least", "most"), [(2, 100, 100), (24, 0, 3), (30, 0, 0)])
def test_near_duplicates_are_told_from_rows_that_are_only_alike(
    changed: int, least: int, most: int, tmp_path: Path
) -> None:
    """A hundred times two rows of 200 words, of which the same few differ: they have 0.96, 0.76 or 0.72 of their word
    triples in common."""
    rows = []
    for number in range(100):
        words = [f"w{number}n{place}" for place in range(196)]
        for end in ("x", "y"):
            prompt = " ".join([*words[: 196 - changed], *(f"{end}{number}n{place}" for place in range(changed))])
            rows.append({"prompt": prompt, "chosen": "one two", "rejected": "two one"})
    result, _ = look(part(tmp_path, rows, encoding={"max_length": 20000}))
    found = next((finding.count for finding in result.findings if finding.name == "near-duplicates"), 0)
    assert least <= found <= most


def test_the_worst_comes_first(tmp_path: Path) -> None:
    rows = [*CASES["bad-rows"][0], *CASES["duplicates"][0], *CASES["one-token-answers"][0]]
    stops, _ = look(part(tmp_path, rows))
    levels = [finding.level for finding in stops.findings]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert (stops.findings[0].name, stops.findings[0].level) == ("bad-rows", "error")
    skips, _ = look(part(tmp_path, rows, on_bad_row="skip"))
    assert {f.level for f in skips.findings if f.name == "bad-rows"} == {"warning"}


def test_a_row_the_template_refuses_is_one_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}{% if 'no' in m.content %}{{ raise_exception('never') }}{% endif %}"
    monkeypatch.setattr(TOKENIZER, "chat_template", template + "{{ m.content }}<|im_end|>{% endfor %}")
    result, _ = look(part(tmp_path, [PAIR, PAIR | {"prompt": "no"}, PAIR | {"prompt": "q"}]))
    assert (result.train.rows, result.train.counts["bad"]) == (2, 1)
    assert "never" in result.train.counts["first_bad"][0]


def test_lengths_and_gaps(tmp_path: Path) -> None:
    result, groups = look(part(tmp_path, clean(40)), show=40)
    chosen = [len(group.answers[0]) for group in groups]
    rejected = [len(group.answers[1]) for group in groups]
    assert result.train.lengths["chosen"].longest == max(chosen)
    assert result.train.lengths["rejected"].mean == pytest.approx(sum(rejected) / 40)
    longer = [one > other for one, other in zip(chosen, rejected, strict=True) if one != other]
    assert result.train.longer_wins == pytest.approx(sum(longer) / len(longer))
    assert sum(result.train.length_gap.counts) == 40  # type: ignore[union-attr]


def test_nothing_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    place = Part("data.path", Place(str(tmp_path / "none.jsonl")), part(tmp_path, []).recipe)
    with pytest.raises(DataError, match=r"none\.jsonl"):
        look(place)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("words", {"latin": 5}),
        ("12 + 3", {}),
        ("“12” µ \N{MATHEMATICAL BOLD CAPITAL A}", {}),
        ("привет", {"cyrillic": 6}),
        ("हिन्दी।", {"devanagari": 6}),  # three consonants, three signs; the full stop is many scripts'
        ("世界", {"han": 2}),
        ("ひらカタ世界", {"japanese": 6}),
        ("世界世界世界世界世界世界ひ", {"han": 12, "japanese": 1}),
        ("éa世", {"latin": 2, "han": 1}),
    ],
)
def test_scripts(text: str, expected: dict[str, int]) -> None:
    assert +scripts(text) == expected
    assert main_script(scripts(text)) == next(iter(expected), "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("words and only words", ""),
        ("the angle \N{GREEK SMALL LETTER ALPHA}, and β", ""),
        ("世界世界世界世界 hello", "han and latin"),
        ("世界" * 25 + " hello", ""),  # 5 of 55 letters
        ("世界ひらがな世界", ""),
    ],
)
def test_mixed_scripts(text: str, expected: str) -> None:
    assert mixed(scripts(text)) == expected


def test_the_interval_of_a_share() -> None:
    """Worked example: 8 of 10 (Wilson 1927, as in Brown, Cai and DasGupta 2001)."""
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_a_histogram_holds_every_value() -> None:
    from array import array

    found = histogram(array("q", [1, 1, 5, 21]))
    assert (sum(found.counts), found.edges[0], found.edges[-1]) == (4, 1.0, 21.0)
