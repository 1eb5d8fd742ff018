"""From files to groups on two sides."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tokenizers import without_bos

from dpo_cli.data.build import Recipe
from dpo_cli.data.formats import Reading
from dpo_cli.data.load import Data, Loader, Part, fingerprint, load_data
from dpo_cli.data.sources import Place
from dpo_cli.data.tokenize import Encoding
from dpo_cli.data.types import Group, Pair

TOKENIZER = without_bos()


def rows(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": prompt, "chosen": "yes", "rejected": "no"} for prompt in prompts]


def write(path: Path, *prompts: str) -> str:
    path.write_text("\n".join(map(json.dumps, rows(*prompts))))
    return str(path)


def part(path: str, split: str = "train", **options: Any) -> Part:
    own = {name: options.pop(name) for name in ("rows", "weight", "key") if name in options}
    recipe = Recipe(Reading(), Encoding(max_length=64), "pairs", "raise", **options)
    return Part(own.pop("key", "data.path"), Place(path, split), recipe, **own)


def loader(folder: Path) -> Loader:
    @contextmanager
    def phase(name: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        yield lambda units: None

    return Loader(TOKENIZER, folder / "cache", 1, phase, pytest.fail)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Data]:
    def load(parts: str | list[Part], held_out: Part | float | None = None, **options: Any) -> Data:
        parts = [part(parts)] if isinstance(parts, str) else parts
        return load_data(parts, held_out, loader(tmp_path), **{"limit": None, "seed": 0} | options)

    return load


def questions(groups: Sequence[Group]) -> list[str]:
    return [group.question for group in groups]


Load = Callable[..., Data]


def test_training_only(load: Load, tmp_path: Path) -> None:
    data = load(write(tmp_path / "a.jsonl", "p", "q", "p"))
    assert (questions(data.train), data.held_out) == (["p", "q", "p"], [])
    counts = data.counts["train"]
    assert (counts["groups"], counts["prompts_held_out"]) == (3, 0)
    assert counts["rows"] == {"read": 3, "bad": 0, "duplicates": 1, "first_bad": [], "without_preference": 0}
    assert counts["tokenized"] | {"groups": 3, "prompts_truncated": 0, "longest": 5} == counts["tokenized"]
    json.dumps(data.counts)


def test_a_held_out_part_wins_over_training(load: Load, tmp_path: Path) -> None:
    held = part(write(tmp_path / "held.jsonl", "q", "s", "t"), limit=3)
    data = load([part(write(tmp_path / "a.jsonl", "p", "q", "r", "t"), limit=3)], held)
    assert (questions(data.train), questions(data.held_out)) == (["p", "r"], ["q", "s", "t"])
    assert (data.counts["train"]["prompts_held_out"], data.counts["train"]["groups"]) == (1, 2)
    assert data.counts["held_out"]["rows"]["read"] == 3


def test_a_held_out_fraction_does_not_depend_on_the_limit(load: Load, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *"abcdefghij")
    everything, some = load(path, 0.3), load(path, 0.3, limit=2)
    assert sorted(questions(everything.train) + questions(everything.held_out)) == list("abcdefghij")
    assert len(everything.held_out) == 3
    assert questions(some.train) == questions(everything.train)[:2]
    assert questions(some.held_out) == questions(everything.held_out)[:2]
    assert questions(load(path, 0.3, seed=1).held_out) != questions(everything.held_out)


def mixture(tmp_path: Path, **shares: tuple[str, dict[str, Any]]) -> list[Part]:
    return [
        part(write(tmp_path / f"{name}.jsonl", *prompts), key=f"data.mix.{name}", **share)
        for name, (prompts, share) in shares.items()
    ]


def test_a_mixture_of_whole_sources(load: Load, tmp_path: Path) -> None:
    data = load(mixture(tmp_path, a=("ab", {}), b=("cd", {})))
    assert questions(data.train) == list("abcd")
    sources = data.counts["train"]["sources"]
    assert {name: counts["taken"] for name, counts in sources.items()} == {"data.mix.a": 2, "data.mix.b": 2}
    assert data.counts["train"]["rows"]["read"] == 4


def test_a_mixture_by_counts(load: Load, tmp_path: Path) -> None:
    parts = mixture(tmp_path, a=("abcdef", {"rows": 3}), b=("xyz", {"rows": 8}))
    drawn = questions(load(parts).train)
    assert len(set(drawn[:3])) == 3
    assert drawn[:3] == sorted(drawn[:3])
    assert sorted(map(drawn[3:].count, "xyz")) == [2, 3, 3]
    assert questions(load(parts).train) == drawn
    assert len({tuple(questions(load(parts, seed=seed).train)) for seed in range(9)}) > 3


def test_a_mixture_by_weights_repeats_nothing(load: Load, tmp_path: Path) -> None:
    parts = mixture(tmp_path, a=("abcdefgh", {"weight": 0.25}), b=("uvwxyz", {"weight": 0.75}))
    drawn = questions(load(parts).train)
    assert (len(drawn), len(set(drawn)), drawn[2:]) == (8, 8, list("uvwxyz"))


def test_a_fraction_of_a_mixture_is_held_out_by_prompt(load: Load, tmp_path: Path) -> None:
    data = load(mixture(tmp_path, a=("abcde", {}), b=("abcxy", {})), 0.4)
    train, held = questions(data.train), questions(data.held_out)
    assert not set(train) & set(held)
    assert sorted(train + held) == sorted("abcdeabcxy")
    assert len(set(held)) == 3


def group(prompt: list[int], *answers: list[int], pairs: tuple[tuple[int, int], ...] = ((0, 1),)) -> Group:
    ids = tuple(np.array(answer, dtype=np.int32) for answer in answers)
    return Group(np.array(prompt, dtype=np.int32), ids, tuple(Pair(*pair) for pair in pairs), "row 1", "Q")


def test_fingerprint_is_of_tokens_and_pairs_in_order() -> None:
    base = [group([1, 2], [3], [4]), group([5], [6], [7])]
    same = [Group(item.prompt_ids, item.answers, item.pairs, "elsewhere") for item in base]
    assert fingerprint(same) == fingerprint(base)
    # Kept in run.json and compared by later versions: it may not change.
    assert fingerprint(base) == "2580d85f250f623dd4186453980cec58e26306f08b13db430372d17de527a3ff"
    others = [
        [],
        base[:1],
        base[::-1],
        [group([1], [2, 3], [4]), base[1]],
        [group([1, 2], [3, 4]), base[1]],
        [group([1, 2], [3], [4], pairs=((1, 0),)), base[1]],
        [group([1, 2], [3], [5]), base[1]],
    ]
    masks = [(np.array(first), np.array([True])) for first in ([True, True], [False, True], [True, False])]
    whole = group([1, 2], [3, 4], [5])
    others += [[whole], *([replace(whole, scored=mask)] for mask in masks[1:])]
    assert len({fingerprint(groups) for groups in [base, *others]}) == 11
