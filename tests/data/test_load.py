"""From files to groups on two sides."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from helpers.tokenizers import without_bos

from dpo_cli.data.load import Data, fingerprint, load_data
from dpo_cli.data.types import Group, Pair
from dpo_cli.errors import DataError

TOKENIZER = without_bos()


def rows(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": prompt, "chosen": "yes", "rejected": "no"} for prompt in prompts]


def write(path: Path, *prompts: str) -> str:
    path.write_text("\n".join(map(json.dumps, rows(*prompts))))
    return str(path)


def load(path: str, held_out: str | float | None = None, **options: Any) -> Data:
    phases: list[str] = []

    @contextmanager
    def phase(name: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        phases.append(name)
        yield lambda units: None

    defaults: dict[str, Any] = {
        "split": "train",
        "subset": None,
        "revision": None,
        "limit": None,
        "text": "auto",
        "max_length": 64,
        "max_prompt_length": None,
        "on_too_long": "raise",
        "on_bad_row": "raise",
        "seed": 0,
    }
    return load_data(path=path, held_out=held_out, tokenizer=TOKENIZER, phase=phase, **defaults | options)


def questions(groups: list[Group]) -> list[str]:
    return [group.question for group in groups]


def test_training_only(tmp_path: Path) -> None:
    data = load(write(tmp_path / "a.jsonl", "p", "q", "p"))
    assert (questions(data.train), data.held_out) == (["p", "q", "p"], [])
    assert data.counts == {
        "train": {
            "rows": {"read": 3, "bad": 0, "duplicates": 1, "first_bad": (), "without_preference": 0},
            "prompts_held_out": 0,
            "tokenized": {
                "groups": 3,
                "prompts_truncated": 0,
                "answers_truncated": 0,
                "dropped_too_long": 0,
                "made_equal": 0,
                "longest": 5,
            },
        }
    }
    json.dumps(data.counts)


def test_held_out_file_wins_over_training(tmp_path: Path) -> None:
    held = write(tmp_path / "held.jsonl", "q", "s", "t")
    data = load(write(tmp_path / "a.jsonl", "p", "q", "r", "t"), held, limit=3)
    assert (questions(data.train), questions(data.held_out)) == (["p", "r"], ["q", "s", "t"])
    assert data.counts["train"]["prompts_held_out"] == 1
    assert data.counts["held_out"]["rows"]["read"] == 3


def test_held_out_fraction_does_not_depend_on_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *"abcdefghij")
    everything, some = load(path, 0.3), load(path, 0.3, limit=2)
    assert sorted(questions(everything.train) + questions(everything.held_out)) == list("abcdefghij")
    assert len(everything.held_out) == 3
    assert questions(some.train) == questions(everything.train)[:2]
    assert questions(some.held_out) == questions(everything.held_out)[:2]
    assert questions(load(path, 0.3, seed=1).held_out) != questions(everything.held_out)


def test_held_out_split_of_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"train": rows("p", "q"), "test": rows("q")}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, split, revision: splits[split])
    data = load("org/pairs", "test")
    assert (questions(data.train), questions(data.held_out)) == (["p"], ["q"])


def test_held_out_that_is_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "p")
    with pytest.raises(DataError) as error:
        load(path, "test")
    assert str(error.value) == (
        f"data.eval=test: no such file or folder, and data.path={path} is no hub data set with splits"
    )
    with pytest.raises(DataError, match=r"^data.eval=.*held.jsonl: there is no such file or folder$"):
        load(path, str(tmp_path / "held.jsonl"))


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
    assert len({fingerprint(groups) for groups in [base, *others]}) == 8
