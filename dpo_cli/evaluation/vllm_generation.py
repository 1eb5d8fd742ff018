"""Sampled answers by vLLM, where it is installed. It runs no model of ours but opens the files itself."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import torch

from dpo_cli.data.types import Tokens
from dpo_cli.errors import DpoError
from dpo_cli.evaluation.generation import prompt_seed, until_end
from dpo_cli.model.files import understood

_SHARE_OF_FREE_MEMORY = 0.9
"""Of a GPU: models of this process stay where they are."""


def check_installed() -> None:
    """Whether vLLM is there.

    Raises:
        DpoError: saying what to install.
    """
    if find_spec("vllm") is None:
        raise DpoError(
            "eval.generator=vllm needs vLLM, which is not installed here: pip install vllm (its builds bring a torch "
            "of their own), or eval.generator=hf"
        )


def sample_with_vllm(
    path: str,
    revision: str | None,
    prompts: Sequence[Tokens],
    *,
    ends: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    precision: str,
    advance: Callable[[int], None] = lambda prompts: None,
) -> list[Tokens]:
    """One answer to each prompt, as ``generation.sample`` gives them; the draws are vLLM's own.

    Args:
        path: hub id or folder of plain weights.
        revision: of the hub repository.
        prompts: ``[P]`` token ids each.
        ends: tokens that end an answer.
        max_new_tokens: per answer.
        temperature: 0 = greedy.
        seed: of the samples; each prompt has its own, whatever prompts are beside it.
        precision: ``fp32`` or ``bf16``, to which vLLM rounds the weights too.
        advance: told how many prompts are done since the last time.

    Raises:
        DpoError: vLLM is not installed, or can't do it.
    """
    check_installed()
    memory = {}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        memory = {"gpu_memory_utilization": _SHARE_OF_FREE_MEMORY * free / total}
    with understood(f"eval.generator=vllm could not answer with {path}"):
        from vllm import LLM, SamplingParams

        engine = LLM(
            model=path,
            revision=revision,
            dtype={"fp32": "float32", "bf16": "bfloat16"}[precision],
            max_model_len=max(map(len, prompts)) + max_new_tokens,
            skip_tokenizer_init=True,  # tokens go in and come out
            load_format="safetensors",  # other formats are pickles, which can run code
            **memory,
        )
        settings = [
            SamplingParams(
                temperature=temperature,
                max_tokens=max_new_tokens,
                seed=prompt_seed(seed, prompt),
                stop_token_ids=sorted(ends),
                ignore_eos=True,  # its own idea of an end; ours are the line above
                detokenize=False,
            )
            for prompt in prompts
        ]
        asked = [{"prompt_token_ids": prompt.tolist()} for prompt in prompts]
        found = engine.generate(asked, settings, use_tqdm=False)
        answers = [until_end(np.array(each.outputs[0].token_ids, dtype=np.int32), ends) for each in found]
    del engine  # with it goes the process that holds the GPU's memory
    gc.collect()
    advance(len(prompts))
    return answers
