"""A row of each shape as its data set has it, shortened, and the Example it should become, written out by hand."""

from __future__ import annotations

from typing import Any

from dpo_cli.data.types import Example, Pair

FIRST, SECOND = (Pair(0, 1),), (Pair(1, 0),)
S, U, A = "system", "user", "assistant"


def turns(*said: str, first: str = U) -> list[dict[str, Any]]:
    """User and assistant in turn."""
    roles = (U, A) if first == U else (A, U)
    return [{"role": roles[number % 2], "content": words} for number, words in enumerate(said)]


def answer(words: str) -> list[dict[str, Any]]:
    return turns(words, first=A)


def system(words: str) -> dict[str, Any]:
    return {"role": S, "content": words}


def sharegpt(*said: str) -> list[dict[str, Any]]:
    return [{"from": ("human", "gpt")[number % 2], "value": words} for number, words in enumerate(said)]


def completion(response: str, score: Any, **more: Any) -> dict[str, Any]:
    annotations = {"helpfulness": {"Rating": "4", "Rationale": "..."}}
    return {"model": "m", "response": response, "overall_score": score, "annotations": annotations, **more}


def example(prompt: Any, answers: list[Any], pairs: tuple[Pair, ...] = FIRST, **more: Any) -> Example:
    return Example(prompt, answers, pairs, "rows.jsonl, line 1", **more)


