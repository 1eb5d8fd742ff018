"""What a run is said to take, against numbers made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

from dpo_cli.engine.optimizers import make_optimizer, moment_names
from dpo_cli.model.activations import Activations, outline
from dpo_cli.model.adapters import NewAdapter
from dpo_cli.model.memory import (
    KINDS,
    PARTS,
    Checkpointing,
    Estimate,
    Layout,
    Shape,
    Work,
    estimate,
    least_checkpointing,
    moment_bytes,
)

WEIGHTS = 8_000_000_000
SHAPE = Shape(
    weights=WEIGHTS, trained=WEIGHTS, frozen_bytes=0.0, largest=500_000_000, vocabulary=100_000, vocabularys=800_000_000
)
KEPT = Activations(layers=64e9, layer=2e9, inputs=4e9, selected=20e9, head=1e9, copies=15e9, layer_copies=0.4e9)
WORK = Work(KEPT, rows=1000, micro_batches=2)
LOGITS = 1000 * 100_000 * 2 + 2 * 256 * 100_000 * 4
BUCKET = 500_000_000 * 4


def test_one_gpu_holds_16_bytes_a_weight_and_what_a_micro_batch_keeps() -> None:
    found = estimate(SHAPE, WORK, Layout("bf16"))
    backward = found.backward
    assert backward.weights == 4 * WEIGHTS + 15e9
    assert backward.gradients == 4 * WEIGHTS
    assert backward.optimizer == 8 * WEIGHTS
    assert backward.activations == 65e9
    assert backward.logits == LOGITS
    assert backward.buffers == 4 * 500_000_000  # the gradient of the largest weight, before it is added
    assert backward.total == sum(getattr(backward, part) for part in PARTS)
    assert found.step.total == 16 * WEIGHTS
    assert found.start.total == 4 * WEIGHTS + 0.4e9 + 2e9 + LOGITS
    assert found.worst == "backward"
    assert found.peak is backward


def test_zero_shares_out_one_thing_after_another() -> None:
    stages = [estimate(SHAPE, WORK, Layout("bf16", zero_stage=stage, world_size=8)) for stage in range(4)]
    one = WEIGHTS / 8 * 4
    live = 4 * 1_000_000_000
    assert [found.backward.weights for found in stages] == [
        4 * WEIGHTS + 15e9,
        4 * WEIGHTS + one + 15e9,
        4 * WEIGHTS + one + 15e9,
        one + live + 15e9,
    ]
    assert [found.backward.gradients for found in stages] == [4 * WEIGHTS, 4 * WEIGHTS, 2 * one, one]
    assert [found.backward.optimizer for found in stages] == [8 * WEIGHTS, 2 * one, 2 * one, 2 * one]
    assert {found.backward.buffers for found in stages} == {BUCKET + 4 * 500_000_000}
    assert [found.step.gradients for found in stages] == [4 * WEIGHTS, 4 * WEIGHTS + one, 2 * one, one + min(one, 4e9)]
    assert {found.start.total for found in stages[:3]} == {stages[0].start.total}  # it lies whole on each at first
    # Or is shared out while it is read, but for embeddings and head.
    assert stages[0].start.total - stages[3].start.total == 4 * WEIGHTS - one - 4 * 800_000_000
    assert [found.start.host for found in stages] == [4 * WEIGHTS] * 3 + [4 * 800_000_000]
    adapter = replace(SHAPE, trained=10_000_000, frozen_bytes=2.0 * WEIGHTS)
    assert estimate(adapter, WORK, Layout("bf16", zero_stage=3, world_size=8)).start.host == 4 * WEIGHTS


def test_what_is_offloaded_lies_in_the_hosts_memory() -> None:
    def at(stage: int, offload: str) -> tuple[float, float, float, float]:
        found = estimate(SHAPE, WORK, Layout("bf16", stage, 8, offload=offload)).backward  # type: ignore[arg-type]
        return found.weights - 15e9, found.gradients, found.optimizer, found.host

    one, live = WEIGHTS / 8 * 4, 4e9
    # The copy that is updated, two of its gradient, and two moments.
    assert at(2, "optimizer") == (4 * WEIGHTS, 0, 0, 5 * one)
    assert at(3, "optimizer") == (one + live, 0, 0, 5 * one)
    assert at(3, "all") == (live, 0, 0, 6 * one)


def test_checkpointing_keeps_inputs_and_one_layer() -> None:
    kinds = [
        estimate(SHAPE, WORK, Layout("bf16", checkpointing=kind)).backward  # type: ignore[arg-type]
        for kind in ("none", "selective", "full")
    ]
    assert [found.activations for found in kinds] == [65e9, 4e9 + 20e9 + 2e9 + 1e9, 4e9 + 2e9 + 1e9]
    assert [found.weights - 4 * WEIGHTS for found in kinds] == [15e9, 0.4e9, 0.4e9]


def test_of_what_fits_the_least_is_computed_again() -> None:
    def estimates(kind: Checkpointing) -> Estimate:
        return estimate(SHAPE, WORK, Layout("bf16", checkpointing=kind))

    none, selective, full = (estimates(kind).peak.total for kind in KINDS)
    assert none > selective > full > estimates("none").start.total
    rooms = {none: "none", none - 1: "selective", selective: "selective", selective - 1: "full", full - 1: "full"}
    assert {room: least_checkpointing(estimates, room) for room in rooms} == rooms


def test_what_the_start_takes_anyway_calls_for_no_checkpointing() -> None:
    adapter = replace(SHAPE, trained=10_000_000, frozen_bytes=2.0 * WEIGHTS)  # read in float32, held in bfloat16
    work = replace(WORK, activations=replace(KEPT.scaled(0.01), copies=0.0))

    def estimates(kind: Checkpointing) -> Estimate:
        return estimate(adapter, work, Layout("bf16", checkpointing=kind))

    assert estimates("none").worst == "start"
    assert least_checkpointing(estimates, estimates("none").start.total / 2) == "none"


def test_samples_take_a_whole_model_and_a_second_one_for_the_kl() -> None:
    def of(sampling: str, stage: int) -> tuple[float, float]:
        found = estimate(SHAPE, WORK, Layout("bf16", stage, 8, sampling=sampling)).sample  # type: ignore[arg-type]
        return found.weights, found.reference

    one = WEIGHTS / 8 * 4
    assert of("none", 3) == (0, 0)
    assert of("policy", 3) == (one + 4 * WEIGHTS, 0)
    assert of("policy_and_reference", 3) == (one + 4 * WEIGHTS, 0)  # one after the other
    assert of("policy_and_reference", 2) == (4 * WEIGHTS + one, 4 * WEIGHTS)


def test_a_reference_in_memory_is_a_second_model() -> None:
    def of(kind: str) -> float:
        return estimate(SHAPE, WORK, Layout("bf16", 3, 8, reference=kind)).backward.reference  # type: ignore[arg-type]

    logits = 1000 * 100_000 * 2
    assert (of("none"), of("whole")) == (0, 4 * WEIGHTS + logits)
    assert of("sharded") == WEIGHTS / 8 * 4 + 4e9 + logits
    assert of("adapter_off") == logits


def test_a_cpu_counts_what_is_written_to_and_what_its_allocator_keeps() -> None:
    small = replace(SHAPE, weights=1_000_000, trained=1_000_000, largest=100_000)
    found = estimate(small, WORK, Layout("fp32", 2, 2, gpu=False)).backward
    logits = LOGITS + 1000 * 100_000 * 2  # four bytes each
    assert found.logits == logits
    # The bucket, its copy and its place before, the gradient of the largest weight, pieces, and what libraries take.
    assert found.buffers == 3 * 4 * 1_000_000 + 4 * 100_000 + 0.25 * (65e9 + logits) + 40 * 2**20
    capped = estimate(small, replace(WORK, capped=True), Layout("fp32", gpu=False)).backward
    assert capped.logits - logits == 2 * 1000 * 100_000 * 4
    alone = estimate(small, replace(WORK, micro_batches=1), Layout("fp32", gpu=False)).backward
    assert alone.buffers == 4 * 100_000 + 40 * 2**20


def test_on_a_cpu_what_is_freed_is_of_no_use_for_the_large_buffers_that_follow() -> None:
    small = replace(SHAPE, weights=1_000_000, trained=1_000_000, largest=100_000)
    four = 4.0 * 1_000_000
    for stage, more, saved in ((0, 0.0, four), (2, four / 2 + four, 0.0), (3, four / 2, four)):
        found = estimate(small, WORK, Layout("fp32", stage, 2 if stage else 1, gpu=False))
        assert found.step.total == found.backward.total + more
        assert found.save.total == found.step.total + saved
        with_moments = estimate(small, WORK, Layout("fp32", stage, 2, gpu=False), saves_moments=True)
        assert with_moments.save.total > found.save.total


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "adamw_8bit"])
def test_an_optimizer_remembers_as_much_as_is_said(name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(64, 1024))
    weight.grad = torch.ones_like(weight)
    rest = {"alpha": 0.9, "eps": 1e-8} if name == "rmsprop" else {"betas": (0.9, 0.9), "eps": 1e-8, "weight_decay": 0.0}
    optimizer = make_optimizer(name, [weight], **rest)
    optimizer.step()
    state = optimizer.state[weight]
    size = sum(state[moment].nbytes for moment in moment_names(state))
    assert size / weight.numel() == pytest.approx(moment_bytes(name))


def test_a_shape_knows_what_is_trained_and_how_the_rest_is_held() -> None:
    config = LlamaConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    matrices = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    whole = Shape.of(outline(config, None, "bf16")[0])
    assert whole == Shape(2 * 1000 * 64 + matrices + 5 * 64, whole.weights, 0.0, 64_000, 1000, 128_000)
    config.tie_word_embeddings = True
    assert Shape.of(outline(config, None, "bf16")[0]).largest == 3 * 64_000
    config.tie_word_embeddings = False
    lora = NewAdapter("qlora", r=4, alpha=8, dropout=0.0, target_modules=["q_proj"])
    model, _ = outline(config, lora, "bf16")
    adapter = 2 * 2 * 4 * 64
    rest = 4 * (64_000 + 5 * 64) + 2 * 64_000  # embeddings and norms in float32, the head in bfloat16
    assert Shape.of(model).frozen_bytes == rest + 2 * matrices
    quantised = Shape.of(model, "nf4_double")
    assert (quantised.trained, quantised.weights) == (adapter, whole.weights + adapter)
    assert quantised.frozen_bytes == pytest.approx(rest + matrices * (4 + 8 / 64 + 32 / 64 / 256) / 8)
