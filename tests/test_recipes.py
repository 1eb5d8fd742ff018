"""The experiments that are shipped: what they say of themselves, their numbers, and each run for two updates."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import runs, tokenizers
from helpers.configs import composed
from helpers.runs import Place
from hydra.core.global_hydra import GlobalHydra
from transformers import Gemma2Config, LlamaConfig, MistralConfig, PretrainedConfig, SmolLM3Config

from dpo_cli import sweep
from dpo_cli.compose import config_folder, run_command
from dpo_cli.config import TrainConfig
from dpo_cli.launchers.apart import Ended

FILES = {file.stem: file for file in sorted((config_folder() / "experiment").glob("*.yaml"))}
SWEEPS = [name for name in FILES if name.startswith("sweep_") or name == "quickstart_frontier"]
RECIPES = [name for name in FILES if name not in SWEEPS]
OURS = ("quickstart", "smollm2_chat", "smollm2_hh")


@pytest.fixture(autouse=True)
def _fresh_hydra() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()


def config_of(name: str) -> TrainConfig:
    """What ``+experiment=NAME`` comes to."""
    given = ["data.path=rows.json"] if name == "smollm2_chat" else []
    return composed("train", [f"+experiment={name}", *given])


def header_of(name: str) -> str:
    """The comment that opens an experiment, as one line."""
    lines = FILES[name].read_text(encoding="utf-8").splitlines()[1:]
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:end])


@pytest.mark.parametrize("name", FILES)
def test_an_experiment_names_its_source(name: str) -> None:
    header = header_of(name)
    assert "Source: " in header
    if name not in (*OURS, *SWEEPS):
        assert "Expected: " in header
        assert "Hardware there: " in header


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_trains_on_a_test_set(name: str) -> None:
    data = config_of(name).data
    assert "test" not in data.split
    if data.path == "HuggingFaceH4/ultrafeedback_binarized":
        assert (data.split, data.eval) == ("train_prefs", "test_prefs")


class Numbers(NamedTuple):
    """Of a published recipe, typed in from its source a second time."""

    loss: str
    beta: float
    lr: float
    schedule: str
    epochs: int
    batch_size: int
    max_length: int
    max_prompt_length: int | None
    optimizer: str = "adamw"
    extra: dict[str, float] = {}  # noqa: RUF012 # read only


NUMBERS = {
    "zephyr": Numbers("dpo", 0.01, 5e-7, "cosine", 1, 128, 1024, 512),
    "zephyr_paper": Numbers("dpo", 0.1, 5e-7, "linear", 3, 64, 1024, 512, "rmsprop"),
    "zephyr_qlora": Numbers("dpo", 0.01, 5e-6, "cosine", 1, 4 * 4, 1024, 512, "paged_adamw_32bit"),
    "ipo_zephyr_7b": Numbers("ipo", 0.01, 5e-7, "cosine", 1, 128, 1024, 512),
    "tulu3_8b": Numbers("dpo_norm", 5, 5e-7, "linear", 1, 128, 2048, None),
    "tulu3_70b": Numbers("dpo_norm", 5, 2e-7, "linear", 1, 128, 2048, None),
    "simpo_mistral_base_7b": Numbers("simpo", 2, 3e-7, "cosine", 1, 128, 1024, 512, extra={"gamma_ratio": 0.8}),
    "simpo_mistral_instruct_7b": Numbers("simpo", 2.5, 5e-7, "cosine", 1, 128, 2048, 1800, extra={"gamma_ratio": 0.1}),
    "simpo_llama3_base_8b": Numbers("simpo", 2, 6e-7, "cosine", 1, 128, 2048, 1800, extra={"gamma_ratio": 0.5}),
    "simpo_llama3_8b": Numbers("simpo", 2.5, 1e-6, "cosine", 1, 128, 2048, 1800, extra={"gamma_ratio": 0.55}),
    "simpo_llama3_8b_v02": Numbers("simpo", 10, 1e-6, "cosine", 1, 128, 2048, 1800, extra={"gamma_ratio": 0.3}),
    "simpo_gemma2_9b": Numbers("simpo", 10, 8e-7, "cosine", 1, 128, 2048, 1800, extra={"gamma_ratio": 0.5}),
    "orpo_mistral_7b": Numbers("orpo", 0.1, 5e-6, "inverse_sqrt", 5, 4 * 8, 2048, 1792),
    "kto_llama3_8b": Numbers(
        "kto", 0.1, 5e-6, "cosine", 1, 64, 1250, 625, extra={"desirable_weight": 1.1, "undesirable_weight": 1.0}
    ),
    "smollm2_135m": Numbers("dpo", 0.5, 1e-6, "cosine", 2, 8 * 8 * 2, 1024, 512),
    "apo_zero_smollm3": Numbers("apo_zero", 0.05, 1e-6, "cosine_with_min_lr", 1, 32, 24576, None),
}


def test_every_published_recipe_is_checked() -> None:
    assert NUMBERS.keys() == set(RECIPES) - set(OURS)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_recipe_has_its_sources_numbers(name: str) -> None:
    config, expected = config_of(name), NUMBERS[name]
    loss, optim = config.loss.model_dump(), config.optim
    warmup = 200 if name == "orpo_mistral_7b" else 0.1
    assert loss["name"] == expected.loss
    assert loss["beta"] == expected.beta
    assert {key: loss[key] for key in expected.extra} == expected.extra
    assert (optim.name, optim.lr, optim.schedule) == (expected.optimizer, expected.lr, expected.schedule)
    assert (optim.warmup_steps or optim.warmup_ratio) == warmup
    assert optim.max_grad_norm == (0.2 if name == "apo_zero_smollm3" else 1.0)
    assert optim.min_lr_ratio == (0.1 if name == "apo_zero_smollm3" else None)
    assert (config.train.epochs, config.train.batch_size) == (expected.epochs, expected.batch_size)
    assert (config.data.max_length, config.data.max_prompt_length) == (expected.max_length, expected.max_prompt_length)
    assert config.train.precision == "bf16"


def test_the_adapter_has_its_sources_numbers() -> None:
    adapter = config_of("zephyr_qlora").model.adapter.model_dump()
    assert (adapter["name"], adapter["r"], adapter["alpha"], adapter["dropout"]) == ("qlora", 128, 128, 0.05)
    assert len(adapter["target_modules"]) == 7
    assert config_of("zephyr").model.adapter.name == "none"


# -- two updates of each, with a tiny random model of the same family and rows of the same shape


def words(number: int, what: str) -> str:
    return f"{what} number {number} says {'so ' * (1 + number % 3)}"


def turns(number: int, answer: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": words(number, "question")},
        {"role": "assistant", "content": words(number, answer)},
    ]


def whole_dialogues(number: int) -> dict[str, Any]:
    return {
        "prompt": words(number, "question"),
        "chosen": turns(number, "good"),
        "rejected": turns(number, "poor"),
    }


def ultrafeedback(number: int) -> dict[str, Any]:
    scores = {"score_chosen": 8.0, "score_rejected": 4.5}
    return {**whole_dialogues(number), "prompt_id": str(number), "messages": turns(number, "good"), **scores}


def on_policy(number: int) -> dict[str, Any]:
    return {
        **whole_dialogues(number),
        "prompt_id": str(number),
        "all_generated_responses": [words(number, "good"), words(number, "poor")],
        "all_rm_scores": [0.17, 0.11],
    }


def argilla(number: int) -> dict[str, Any]:
    return {**whole_dialogues(number), "source": "x", "chosen-rating": 4.5, "rejected-rating": 3.0}


def smoltalk2(number: int) -> dict[str, Any]:
    return {**whole_dialogues(number), "chat_template_kwargs": {"enable_thinking": True}, "source": "x"}


def hh(number: int) -> dict[str, Any]:
    start = f"\n\nHuman: {words(number, 'question')}\n\nAssistant: "
    return {"chosen": start + words(number, "good"), "rejected": start + words(number, "poor")}


def sharegpt(number: int) -> dict[str, Any]:
    def turn(speaker: str, text: str) -> dict[str, str]:
        return {"from": speaker, "value": text}

    return {
        "conversations": [turn("human", words(number, "question"))],
        "chosen": turn("gpt", words(number, "good")),
        "rejected": turn("gpt", words(number, "poor")),
    }


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "HuggingFaceH4/ultrafeedback_binarized": ultrafeedback,
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": whole_dialogues,
    "princeton-nlp/mistral-instruct-ultrafeedback": on_policy,
    "princeton-nlp/llama3-ultrafeedback": on_policy,
    "princeton-nlp/llama3-ultrafeedback-armorm": on_policy,
    "princeton-nlp/gemma2-ultrafeedback-armorm": on_policy,
    "argilla/ultrafeedback-binarized-preferences-cleaned": argilla,
    "HuggingFaceTB/smoltalk2": smoltalk2,
    "Anthropic/hh-rlhf": hh,
    "rows.json": sharegpt,
}
FAMILIES: dict[str, Callable[..., PretrainedConfig]] = {
    "alignment-handbook/zephyr-7b-sft-full": MistralConfig,
    "mistralai/Mistral-7B-v0.1": MistralConfig,
    "mistralai/Mistral-7B-Instruct-v0.2": MistralConfig,
    "allenai/Llama-3.1-Tulu-3-8B-SFT": LlamaConfig,
    "princeton-nlp/Llama-3-Base-8B-SFT": LlamaConfig,
    "meta-llama/Meta-Llama-3-8B-Instruct": LlamaConfig,
    "google/gemma-2-9b-it": Gemma2Config,
    "HuggingFaceTB/smollm2-135M-SFT-Only": LlamaConfig,
    "HuggingFaceTB/SmolLM2-135M-Instruct": LlamaConfig,
    "HuggingFaceTB/SmolLM3-3B-checkpoints": SmolLM3Config,
}


def tiny_model(folder: Path, path: str) -> Path:
    """Random weights in the architecture of the model that a recipe names."""
    family = FAMILIES[path]
    # gemma's template begins with the beginning-of-sequence token, which the built-in tokenizer has none of.
    tokenizer = tokenizers.with_bos() if family is Gemma2Config else tokenizers.quickstart()
    sizes = runs.llama(attention_dropout=0.0, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
    return runs.make_model(folder, family(**{name: sizes[name] for name in names}, head_dim=8), tokenizer)


# The loss at policy = reference, for any model and rows.
AT_START = {"dpo": math.log(2), "dpo_norm": math.log(2), "ipo": 1 / (2 * 0.01) ** 2, "apo_zero": 1.0, "kto": 0.525}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "tulu3_70b"])  # the 8B's, with another model
def test_a_recipe_runs(name: str, tmp_path: Path) -> None:
    config, place = config_of(name), Place(tmp_path)
    changes: dict[str, object] = {"tracker.mode": "disabled", "train.max_steps": 2, "train.batch_size": 4}
    changes |= {"train.tokens_per_micro_batch": 512, "run_dir": tmp_path / "run", "eval.samples": 0}
    if name == "quickstart":
        changes |= {"eval.true_reward": None}
    else:
        rows = [ROWS[config.data.path](number) for number in range(12)]
        tiny_model(place.model, config.model.path)
        runs.write_rows(place.train, rows[:8])
        changes |= {"model.path": place.model, "model.revision": None}
        changes |= {"data.path": place.train, "data.subset": None, "data.split": "train"}  # a file has no more
        if isinstance(config.data.eval, str):
            changes |= {"data.eval": runs.write_rows(place.held_out, rows[8:])}
    if config.optim.name.startswith("paged_"):  # these need a GPU
        changes |= {"optim": "adamw", "optim.lr": config.optim.lr, "optim.schedule": config.optim.schedule}
        changes |= {"optim.warmup_ratio": config.optim.warmup_ratio}
    ended = place.dpo("train", changes, f"+experiment={name}")
    assert ended.code == 0, ended.err[-3000:]
    first, second = runs.updates(tmp_path / "run")
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in (first, second))
    if config.loss.name in AT_START:
        assert first["loss"] == pytest.approx(AT_START[config.loss.name], rel=0.02)
    assert (first["lr"], second["lr"]) == (0.0, config.optim.lr)
    if config.model.adapter.name != "none":
        settings = json.loads((tmp_path / "run" / "final" / "adapter_config.json").read_text())
        assert settings["r"] == 128
        return
    assert json.loads((tmp_path / "run" / "final" / "config.json").read_text())["model_type"] == (
        "llama" if name == "quickstart" else FAMILIES[config.model.path]().model_type
    )


# -- sweeps


SWEPT = {
    "sweep_beta": ["loss.beta=0.1", "loss.beta=0.3", "loss.beta=1", "loss.beta=3"],
    "sweep_loss_beta": [
        f"loss={loss},loss.beta={beta}" for loss in ("dpo", "ipo", "apo_zero") for beta in ("0.1", "0.3", "1")
    ],
    "quickstart_frontier": [
        *(f"loss=dpo,loss.beta={beta}" for beta in ("3", "1", "0.3", "0.1")),
        *(f"loss=ipo,loss.beta={beta}" for beta in ("3", "1", "0.3")),
        *(f"loss=kto,loss.beta={beta},train.batch_size=128" for beta in ("3", "1", "0.3")),
        *(f"loss=orpo,loss.beta={beta}" for beta in ("0.1", "0.5", "2")),
        *(f"loss=simpo,loss.beta={beta}" for beta in ("1", "2.5", "10")),
        "loss=sft",
    ],
}


def jobs_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[TrainConfig]:
    """What a sweep would run, in order."""
    jobs: list[TrainConfig] = []

    class Instead:
        process = None

        def __init__(self, command: str, config: TrainConfig, environment: dict[str, str], log: Path | None) -> None:
            jobs.append(config)

        def ended(self) -> Ended:
            return Ended(0, "")

    monkeypatch.setattr(sweep, "Apart", Instead)
    monkeypatch.setattr(sweep, "_SECONDS_BETWEEN_LOOKS", 0.0)
    assert run_command("train", list(arguments)) == 0
    return jobs


def test_every_sweep_is_checked() -> None:
    assert SWEPT.keys() == set(SWEEPS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if len(swept) > 9 else []) for name, swept in SWEPT.items()]
)
def test_a_sweep_names_its_runs_by_what_is_swept(name: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = jobs_of(monkeypatch, f"+experiment={name}", "-m", "train.max_steps=2")
    assert [Path(str(job.run_dir)).name for job in jobs] == SWEPT[name]
    for job, point in zip(jobs, SWEPT[name], strict=True):
        assert job.loss.name == "sft" or f"loss.beta={job.loss.beta:g}" in point.split(",")
        assert job.loss.name in point or "," not in point
        assert job.train.max_steps == 2


def test_the_command_line_may_name_other_points(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = jobs_of(monkeypatch, "+experiment=sweep_beta", "-m", "loss.beta=0.5,2")
    assert [Path(str(job.run_dir)).name for job in jobs] == ["loss.beta=0.5", "loss.beta=2"]


@pytest.mark.slow
def test_a_sweep_runs(tmp_path: Path) -> None:
    arguments = {"train.max_steps": 2, "eval.samples": 0, "eval.true_reward": None, "tracker.mode": "disabled"}
    arguments |= {"loss.beta": "0.3,3"}
    ended = Place(tmp_path).dpo("train", arguments, "+experiment=sweep_beta", "-m")
    assert ended.code == 0, ended.err
    (folder,) = (tmp_path / "runs").iterdir()
    for point in ("loss.beta=0.3", "loss.beta=3"):
        assert runs.record(folder / point)["status"] == "done"
        assert point in ended.out