ROWS: dict[str, list[tuple[dict[str, Any], Example]]] = {
    "prompt_pair": [
        ({"prompt": "Q", "chosen": "good", "rejected": "bad"}, example("Q", ["good", "bad"])),
        (  # RewardBench
            {"prompt": "Q", "chosen": "good", "rejected": "bad", "subset": "hep-rust", "id": 7, "chosen_model": "h"},
            example("Q", ["good", "bad"]),
        ),
        (  # axolotl's prompt_pairs
            {"system": "Be brief.", "prompt": "Q", "chosen": "good", "rejected": "bad"},
            example([system("Be brief."), *turns("Q")], [answer("good"), answer("bad")]),
        ),
    ],
    "ultrafeedback_binarized": [
        (
            {
                "prompt": "Q",
                "prompt_id": "c1",
                "chosen": turns("Q", "good"),
                "rejected": turns("Q", "bad"),
                "messages": turns("Q", "good"),
                "score_chosen": 9.0,
                "score_rejected": 7.5,
            },
            example(turns("Q"), [answer("good"), answer("bad")]),
        )
    ],
    "question_pair": [
        (  # orca_dpo_pairs
            {"system": "", "question": "Q", "chosen": "good", "rejected": "bad"},
            example("Q", ["good", "bad"]),
        ),
        (
            {"system": "You are an AI assistant.", "question": "Q", "chosen": "good", "rejected": "bad"},
            example([system("You are an AI assistant."), *turns("Q")], [answer("good"), answer("bad")]),
        ),
    ],
    "input_pair": [
        (  # distilabel-intel-orca-dpo-pairs
            {"system": "S", "input": "Q", "chosen": "good", "rejected": "bad", "rating": [9.0, 7.0], "status": "tie"},
            example([system("S"), *turns("Q")], [answer("good"), answer("bad")]),
        )
    ],
    "alpaca_pair": [
        (
            {"instruction": "Add.", "input": "1, 2", "chosen": "3", "rejected": "4"},
            example("Add.\n1, 2", ["3", "4"]),
        ),
        (
            {"instruction": "Add.", "input": "", "history": [["Hi", "Yes?"]], "chosen": "3", "rejected": "4"},
            example(turns("Hi", "Yes?", "Add."), [answer("3"), answer("4")]),
        ),
    ],
    "alpaca_ranked": [
        ({"instruction": "Add 1, 2.", "input": "", "output": ["3", "4"]}, example("Add 1, 2.", ["3", "4"])),
    ],
    "argilla_responses": [
        (
            {
                "source": "evol",
                "instruction": "Q",
                "chosen_response": "good",
                "rejected_response": "bad",
                "chosen_avg_rating": 5.0,
            },
            example("Q", ["good", "bad"]),
        )
    ],
    "messages_pair": [
        (  # axolotl's chat_template.default
            {
                "messages": [system("S"), *turns("Q", "A", "R")],
                "chosen": answer("good")[0],
                "rejected": answer("bad")[0],
            },
            example([system("S"), *turns("Q", "A", "R")], [answer("good"), answer("bad")]),
        )
    ],
    "sharegpt_pair": [
        (
            {
                "conversations": sharegpt("Q", "A", "R"),
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
                "system": "S",
            },
            example([system("S"), *turns("Q", "A", "R")], [answer("good"), answer("bad")]),
        )
    ],
    "hh_prompt": [
        (  # full-hh-rlhf
            {"prompt": "\n\nHuman: Q\n\nAssistant: A\n\nHuman: R\n\nAssistant:", "chosen": " good", "rejected": " bad"},
            example(turns("Q", "A", "R"), [answer("good"), answer("bad")]),
        )
    ],
    "dialogues": [
        (
            {"chosen": "\n\nHuman: Q\n\nAssistant: good", "rejected": "\n\nHuman: Q\n\nAssistant: bad"},
            example(turns("Q"), [answer("good"), answer("bad")]),
        ),
        (  # Skywork
            {"chosen": turns("Q", "good"), "rejected": turns("Q", "bad"), "source": "magpie"},
            example(turns("Q"), [answer("good"), answer("bad")]),
        ),
    ],
    "swift": [
        (
            {"messages": [system("S"), *turns("Q", "A", "R", "good")], "rejected_response": "bad"},
            example([system("S"), *turns("Q", "A", "R")], [answer("good"), answer("bad")]),
        )
    ],
    "swift_messages": [
        (
            {"messages": turns("Q", "good"), "rejected_messages": turns("Q", "bad")},
            example(turns("Q"), [answer("good"), answer("bad")]),
        )
    ],
    "shp": [
        (
            {
                "post_id": "qt3nxl",
                "history": "Q",
                "human_ref_A": "a",
                "human_ref_B": "b",
                "labels": 1,
                "score_A": 340,
                "score_B": 166,
            },
            example("Q", ["a", "b"]),
        ),
        ({"history": "Q", "human_ref_A": "a", "human_ref_B": "b", "labels": 0}, example("Q", ["a", "b"], SECOND)),
    ],
    "safe_rlhf": [
        (
            {
                "prompt": "Q",
                "response_0": "a",
                "response_1": "b",
                "is_response_0_safe": True,
                "better_response_id": 1,
                "safer_response_id": 0,
            },
            example("Q", ["a", "b"], SECOND),
        ),
        (
            {"prompt": "Q", "response_0": "a", "response_1": "b", "better_response_id": 0},
            example("Q", ["a", "b"], FIRST),
        ),
    ],
    "webgpt": [
        (
            {
                "question": {"dataset": "eli5", "id": "x", "full_text": "Q"},
                "answer_0": "a",
                "tokens_0": {"prefix": [1]},
                "score_0": -0.5,
                "answer_1": "b",
                "score_1": 0.5,
            },
            example("Q", ["a", "b"], SECOND),
        ),
        (
            {"question": "Q", "answer_0": "a", "score_0": 0.0, "answer_1": "b", "score_1": 0.0},
            example("Q", ["a", "b"], (), ranks=(0, 0)),
        ),
    ],
    "helpsteer2": [
        (
            {"split": "train", "prompt": "Q", "response_1": "a", "response_2": "b", "preference_strength": -2},
            example("Q", ["a", "b"]),
        ),
        (
            {
                "prompt": "Q\n<extra_id_1>Assistant\nA\n<extra_id_1>User\nR",
                "response_1": "a",
                "response_2": "b",
                "preference_strength": 1,
            },
            example(turns("Q", "A", "R"), [answer("a"), answer("b")], SECOND),
        ),
        (
            {"prompt": "Q", "response_1": "a", "response_2": "b", "preference_strength": 0},
            example("Q", ["a", "b"], (), ranks=(0, 0)),
        ),
    ],
    "helpsteer3": [
        (
            {
                "domain": "code",
                "context": turns("Q", "A", "R"),
                "response1": "a",
                "response2": "b",
                "overall_preference": 3,
                "individual_preference": [],
            },
            example(turns("Q", "A", "R"), [answer("a"), answer("b")], SECOND),
        )
    ],
    "ranked": [
        (
            {"prompt": "Q", "completions": ["a", "b", "c"], "scores": [0.1, 0.9, 0.1]},
            example("Q", ["a", "b", "c"], (Pair(1, 0), Pair(1, 2)), ranks=(1, 0, 1)),
        ),
        (
            {"prompt": "Q", "completions": ["a", "b"], "ranks": [2, 1]},
            example("Q", ["a", "b"], SECOND, ranks=(1, 0)),
        ),
    ],
    "ultrafeedback": [
        (
            {
                "source": "evol",
                "instruction": "Q",
                "models": ["m"] * 4,
                "completions": [
                    completion("a", 7.5),
                    completion("b", 9.0),
                    completion("c", "7.5"),
                    completion("d", 1),
                ],
                "correct_answers": ["None"],
            },
            example(
                "Q",
                ["a", "b", "c", "d"],
                (Pair(0, 3), Pair(1, 0), Pair(1, 2), Pair(1, 3), Pair(2, 3)),
                ranks=(1, 0, 1, 2),
            ),
        ),
        (
            {
                "instruction": "Q",
                "completions": [
                    completion("a", None, **{"fine-grained_score": 2.0}),
                    completion("b", 10.0, **{"fine-grained_score": 1.0}),
                ],
            },
            example("Q", ["a", "b"], FIRST, ranks=(0, 1)),
        ),
    ],
    "nectar": [
        (
            {
                "prompt": "\n\nHuman: Q\n\nAssistant: ",
                "answers": [
                    {"answer": "b", "model": "gpt-4", "rank": 2.0},
                    {"answer": "a", "model": "gpt-3.5", "rank": 1.0},
                ],
                "turns": 1,
            },
            example(turns("Q"), [answer("b"), answer("a")], SECOND, ranks=(1, 0)),
        )
    ],
    "rewardbench2": [
        (
            {
                "id": "0",
                "prompt": "Q",
                "chosen": ["a", "b"],
                "rejected": ["c"],
                "num_correct": 2,
                "num_incorrect": 1,
                "subset": "Ties",
            },
            example("Q", ["a", "b", "c"], (Pair(0, 2), Pair(1, 2)), ranks=(0, 0, 1)),
        )
    ],
    "judged": [
        ({"prompt": "Q", "completion": "a", "label": False}, example("Q", ["a"], (), labels=(False,))),
        ({"prompt": "Q", "completion": "a", "label": "True"}, example("Q", ["a"], (), labels=(True,))),
    ],
    "messages_judged": [
        ({"messages": turns("Q", "a"), "label": True}, example(turns("Q"), [answer("a")], (), labels=(True,)))
    ],
    "messages_kto_tag": [
        ({"messages": turns("Q", "a"), "kto_tag": False}, example(turns("Q"), [answer("a")], (), labels=(False,)))
    ],
    "sharegpt_judged": [
        ({"conversations": sharegpt("Q", "a"), "label": 1}, example(turns("Q"), [answer("a")], (), labels=(True,)))
    ],
    "sharegpt_kto_tag": [
        ({"conversations": sharegpt("Q", "a"), "kto_tag": 0}, example(turns("Q"), [answer("a")], (), labels=(False,)))
    ],
    "alpaca_kto_tag": [
        (
            {"instruction": "Add.", "input": "1, 2", "output": "4", "kto_tag": False},
            example("Add.\n1, 2", ["4"], (), labels=(False,)),
        )
    ],
}
