"""The quickstart's task and its files: the reward can't be had by a shortcut, and the labels are what they claim."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_cli.quickstart import task

ASSETS = Path(task.__file__).parent / "assets"
BUILDER = Path(__file__).parents[2] / "scripts" / "build_quickstart.py"
RULE_LIMIT = 0.7
"""What no rule of length or words may reach on held-out pairs."""

seeds = st.integers(0, 2**32 - 1)
answers = st.lists(st.sampled_from([*task.WORDS, "the", "ACORN", ""]), max_size=12).map(" ".join)


def prompt_of(seed: int) -> str:
    return task.make_prompt(random.Random(seed))


def listed(prompt: str) -> list[str]:
    """The words of a prompt as it lists them."""
    return prompt.partition(":")[2].split()


# -- the reward


@given(seeds)
def test_prompts_are_of_the_task(seed: int) -> None:
    prompt = prompt_of(seed)
    words = listed(prompt)
    assert prompt.startswith((task.FORWARDS, task.BACKWARDS))
    assert task.FEWEST_WORDS <= len(words) == len(set(words)) <= task.MOST_WORDS
    assert set(words) <= set(task.WORDS)
    assert task.sorted_words(prompt) == sorted(words, reverse=prompt.startswith(task.BACKWARDS))


@pytest.mark.parametrize("text", ["", "Sort: acorn bell", "Sort A to Z:", "Sort A to Z: acorn", "Sort A to Z: yak yak"])
def test_what_is_no_prompt_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a prompt"):
        task.true_reward(text, "acorn")


@given(seeds)
def test_perfect_is_one_and_reversed_is_zero(seed: int) -> None:
    prompt = prompt_of(seed)
    best = task.perfect_answer(prompt)
    assert task.true_reward(prompt, best) == 1.0
    assert task.true_reward(prompt, " ".join(reversed(best.split()))) == 0.0


@given(seeds, st.one_of(answers, st.text(max_size=40)))
def test_only_the_perfect_answer_is_perfect_and_all_are_within_bounds(seed: int, answer: str) -> None:
    prompt = prompt_of(seed)
    reward = task.true_reward(prompt, answer)
    assert task.LOWEST_REWARD <= reward <= 1.0
    assert (reward == 1.0) == (answer.split() == task.perfect_answer(prompt).split())


def test_the_bounds_are_reached() -> None:
    assert task.true_reward(prompt_of(0), "nonsense " * 50) == task.LOWEST_REWARD


def test_shuffling_is_half_right_on_average() -> None:
    random_ = random.Random(0)
    rewards = []
    for seed in range(4000):
        prompt = prompt_of(seed)
        words = listed(prompt)
        random_.shuffle(words)
        rewards.append(task.true_reward(prompt, " ".join(words)))
    assert fmean(rewards) == pytest.approx(0.5, abs=4 * np.std(rewards) / math.sqrt(len(rewards)))
    assert np.std(rewards) > 0.1


@given(seeds, st.data())
def test_a_word_too_many_costs_the_penalty(seed: int, data: st.DataObject) -> None:
    prompt = prompt_of(seed)
    best = task.perfect_answer(prompt).split()
    extra = data.draw(st.sampled_from([*task.WORDS, "the"]))
    first_comes_first = best.index(extra) + 1 if extra in best else 0
    place = data.draw(st.integers(first_comes_first, len(best)))
    longer = [*best[:place], extra, *best[place:]]
    assert task.true_reward(prompt, " ".join(longer)) == pytest.approx(1 - task.WORD_PENALTY)


@given(seeds, st.data())
def test_a_missing_word_costs_the_penalty_and_its_pairs(seed: int, data: st.DataObject) -> None:
    prompt = prompt_of(seed)
    best = task.perfect_answer(prompt).split()
    gone = data.draw(st.integers(0, len(best) - 1))
    pairs_lost = (len(best) - 1) / (len(best) * (len(best) - 1) / 2)
    expected = 1 - pairs_lost - task.WORD_PENALTY
    shorter = best[:gone] + best[gone + 1 :]
    assert task.true_reward(prompt, " ".join(shorter)) == pytest.approx(expected, abs=1e-6)
    # A wrong word in its place is a missing one and a foreign one.
    replaced = [*best[:gone], "nonsense", *best[gone + 1 :]]
    assert task.true_reward(prompt, " ".join(replaced)) == pytest.approx(expected - task.WORD_PENALTY, abs=1e-6)


@given(seeds, st.data())
def test_a_swap_of_neighbours_costs_one_pair(seed: int, data: st.DataObject) -> None:
    prompt = prompt_of(seed)
    words = task.perfect_answer(prompt).split()
    place = data.draw(st.integers(0, len(words) - 2))
    words[place], words[place + 1] = words[place + 1], words[place]
    pairs = len(words) * (len(words) - 1) // 2
    assert task.true_reward(prompt, " ".join(words)) == pytest.approx(1 - 1 / pairs, abs=1e-6)


@given(seeds)
def test_the_prompt_decides_the_direction(seed: int) -> None:
    prompt = prompt_of(seed)
    one, other = task.FORWARDS, task.BACKWARDS
    flipped = prompt.replace(one, other) if prompt.startswith(one) else prompt.replace(other, one)
    assert task.true_reward(flipped, task.perfect_answer(prompt)) == 0.0


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_preferences_are_bradley_terrys(one: float, other: float) -> None:
    p = task.preference_probability(one, other)
    assert p + task.preference_probability(other, one) == pytest.approx(1.0)
    assert math.log(p / (1 - p)) == pytest.approx(task.PREFERENCE_SCALE * (one - other), abs=1e-6)


# -- the files


@cache
def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ASSETS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def text(messages: list[dict[str, str]], role: str) -> str:
    (message,) = messages
    assert message["role"] == role
    return message["content"]


@cache
def pairs(name: str) -> list[tuple[str, str, str]]:
    """(prompt, chosen, rejected) of each row."""
    return [
        (text(row["prompt"], "user"), text(row["chosen"], "assistant"), text(row["rejected"], "assistant"))
        for row in rows(name)
    ]


def builders(name: str) -> Any:
    """A constant of the script that built the files; importing it would change this process's settings."""
    for node in ast.walk(ast.parse(BUILDER.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id == name:
                    return ast.literal_eval(node.value)
                if isinstance(target, ast.Tuple) and name in [element.id for element in target.elts]:
                    return ast.literal_eval(node.value)[[element.id for element in target.elts].index(name)]
    raise AssertionError(f"{BUILDER} sets no {name}")


@pytest.mark.parametrize("name", ["train", "eval"])
def test_rows_carry_their_true_rewards(name: str) -> None:
    assert len(rows(name)) == builders(f"{name.upper()}_PAIRS")
    for row, (prompt, chosen, rejected) in zip(rows(name), pairs(name), strict=True):
        assert row["reward_chosen"] == task.true_reward(prompt, chosen)
        assert row["reward_rejected"] == task.true_reward(prompt, rejected)
        assert chosen != rejected


def test_held_out_pairs_differ_clearly_and_in_the_right_order() -> None:
    gap = builders("EVAL_GAP")
    assert gap > 0.1
    assert min(row["reward_chosen"] - row["reward_rejected"] for row in rows("eval")) >= gap - 1e-9


def test_no_prompt_is_on_both_sides_or_twice() -> None:
    train, held_out = ([prompt for prompt, *_ in pairs(name)] for name in ("train", "eval"))
    assert not set(train) & set(held_out)
    assert len(set(train)) == len(train)
    assert len(set(held_out)) == len(held_out)


def test_labels_follow_bradley_terry() -> None:
    """Over all rows, and among rows of like gap: as often right as the rewards say, within sampling error."""
    by_gap: dict[int, list[tuple[float, bool]]] = {}
    for row in rows("train"):
        gap = row["reward_chosen"] - row["reward_rejected"]
        if gap:  # of two answers worth the same, neither label is right
            by_gap.setdefault(min(int(abs(gap) / 0.1), 4), []).append(
                (task.preference_probability(abs(gap), 0.0), gap > 0)
            )
    assert len(by_gap) >= 4
    everything = [label for labels in by_gap.values() for label in labels]
    for labels in [everything, *by_gap.values()]:
        expected = sum(p for p, _ in labels)
        error = math.sqrt(sum(p * (1 - p) for p, _ in labels))
        assert sum(right for _, right in labels) == pytest.approx(expected, abs=4 * error + 1e-9)
    wrong = fmean(not right for _, right in everything)
    assert 0.02 < wrong < 0.4, "labels without noise would be no preferences, and noise alone no signal"


def test_the_base_model_leaves_room_to_learn() -> None:
    """Its own answers, which the pairs are made of: neither hopeless nor done."""
    rewards = [row[key] for row in rows("train") for key in ("reward_chosen", "reward_rejected")]
    assert 0.5 < fmean(rewards) < 0.85
    assert sum(reward == 1.0 for reward in rewards) / len(rewards) < 0.5


# -- shortcuts


Rule = Callable[[str], float]


def share_right(rule: Rule) -> float:
    """How often a rule that sees the answers alone picks the better of a held-out pair; a tie is half right."""
    scores = [(rule(chosen), rule(rejected)) for _, chosen, rejected in pairs("eval")]
    return fmean((one > other) + 0.5 * (one == other) for one, other in scores)


SHAPES: dict[str, Rule] = {
    "characters": len,
    "words": lambda answer: len(answer.split()),
    "different words": lambda answer: len(set(answer.split())),
    "repeated words": lambda answer: len(answer.split()) - len(set(answer.split())),
    "foreign words": lambda answer: sum(word not in task.WORDS for word in answer.split()),
    "mean word length": lambda answer: len(answer) / (1 + len(answer.split())),
    "first letter": lambda answer: ord((answer or " ")[0]),
    "last word": lambda answer: ord((answer.split() or [" "])[-1][0]),
    "sorted forwards": lambda answer: sum(a < b for a, b in zip(answer.split(), answer.split()[1:], strict=False)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_no_rule_of_length_or_shape_gives_the_order_away(name: str) -> None:
    right = share_right(SHAPES[name])
    assert 1 - RULE_LIMIT < right < RULE_LIMIT


def test_no_keyword_gives_the_order_away() -> None:
    for word in task.WORDS:
        for place in (None, 0, -1):
            right = share_right(lambda answer, word=word, place=place: float(has(answer, word, place)))
            assert 1 - RULE_LIMIT < right < RULE_LIMIT, (word, place)


def has(answer: str, word: str, place: int | None) -> bool:
    words = answer.split()
    return word in words if place is None else bool(words) and words[place] == word


def test_no_mixture_of_keywords_and_length_gives_the_order_away() -> None:
    """The best such mixture that the training pairs have to offer: a logistic regression on word counts, on what
    stands first and last, and on lengths."""

    def features(answer: str) -> list[float]:
        words = answer.split()
        counts = [float(words.count(word)) for word in task.WORDS]
        ends = [float(has(answer, word, place)) for place in (0, -1) for word in task.WORDS]
        return [*counts, *ends, len(words), len(answer) / 10, float(len(set(words)))]

    def differences(name: str) -> np.ndarray:
        return np.array([np.subtract(features(chosen), features(rejected)) for _, chosen, rejected in pairs(name)])

    train, held_out = differences("train"), differences("eval")
    scale = train.std(axis=0) + 1e-9
    train, held_out = train / scale, held_out / scale
    weights = np.zeros(train.shape[1])
    for _ in range(300):
        weights += 0.5 * (train.T @ (1 / (1 + np.exp(train @ weights)))) / len(train) - 1e-4 * weights
    margins = held_out @ weights
    right = ((margins > 0) + 0.5 * (margins == 0)).mean()
    assert right < RULE_LIMIT


def test_the_rules_are_put_to_a_fair_test() -> None:
    """A rule that knows the prompt does solve it, so that the limit is not met by a broken measure."""
    knowing = [
        task.true_reward(prompt, chosen) > task.true_reward(prompt, other) for prompt, chosen, other in pairs("eval")
    ]
    assert all(knowing)
    assert share_right(lambda answer: 0.0) == 0.5


# -- the manifest


def test_the_manifest_names_every_file_and_its_hash() -> None:
    manifest = json.loads((ASSETS / "manifest.json").read_text(encoding="utf-8"))
    files = [path for path in ASSETS.rglob("*") if path.is_file() and path.name != "manifest.json"]
    found = {path.relative_to(ASSETS).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert manifest["sha256"] == found
    assert manifest["seed"] == builders("SEED")
    assert set(manifest["versions"]) == {"torch", "transformers", "tokenizers"}
