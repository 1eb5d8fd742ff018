"""The quickstart's task: put a handful of words into alphabetical order, forwards or backwards.

The task has a known reward, which real preference data lacks, so a run can be judged against the truth instead of
against the labels it was trained on. Three choices keep the reward from being guessed by a shortcut:

* the prompt picks the direction, so the same answer is good under one prompt and bad under another;
* nearly every answer holds the words of its prompt, so neither its length nor the words it uses tell its quality;
* the reward counts ordered pairs over the whole answer, so no single position decides it.

Nothing here needs more than the standard library: the build script, the tests and the evaluation share it.
"""

from __future__ import annotations

import math
import random

WORDS: tuple[str, ...] = (
    "acorn", "bell", "candle", "desk", "eagle", "fig", "garden", "hat", "igloo", "jar", "kettle", "lamp", "mango",
    "nest", "olive", "paper", "queen", "river", "sand", "tent", "urn", "vase", "wagon", "xylophone", "yak", "zebra",
)  # fmt: skip
"""Every word of the task, in alphabetical order."""

FORWARDS = "Sort A to Z:"
BACKWARDS = "Sort Z to A:"
FEWEST_WORDS, MOST_WORDS = 5, 7

WORD_PENALTY = 0.1
"""What each word missing from an answer, and each word that does not belong in it, takes off the reward."""

LOWEST_REWARD = -1.0

PREFERENCE_SCALE = 8.0
"""Sharpness of the labels: a reward lead of 0.1 is preferred 69 times in 100, a lead of 0.4 96 times in 100."""


def make_prompt(rng: random.Random) -> str:
    """A random request to sort `FEWEST_WORDS` to `MOST_WORDS` distinct words."""
    words = rng.sample(WORDS, rng.randint(FEWEST_WORDS, MOST_WORDS))
    return " ".join([rng.choice((FORWARDS, BACKWARDS)), *words])


def sorted_words(prompt: str) -> list[str]:
    """The words that `prompt` lists, in the order it asks for; `ValueError` if it is no prompt of this task."""
    for instruction in (FORWARDS, BACKWARDS):
        words = prompt.removeprefix(instruction).split()
        if prompt.startswith(instruction) and len(words) > 1 and len(set(words)) == len(words):
            return sorted(words, reverse=instruction == BACKWARDS)
    raise ValueError(f"not a prompt of the quickstart task: {prompt!r}")


def perfect_answer(prompt: str) -> str:
    """The one answer with the highest reward, 1."""
    return " ".join(sorted_words(prompt))


def true_reward(prompt: str, answer: str) -> float:
    """How well `answer` sorts the words of `prompt`: 1 is perfect, 0.5 is no better than shuffling, -1 is the lowest.

    It is the share of all pairs of the prompt's words that the answer has in the order asked for, less
    `WORD_PENALTY` for each word that is missing, foreign or repeated. A pair with a missing word counts as wrong. Any
    string is an answer: what is not a word of the prompt counts as foreign.
    """
    target = sorted_words(prompt)
    given = answer.split()
    place = {word: given.index(word) for word in target if word in given}
    ordered = [place[word] for word in target if word in place]
    right = sum(a < b for i, a in enumerate(ordered) for b in ordered[i + 1 :])
    pairs = len(target) * (len(target) - 1) // 2
    strays = (len(target) - len(place)) + (len(given) - len(place))
    return max(LOWEST_REWARD, round(right / pairs - WORD_PENALTY * strays, 6))


def preference_probability(reward: float, other: float, scale: float = PREFERENCE_SCALE) -> float:
    """The Bradley-Terry probability that an answer worth `reward` is preferred to one worth `other`."""
    return 1.0 / (1.0 + math.exp(-scale * (reward - other)))


def demonstration(prompt: str, rng: random.Random) -> str:
    """An answer of random quality, from perfect to hopeless, for the base model to imitate.

    Each answer draws its own sloppiness, by which every word slips from its proper place, and now and then the wrong
    direction or a slip in the words themselves. A model that imitates such answers spreads its samples over the whole
    range of rewards, which leaves preferences something to choose between.
    """
    words = sorted_words(prompt)
    if rng.random() < 0.15:
        words.reverse()
    sloppiness = rng.choice((0.3, 1.0, 2.0, 4.0))
    place = {word: i + rng.gauss(0.0, sloppiness) for i, word in enumerate(words)}
    answer = sorted(words, key=place.__getitem__)
    slip = rng.random()
    where = rng.randrange(len(answer))
    if slip < 0.05:
        del answer[where]
    elif slip < 0.10:
        answer.insert(where, rng.choice(WORDS))
    elif slip < 0.15:
        answer[where] = rng.choice(WORDS)
    return " ".join(answer)
