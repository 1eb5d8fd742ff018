"""The same rows through trl's DPOTrainer and through ``dpo train``: the same tokens, losses, log-probs, gradients."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from parity.trl_runs import (
    BATCH,
    ROWS,
    SINGLE,
    TOLERANCE,
    WHOLE,
    Both,
    Case,
    check_tokens,
    check_updates,
    make_model,
    message_rows,
    run_both,
    text_rows,
)

REAL_DATA, REAL_MODEL = os.environ.get("DPO_TEST_DATA", ""), os.environ.get("DPO_TEST_MODEL", "")
EPOCHS = 2

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def cases(tiny: Path) -> dict[str, Case]:
    return {
        # All four pairs at once there; several micro-batches of a few groups here.
        "messages": Case(message_rows(), "auto", WHOLE, epochs=EPOCHS),
        "text": Case(
            text_rows(),
            "plain",
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": BATCH // 2},
            epochs=EPOCHS,
        ),
        # trl's `sigmoid` ignores label_smoothing. Its `aot` is conservative DPO when there is nothing to sort, that is
        # with one pair per forward pass.
        "smoothed": Case(
            message_rows(),
            "auto",
            {**SINGLE, "loss_type": "aot", "label_smoothing": 0.2, "adam_beta1": 0.8, "adam_beta2": 0.95},
            ["loss.label_smoothing=0.2", "optim.betas=[0.8,0.95]"],
            epochs=EPOCHS,
        ),
    }


@pytest.fixture(scope="module")
def both(cases: dict[str, Case], tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Both]:
    for case in cases.values():
        case.model = tiny
    return run_both(cases, tmp_path_factory.mktemp("both"))


CASES = ["messages", "text", "smoothed"]


@pytest.mark.parametrize("name", CASES)
def test_trl_trains_on_our_tokens(name: str, both: dict[str, Both]) -> None:
    check_tokens(both[name])


@pytest.mark.parametrize("name", CASES)
def test_every_update_is_trls(name: str, both: dict[str, Both]) -> None:
    check_updates(both[name])


@pytest.mark.parametrize("name", CASES)
def test_the_comparison_means_something(name: str, both: dict[str, Both]) -> None:
    """Updates move the numbers by far more than the tolerance, and clipping is at work."""
    ours = both[name].ours
    assert len(ours) == EPOCHS * ROWS // BATCH
    assert max(abs(update["rewards/margins"]) for update in ours) > 1000 * TOLERANCE
    assert max(update["grad_norm"] for update in ours) > 1.0
    assert any(len(group.answers[0]) != len(group.answers[1]) for group in both[name].groups)
    assert any(group.answers[0][0] == group.answers[1][0] for group in both[name].groups)


@pytest.mark.parametrize("name", CASES)
def test_a_tie_is_half_right_here_and_wrong_there(name: str, both: dict[str, Both]) -> None:
    """The one metric that differs, and only where policy = reference: at the first update all margins are 0."""
    first, *others = zip(both[name].ours, both[name].trl, strict=True)
    assert (first[0]["rewards/accuracies"], first[1]["rewards/accuracies"]) == (0.5, 0.0)
    for ours, theirs in others:
        assert ours["rewards/accuracies"] == theirs["rewards/accuracies"]


def test_label_smoothing_changes_the_run(both: dict[str, Both]) -> None:
    """So that the smoothed case is not the plain one under another name: trl's sigmoid would ignore the smoothing."""
    last = both["messages"].ours[-1], both["smoothed"].ours[-1]
    assert abs(last[0]["loss"] - last[1]["loss"]) > 100 * TOLERANCE


@pytest.mark.realdata
@pytest.mark.skipif(not (REAL_DATA and REAL_MODEL), reason="DPO_TEST_DATA and DPO_TEST_MODEL are not set")
def test_a_real_model_on_real_preferences(tmp_path: Path) -> None:
    """SmolLM2-135M on hh-rlhf dialogues. Its template puts a newline after the end of a turn; trl would train on
    that newline as the last token of an answer, we end at <|im_end|>. So trl's copy of the template ends there too."""
    with gzip.open(Path(REAL_DATA) / "hh_harmless.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [row for row in rows if max(len(row["chosen"]), len(row["rejected"])) < 500][:8]
    template = (Path(REAL_MODEL) / "chat_template.jinja").read_text(encoding="utf-8")
    ending = "+ '<|im_end|>' + '\n'}}{% endfor %}"
    assert template.count(ending) == 1
    until_the_end = "+ '<|im_end|>'}}{% if not loop.last or add_generation_prompt %}{{ '\n' }}{% endif %}{% endfor %}"
    case = Case(
        rows,
        "auto",
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        model=Path(REAL_MODEL),
        chat_template=template.replace(ending, until_the_end),
        trl_rows=[from_hh(row) for row in rows],
        epochs=1,
        lr=5e-6,
        budget=250,
    )
    both = run_both({"smollm2": case}, tmp_path)["smollm2"]
    assert len(both.ours) == 2
    check_tokens(both)
    check_updates(both)


def from_hh(row: dict[str, str]) -> dict[str, Any]:
    """hh-rlhf's text as messages, parsed here anew."""

    def turns(text: str) -> list[dict[str, str]]:
        _, *parts = re.split(r"\n\n(Human|Assistant): ?", text)
        roles = {"Human": "user", "Assistant": "assistant"}
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return [{"role": roles[speaker], "content": said.strip()} for speaker, said in pairs]

    chosen, rejected = turns(row["chosen"]), turns(row["rejected"])
    assert chosen[:-1] == rejected[:-1]
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}
