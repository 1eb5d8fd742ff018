"""One short run, to be made at every ZeRO stage, in every precision and with every adapter; and made the plain way."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from dpo_cli.data.collate import flat_length
from dpo_cli.data.plan import Plan, Step
from dpo_cli.data.types import Group
from helpers import training_case as case

UPDATES = 20
BETA = 0.3
CLIP = {"none": 1.3, "lora": 0.5, "qlora": 0.5}
RATES = {"none": 2e-3, "lora": 1e-2, "qlora": 1e-2}
"""The first learning rate with each adapter; it falls to nothing in a line."""
RANK, ALPHA = 4, 8
REFERENCE = "reference.safetensors"
"""In the model's folder: log-probs by adapter, which may change what the reference is, and group."""
QUANTISED = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.float32,
}


class Run(NamedTuple):
    """A way to make it."""

    stage: int
    precision: str
    adapter: str
    """``none``, ``lora`` or ``qlora``."""
    budget: int
    """Tokens a micro-batch."""
    world: int
    """Processes that the global batch is shared out to; one process alone can run the micro-batches of several."""


def groups() -> list[Group]:
    """Thirty, with 45 comparisons."""
    found = [group for update in range(5) for group in case.groups_of(update)]
    return [replace(group, source=str(number)) for number, group in enumerate(found)]


def step(update: int, world: int, budget: int) -> Step:
    """Eight comparisons or a few more. Who is in it depends on neither world nor budget."""
    return _plan(world, budget)[update]


def in_one_process(shared: Step) -> Step:
    """With the micro-batches of all ranks one after another."""
    return replace(shared, ranks=(tuple(micro for rank in shared.ranks for micro in rank if micro),))


@cache
def _plan(world: int, budget: int) -> Plan:
    rows = groups()
    lengths = [flat_length(group) for group in rows]
    return Plan(
        lengths,
        lengths,
        [len(group.pairs) for group in rows],
        seed=0,
        batch_size=8,
        epochs=UPDATES,
        max_steps=UPDATES,
        world_size=world,
        token_budget=budget,
    )


def rate(update: int, adapter: str) -> float:
    return RATES[adapter] * (1 - update / UPDATES)


class Curve(NamedTuple):
    """Of a run, a number for each update."""

    losses: list[float]
    norms: list[float]
    """Of the gradient, before it is clipped."""


def plain_curve(folder: Path, adapter: str) -> tuple[Curve, dict[str, Tensor]]:
    """The run, and the reference's log-probs ``[M]`` by group.

    On one process, one sequence at a time, with transformers' own model and attention, peft's own wrapper and torch's
    own optimizer.
    """
    model = _plain_model(folder, adapter)
    rows = groups()
    with torch.no_grad():
        reference = {group.source: torch.cat(_logps(model, group)) for group in rows}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = case.plain_optimizer("adamw", trained)
    curve = Curve([], [])
    for update in range(UPDATES):
        terms = [term for index in step(update, 1, 1).groups for term in _terms(model, rows[index], reference)]
        loss = torch.stack(terms).mean()
        optimizer.zero_grad()
        loss.backward()
        curve.losses.append(float(loss.detach()))
        curve.norms.append(float(nn.utils.clip_grad_norm_(trained.values(), CLIP[adapter])))
        for group in optimizer.param_groups:
            group["lr"] = rate(update, adapter)
        optimizer.step()
    return curve, reference


def _plain_model(folder: Path, adapter: str) -> nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    if adapter == "none":
        return model
    if adapter == "qlora":
        _round(model, folder)
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings: dict[str, Any] = {"r": RANK, "lora_alpha": ALPHA, "target_modules": "all-linear"}
    return get_peft_model(model, LoraConfig(**settings, task_type="CAUSAL_LM"))


def _round(model: nn.Module, folder: Path) -> None:
    """The matrices as four bits have them, in float32."""
    from bitsandbytes.functional import dequantize_4bit

    options = BitsAndBytesConfig(**QUANTISED)
    quantised = AutoModelForCausalLM.from_pretrained(folder, quantization_config=options, dtype=torch.float32)
    for name, module in quantised.named_modules():
        if type(module).__name__ == "Linear4bit":
            rounded = dequantize_4bit(module.weight.data, module.weight.quant_state)
            model.get_submodule(name).weight.data.copy_(rounded)


def _logps(model: nn.Module, group: Group) -> list[Tensor]:
    """Of the tokens of each answer."""
    found = []
    for answer in group.answers:
        ids = torch.tensor([[*group.prompt_ids, *answer]], dtype=torch.int64)
        scores = model(input_ids=ids).logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(-1)
        found.append(scores[torch.arange(len(answer)), ids[0, len(group.prompt_ids) :]])
    return found


def _terms(model: nn.Module, group: Group, reference: dict[str, Tensor]) -> list[Tensor]:
    """DPO's loss of each comparison (Rafailov et al. 2023, eq. 7)."""
    policy = _logps(model, group)
    before = reference[group.source].split([len(answer) for answer in group.answers])
    ratios = [(after - known).sum() for after, known in zip(policy, before, strict=True)]
    return [-logsigmoid(BETA * (ratios[pair.winner] - ratios[pair.loser])) for pair in group.pairs]
