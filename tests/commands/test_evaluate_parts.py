"""Parts of ``dpo eval`` and ``dpo score``: the model card's section, a benchmark's questions, rows of answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import tokenizers
from helpers.comparisons import made
from helpers.configs import composed
from helpers.runs import write_rows
from test_config import tree_of

from dpo_cli.cli import files_as_overrides
from dpo_cli.commands.contestant import other_model
from dpo_cli.commands.evaluate import check_parts
from dpo_cli.commands.evaluate_name import evaluation_name
from dpo_cli.commands.evaluate_view import into_card
from dpo_cli.commands.questions import Question, ask, read_questions, write_answers
from dpo_cli.config import EvaluateConfig
from dpo_cli.data.formats import BadRowError, Reading, answers_of
from dpo_cli.data.sources import Row
from dpo_cli.data.types import Tokens
from dpo_cli.errors import DataError, DpoError
from dpo_cli.evaluation import measures
from dpo_cli.evaluation.alarms import Alarm
from dpo_cli.evaluation.intervals import Bootstrap, Estimate


def test_a_card_has_one_section_however_often_it_is_evaluated(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\n\n# Mine\n\nBefore.\n")
    bootstrap = Bootstrap(100, 0)
    for seed, alarms in ((0, [Alarm("length-bias", "too long")]), (1, [])):
        found = {
            "preferences": measures.preferences(made(seed=seed), bootstrap),
            "baselines": measures.baselines(made(seed=seed), bootstrap),
            "drift": {"policy": {"kl": Estimate(0.25, 0.125, 0.5)}},
            "win_rate": {"judge": {"path": "rm"}, "win_rate": Estimate(0.625, 0.5, 0.75)},
        }
        into_card(card, "60 held-out rows of a.jsonl", found, alarms)
        text = card.read_text()
        assert text.startswith("---\nlicense: mit\n---\n\n# Mine\n\nBefore.\n")
        assert text.count("## Evaluation") == 1
        assert f"| accuracy | {found['preferences']['accuracy'].value:.3f} |" in text
        assert "| KL to the reference, nats per answer | 0.250 | 0.125 to 0.500 |" in text
        assert "| win rate against the reference | 0.625 | 0.500 to 0.750 |\n\nJudged by rm," in text
        assert ("length-bias: too long" in text) == bool(alarms)
    card.write_text(text + "\nAfter.\n")
    into_card(card, "5 rows", found, [])
    assert card.read_text().endswith("\n\nAfter.\n")
    assert "On 5 rows" in card.read_text()
    into_card(tmp_path / "none.md", "5 rows", found, [])
    assert not (tmp_path / "none.md").exists()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ((), ""),
        (("tokens_per_micro_batch=64", "data.workers=1", "eval.samples=3"), ""),
        (("step=4",), "-step-4"),
        (("data.path=other/pairs 1.jsonl",), "-pairs-1"),
        (("data.eval=0.25",), "-0.25"),
        (("data.eval=org/rows:test",), "-rows-test"),
        (("data.path=org/rows", "data.split=test", "benchmark=rewardbench2"), "-rewardbench2-rows-test"),
        (("prompts=alpaca.json", "eval.samples=3"), "-alpaca"),
        (("loss.beta=0.5",), "-other-settings"),
        (("data.max_length=128", "step=4"), "-step-4-other-settings"),
        (("output=elsewhere", "step=4"), ""),
    ],
)
def test_what_is_not_a_runs_own_evaluation_has_another_name(words: tuple[str, ...], name: str, tmp_path: Path) -> None:
    ran = composed("train", ["model.path=m", "data.path=rows.jsonl", "data.eval=held-out.jsonl"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(ran.model_dump(mode="json")))
    (tmp_path / "run.json").write_text("{}")
    assert evaluation_name(composed("eval", [f"run={tmp_path}", *words])) == name


# -- questions


def config(prompts: Path, samples: int = 9) -> EvaluateConfig:
    tree = tree_of("eval", prompts=str(prompts), eval__samples=samples, data__cache_dir=str(prompts.parent / "cache"))
    return EvaluateConfig.model_validate(tree)


def test_a_second_turn_follows_the_models_own_first_answer(tmp_path: Path) -> None:
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["apple", "bell"]},
        {"question_id": 82, "category": "math", "turns": ["cloud"]},
    ]
    settings = config(write_rows(tmp_path / "question.jsonl", rows))
    questions = read_questions(settings)
    tokenizer = tokenizers.quickstart()
    asked: list[str] = []

    def sample(prompts: list[Tokens]) -> list[Tokens]:
        asked.extend(tokenizer.decode(prompt) for prompt in prompts)
        answers = [tokenizer(f"answer {len(asked)}", add_special_tokens=False)["input_ids"] for _ in prompts]
        return [np.array([*answer, tokenizer.eos_token_id], dtype=np.int32) for answer in answers]

    samples, said = ask(questions, settings, tokenizer, [tokenizer.eos_token_id], sample)
    assert [len(answers) for answers in said] == [2, 1]
    assert samples.questions == ["apple", "cloud", "apple\n\nbell"]
    dialogue = [
        {"role": "user", "content": "apple"},
        {"role": "assistant", "content": said[0][0]},
        {"role": "user", "content": "bell"},
    ]
    rendered = tokenizer.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=True)
    assert asked[2] == tokenizer.decode(tokenizer(rendered, add_special_tokens=False)["input_ids"])

    file = write_answers(tmp_path, "answers", "mine", questions, said)
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["question_id"] for row in written] == [81, 82]
    assert written[0]["choices"] == [{"index": 0, "turns": said[0]}]


def test_alpacaevals_instructions_and_outputs(tmp_path: Path) -> None:
    file = tmp_path / "alpaca_eval.json"
    file.write_text(
        json.dumps([{"instruction": f"say {n}", "output": "-", "dataset": "helpful_base"} for n in range(3)])
    )
    questions = read_questions(config(file, samples=2))
    assert [question.turns for question in questions] == [("say 0",), ("say 1",)]
    written = json.loads(write_answers(tmp_path, "answers", "mine", questions, [["a"], ["b"]]).read_text())
    assert written == [
        {"instruction": f"say {n}", "dataset": "helpful_base", "output": output, "generator": "mine"}
        for n, output in enumerate("ab")
    ]
    with pytest.raises(DataError, match="expected a question"):
        read_questions(config(write_rows(tmp_path / "other.jsonl", [{"text": "a"}])))
    assert Question(("a",), {}).turns == ("a",)


# -- answers to be scored


@pytest.mark.parametrize(
    ("values", "answers"),
    [
        ({"prompt": "p", "completions": ["a", "b", "a"]}, [["a"], ["b"], ["a"]]),
        ({"prompt": "p", "responses": ["a"], "scores": None}, [["a"]]),
        ({"prompt": "p", "completion": "a"}, [["a"]]),
        ({"prompt": "p", "output": "a", "label": False}, [["a"]]),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, [["a", "b"]]),
        ({"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]}, [["a"], ["b"]]),
        ({"question": "p", "chosen": "a", "rejected": "b"}, [["a", "b"]]),
    ],
)
def test_rows_of_answers(values: dict, answers: list[list[str]]) -> None:
    assert [example.answers for example in answers_of(Row("row 1", values), Reading())] == answers


def test_rows_of_answers_in_messages() -> None:
    prompt = [{"role": "user", "content": "p"}]
    answer = {"role": "assistant", "content": "a"}
    for values in ({"messages": [*prompt, answer]}, {"prompt": prompt, "completion": [answer]}):
        (example,) = answers_of(Row("row 1", values), Reading())
        assert (example.prompt, example.answers) == (prompt, [[answer]])
    (example,) = answers_of(Row("row 1", {"q": "p", "a": "x"}), Reading(columns={"prompt": "q", "completion": "a"}))
    assert (example.prompt, example.answers) == ("p", ["x"])
    for values in ({"text": "a"}, {"prompt": "p", "completion": " "}, {"prompt": "p"}):
        with pytest.raises(BadRowError):
            answers_of(Row("row 1", values), Reading())


def test_two_files_become_keys() -> None:
    words = files_as_overrides(["a b.jsonl", "run=x", "it's.jsonl", "--cfg"])
    assert words == ["data.path='a b.jsonl'", "run=x", "output='it\\'s.jsonl'", "--cfg"]
    with pytest.raises(DpoError, match="is a third file"):
        files_as_overrides(["a", "b", "c"])


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ((), "quickstart"),
        (("eval.samples=0",), None),
        (("prompts=alpaca.json",), None),
    ],
)
def test_a_runs_true_reward_is_dropped_where_it_has_nothing_to_judge(
    words: tuple[str, ...], kept: str | None, tmp_path: Path
) -> None:
    changes = ["eval.samples=8", "eval.true_reward=quickstart", "data.eval=held-out.jsonl"]
    ran = composed("train", ["model.path=m", "data.path=rows.jsonl", *changes])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(ran.model_dump(mode="json")))
    (tmp_path / "run.json").write_text("{}")
    assert composed("eval", [f"run={tmp_path}", *words]).eval.true_reward == kept
    with pytest.raises(DpoError, match=r"has no effect without eval.samples"):
        composed("eval", [f"run={tmp_path}", "eval.samples=0", "eval.true_reward=quickstart"])


def test_a_judge_or_harness_that_is_missing_is_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["model.path=m", "data.path=rows.jsonl", "reference.path=r", "eval.samples=2"]
    with pytest.raises(DpoError, match=r"judge.path=.*none: there is no such folder"):
        check_parts(composed("eval", [*given, "judge=reward_model", f"judge.path={tmp_path}/none"]))
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(DpoError, match=r"eval.tasks needs lm-evaluation-harness"):
        check_parts(composed("eval", [*given, "eval=harness"]))


@pytest.mark.parametrize("loss", ["dpo", "simpo"])
def test_a_run_of_an_older_version_is_taken_as_it_was_with_what_it_did_not_know_as_today(
    loss: str, tmp_path: Path
) -> None:
    words = ["model.path=m", "data.path=rows.jsonl", "data.eval=held-out.jsonl", f"loss={loss}", "loss.beta=3"]
    words += ["model/adapter=lora", "data.max_length=77", "reference.cache_dir=elsewhere"]
    ran = composed("train", words).model_dump(mode="json")
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(ran))
    today = composed("eval", [f"run={tmp_path}"])
    other = other_model(composed("eval", ["model.path=a", "data.path=b.jsonl", f"against={tmp_path}"]))
    del ran["reference"]["revision"], ran["data"]["revision"], ran["eval"]["max_new_tokens"]
    del ran["strict_revision"], ran["engine"]["sequence_parallel"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(ran))
    assert composed("eval", [f"run={tmp_path}"]) == today
    assert (today.loss.name, today.loss.beta, today.data.max_length) == (loss, 3.0, 77)
    again = other_model(composed("eval", ["model.path=a", "data.path=b.jsonl", f"against={tmp_path}"]))
    assert again == other
    assert (again.loss, again.model, again.reference) == (today.loss, today.model, today.reference)
    assert again.data.path == "b.jsonl"
