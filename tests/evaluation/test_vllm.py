"""How vLLM is called, with a stand-in: the real one has not been run by these tests."""

from __future__ import annotations

import importlib.machinery
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.configs import composed

from dpo_cli.commands.generations import _files, check_can_generate
from dpo_cli.config import EvaluateConfig
from dpo_cli.data.types import Tokens
from dpo_cli.errors import DpoError
from dpo_cli.evaluation.generation import prompt_seed
from dpo_cli.evaluation.vllm_generation import sample_with_vllm

ENDS = [9, 4]


class StandIn(ModuleType):
    """Takes what vLLM takes, and answers with the prompt's last two tokens, an end, and what comes after one."""

    def __init__(self) -> None:
        super().__init__("vllm")
        self.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
        self.engines: list[dict[str, Any]] = []
        self.asked: list[tuple[list[int], SimpleNamespace]] = []
        outer = self

        class LLM:
            def __init__(
                self, model: str, *, revision: str | None, dtype: str, max_model_len: int, skip_tokenizer_init: bool,
                load_format: str, gpu_memory_utilization: float = 0.9,
            ) -> None:  # fmt: skip
                outer.engines.append({"model": model, "revision": revision, "dtype": dtype, "length": max_model_len})
                assert skip_tokenizer_init
                assert load_format == "safetensors"
                assert 0 < gpu_memory_utilization <= 0.9

            def generate(
                self, prompts: Sequence[dict[str, list[int]]], sampling_params: Sequence[Any], *, use_tqdm: bool
            ) -> list[SimpleNamespace]:
                found = []
                for prompt, params in zip(prompts, sampling_params, strict=True):
                    ids = prompt["prompt_token_ids"]
                    assert all(type(token) is int for token in ids)
                    if len(ids) > 20:
                        raise ValueError("The decoder prompt is too long\nand more of it")
                    outer.asked.append((ids, params))
                    found.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=[*ids[-2:], 4, 7])]))
                return found

        self.LLM = LLM
        self.SamplingParams = SimpleNamespace


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    found = StandIn()
    monkeypatch.setitem(sys.modules, "vllm", found)
    return found


def answer(prompts: Sequence[Tokens], **changes: Any) -> list[list[int]]:
    told = {"ends": ENDS, "max_new_tokens": 5, "temperature": 0.7, "seed": 3, "precision": "bf16", **changes}
    return [tokens.tolist() for tokens in sample_with_vllm("some/model", "v1", prompts, **told)]


def test_what_is_asked_and_what_comes_back(stand_in: StandIn) -> None:
    prompts = [np.array(ids, dtype=np.int32) for ids in ([1, 2, 3], [5, 6], [1, 2, 3, 5, 6])]
    counted: list[int] = []
    assert answer(prompts, advance=counted.append) == [[2, 3, 4], [5, 6, 4], [5, 6, 4]]  # up to the first end
    assert counted == [3]
    assert stand_in.engines == [{"model": "some/model", "revision": "v1", "dtype": "bfloat16", "length": 10}]
    for prompt, (ids, params) in zip(prompts, stand_in.asked, strict=True):
        assert ids == prompt.tolist()
        assert vars(params) == {
            "temperature": 0.7,
            "max_tokens": 5,
            "seed": prompt_seed(3, prompt),
            "stop_token_ids": [4, 9],
            "ignore_eos": True,
            "detokenize": False,
        }
    answer(prompts[:1], precision="fp32")
    assert stand_in.engines[-1]["dtype"] == "float32"


def test_what_goes_wrong_in_it_is_one_line(stand_in: StandIn) -> None:
    with pytest.raises(DpoError) as error:
        answer([np.arange(30, dtype=np.int32)])
    assert str(error.value) == ("eval.generator=vllm could not answer with some/model (The decoder prompt is too long)")


def config_of(path: Path, **changes: Any) -> EvaluateConfig:
    words = [f"model.path={path}", "data.path=rows.jsonl", "eval.samples=4", "eval.generator=vllm"]
    found = composed("eval", words)
    assert isinstance(found, EvaluateConfig)
    return found.model_copy(update=changes)


def test_where_it_is_not_installed_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dpo_cli.evaluation.vllm_generation.find_spec", lambda name: None)
    with pytest.raises(DpoError, match=r"vLLM, which is not installed here: pip install vllm .* or eval.generator=hf"):
        check_can_generate(config_of(tmp_path))


def test_it_opens_final_models_and_nothing_else_of_a_run(stand_in: StandIn, tmp_path: Path) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    base.mkdir()
    run.mkdir()
    with pytest.raises(DpoError, match="opens no checkpoints"):
        check_can_generate(config_of(base, run=str(run)))
    (run / "final").mkdir()
    check_can_generate(config_of(base, run=str(run)))
    policy, reference = _files(config_of(base, run=str(run)))
    assert policy is not None
    assert reference is not None
    assert (policy.path, reference.path) == (str(run / "final"), str(base))
    with pytest.raises(DpoError, match="opens no checkpoints"):
        check_can_generate(config_of(base, run=str(run), step=5))
    policy, reference = _files(config_of(base))
    assert policy is not None
    assert (policy.path, reference) == (str(base), None)


def test_what_is_no_plain_model_is_refused(stand_in: StandIn, tmp_path: Path) -> None:
    base, final = tmp_path / "base", tmp_path / "run" / "final"
    base.mkdir()
    final.mkdir(parents=True)
    qlora = composed("train", [f"model.path={base}", "data.path=rows.jsonl", "model/adapter=qlora"]).model
    with pytest.raises(DpoError, match=r"opens plain weights alone, and this is .*/final in nf4"):
        check_can_generate(config_of(base, run=str(tmp_path / "run"), model=qlora))
    adapter = tmp_path / "adapter" / "final"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    with pytest.raises(DpoError, match=r"opens plain weights alone, and this is .* with the adapter .*merge it first"):
        check_can_generate(config_of(base, run=str(adapter.parent)))
    assert stand_in.engines == []
