"""Whether this machine's numbers are right: groups against plain float32 forward passes, one sequence at a time."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from typing import Any

import deepspeed
import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PretrainedConfig, PreTrainedModel

from dpo_cli.data.collate import collate
from dpo_cli.data.types import Group
from dpo_cli.distributed import device
from dpo_cli.model.attention import GROUP_ATTENTION, own_attention
from dpo_cli.model.flops import peak_flops
from dpo_cli.model.policy import Policy
from dpo_cli.model.probe import compare

_SHAPE = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
FAMILIES: dict[str, PretrainedConfig] = {
    "full attention": LlamaConfig(**_SHAPE),
    "sliding window": MistralConfig(**_SHAPE, sliding_window=100),
}
# Prompt, answers, and how many first tokens the answers share: K = 1, 2 and 4, answers of one token, all sides of the
# kernels' blocks of 64 and 128.
_GROUPS = [(121, (288, 250), 3), (5, (1, 40), 0), (300, (130, 7, 64, 1), 0), (1, (3,), 0), (64, (65, 129), 0)]
_EXACT = 1e-3
"""fp32: of a log-prob in nats, and of a parameter's gradient as a share of its norm."""
_ROUNDED, _SLACK = 2.0, 2e-3
"""bf16: how much worse than plain bf16 forward passes, one sequence at a time, groups may be."""


class CheckFailed(Exception):
    """The numbers are wrong; nothing must be measured."""


def check(options: argparse.Namespace) -> dict[str, Any]:
    """What is on this machine.

    Raises:
        CheckFailed: if the numbers are wrong.
    """
    where = device()
    if options.device == "cuda" and where.type != "cuda":
        raise CheckFailed("torch finds no GPU here")
    names = ("torch", torch), ("transformers", transformers), ("deepspeed", deepspeed)
    versions = [f"{name} {module.__version__}" for name, module in names]
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.processor() or "CPU"
    return {
        "device": name,
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        "checked": "; ".join(check_family(family, where) for family in FAMILIES),
        "peak": peak_flops(where, options.precision),
        "peak_measured": measured_peak(where, options.precision),
    }


def check_family(family: str, where: torch.device) -> str:
    """Compare; for people.

    Raises:
        CheckFailed: naming what is off by how much.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation=GROUP_ATTENTION)
    with torch.no_grad():
        for parameter in model.parameters():  # large enough to make attention matter
            parameter.mul_(3.0) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(where)
    groups = random_groups()
    exact = plain(model, groups, "fp32")
    ours, kernel = in_groups(model, groups, "fp32")
    apart = errors(ours, exact)
    _demand(family, "fp32", kernel, apart, {"largest": _EXACT, "gradient": _EXACT})
    text = f"{family}: fp32 through {kernel} within {apart['largest']:.1e} nats, gradients {apart['gradient']:.1e}"
    rounding = errors(plain(model, groups, "bf16"), exact)
    ours, kernel = in_groups(model, groups, "bf16")
    apart = errors(ours, exact)
    allowed = {name: _ROUNDED * rounding[name] + _SLACK for name in ("usual", "gradient")}
    _demand(family, "bf16", kernel, apart, allowed)
    return text + (
        f", bf16 through {kernel} {apart['usual']:.1e} nats (one by one {rounding['usual']:.1e}), gradients "
        f"{apart['gradient']:.1e} ({rounding['gradient']:.1e})"
    )


def _demand(family: str, precision: str, kernel: str, found: dict[str, float], allowed: dict[str, float]) -> None:
    for name, limit in allowed.items():
        if not found[name] <= limit:
            what = "gradients as a share of their norm" if name == "gradient" else f"{name} error of log-probs in nats"
            raise CheckFailed(f"{family}, {precision} through {kernel}: {what}: {found[name]:.3g}, allowed {limit:.3g}")


def random_groups() -> list[Group]:
    """Of every awkward shape."""
    random = np.random.default_rng(0)

    def tokens(count: int) -> Any:
        return random.integers(2, _SHAPE["vocab_size"], count, dtype=np.int32)

    groups = []
    for prompt, lengths, same in _GROUPS:
        first = tokens(same)
        answers = tuple(np.concatenate((first, tokens(length - same))) for length in lengths)
        groups.append(Group(tokens(prompt), answers, (), "random"))
    return groups


Numbers = tuple[Tensor, dict[str, Tensor]]
"""Log-probs of all answers' tokens, and the gradients of a sum of them with unequal weights."""


def plain(model: PreTrainedModel, groups: Sequence[Group], precision: str) -> Numbers:
    """The textbook's way, through the model family's own attention."""
    model.set_attn_implementation(own_attention(model))
    try:
        logps = []
        for group in groups:
            for answer in group.answers:
                ids = torch.tensor(np.concatenate((group.prompt_ids, answer)), dtype=torch.int64, device=model.device)
                with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
                table = torch.log_softmax(logits.float(), dim=-1)
                chosen = table[torch.arange(len(ids) - 1, device=ids.device), ids[1:]]
                logps.append(chosen[len(group.prompt_ids) - 1 :])
        return _with_gradients(model, torch.cat(logps))
    finally:
        model.set_attn_implementation(GROUP_ATTENTION)


def in_groups(model: PreTrainedModel, groups: Sequence[Group], precision: str) -> tuple[Numbers, str]:
    """The project's way, and what attention went through."""
    agreement = compare(model, groups, precision)  # as at the start of every run
    batch = collate(groups)
    logps = Policy(model, precision=precision, groups=True)(batch)
    tokens = torch.from_numpy(batch.answer_tokens).to(logps.device)
    return _with_gradients(model, logps[tokens]), " and ".join(agreement.kernels)


def _with_gradients(model: PreTrainedModel, logps: Tensor) -> Numbers:
    model.zero_grad()
    (torch.linspace(-1.0, 2.0, len(logps), device=logps.device) * logps).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logps.detach().double(), gradients


def errors(found: Numbers, expected: Numbers) -> dict[str, float]:
    """The largest and the usual (root mean square) error of a log-prob; a gradient's worst, as a share of its norm."""
    (logps, gradients), (right, right_gradients) = found, expected
    if gradients.keys() != right_gradients.keys():
        raise CheckFailed(f"parameters without a gradient: {sorted(gradients.keys() ^ right_gradients.keys())[:3]}")
    shares = [float((gradients[name] - g).norm() / g.norm()) for name, g in right_gradients.items()]
    difference = logps - right
    return {
        "largest": float(difference.abs().max()),
        "usual": float(difference.square().mean().sqrt()),
        "gradient": float(np.max(shares)),  # NaN if any is, which max is not
    }


def measured_peak(where: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product."""
    if where.type != "cuda":
        return float(peak_flops(where, precision) or 0.0)
    size = 8192
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=where, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            left @ right
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / 10)
    return 2 * size**3 / best
