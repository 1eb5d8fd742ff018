"""What DeepSpeed is told, and which of its keys are refused."""

from __future__ import annotations

from typing import Any

import pytest
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from dpo_cli.engine.offload import check_offload
from dpo_cli.engine.settings import deepspeed_config
from dpo_cli.errors import ConfigError, DpoError

CONFLICTS: dict[str, tuple[Any, str]] = {
    "train_batch_size": (8, "train.batch_size"),
    "train_micro_batch_size_per_gpu": (1, "train.tokens_per_micro_batch"),
    "gradient_accumulation_steps": (2, "train.batch_size and train.tokens_per_micro_batch"),
    "gradient_clipping": (1.0, "optim.max_grad_norm"),
    "optimizer": ({"type": "Adam"}, "optim"),
    "scheduler": ({"type": "WarmupLR"}, "optim.schedule"),
    "bf16": ({"enabled": True}, "train.precision"),
    "bfloat16": ({"enabled": True}, "train.precision"),
    "fp16": ({"enabled": False}, "train.precision"),
    "amp": ({}, "train.precision"),
    "torch_autocast": ({"enabled": True}, "train.precision"),
    "data_types": ({}, "train.precision"),
    "sequence_parallel_size": (2, "engine.sequence_parallel"),
    "data_parallel_size": (2, "launch.num_processes and engine.sequence_parallel"),
}


@pytest.mark.parametrize("key", CONFLICTS)
def test_a_key_that_ours_decides_is_refused_by_name(key: str) -> None:
    value, ours = CONFLICTS[key]
    with pytest.raises(ConfigError) as error:
        deepspeed_config(zero_stage=2, max_grad_norm=1.0, extra={key: value})
    assert error.value.problems == [f"engine.deepspeed.{key} is decided by {ours}: set that instead"]


def test_all_conflicts_are_reported_at_once() -> None:
    extra = {"zero_optimization": {"stage": 2}, **{key: value for key, (value, _) in CONFLICTS.items()}}
    with pytest.raises(ConfigError) as error:
        deepspeed_config(zero_stage=2, max_grad_norm=1.0, extra=extra)
    assert len(error.value.problems) == len(CONFLICTS) + 1
    assert (
        "engine.deepspeed.zero_optimization.stage is decided by engine.zero_stage: set that instead"
        in error.value.problems
    )


@pytest.mark.parametrize("key", ["tensor_parallel", "expert_parallel"])
def test_what_would_leave_parts_of_layers_on_ranks_is_refused(key: str) -> None:
    with pytest.raises(ConfigError) as error:
        deepspeed_config(zero_stage=2, max_grad_norm=1.0, extra={key: {"autotp_size": 2}})
    (problem,) = error.value.problems
    assert problem.startswith(f"engine.deepspeed.{key} is not supported: ")
    assert problem.endswith("use engine.zero_stage=3, to spread long rows engine.sequence_parallel")


def test_other_keys_reach_deepspeed_as_they_are() -> None:
    zero = {"zero_hpz_partition_size": 2, "zero_quantized_weights": True, "zero_quantized_gradients": True}
    extra = {"zero_optimization": {**zero, "offload_optimizer": {"device": "cpu"}}, "communication_data_type": "fp32"}
    config = deepspeed_config(zero_stage=3, max_grad_norm=1.0, extra=extra)
    assert config["zero_optimization"] == {**extra["zero_optimization"], "stage": 3}
    assert config["communication_data_type"] == "fp32"
    read = DeepSpeedZeroConfig(**config["zero_optimization"])
    assert {key: getattr(read, key) for key in zero} == zero
    assert read.offload_optimizer is not None
    assert read.offload_optimizer.device == "cpu"


def test_a_zero_section_without_keys_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^engine\.deepspeed\.zero_optimization=3: expected keys and values$"):
        deepspeed_config(zero_stage=2, max_grad_norm=1.0, extra={"zero_optimization": 3})


@pytest.mark.parametrize(
    ("stage", "max_grad_norm", "clipping"),
    [(0, 1.0, 0.0), (0, None, 0.0), (1, 0.5, 0.5), (2, None, 0.0), (3, 2.0, 2.0)],
)
def test_clipping_is_deepspeeds_but_at_stage_0(stage: int, max_grad_norm: float | None, clipping: float) -> None:
    config = deepspeed_config(zero_stage=stage, max_grad_norm=max_grad_norm, extra={})
    assert config["gradient_clipping"] == clipping
    assert config["zero_optimization"] == {"stage": stage}
    assert config["train_micro_batch_size_per_gpu"] == config["gradient_accumulation_steps"] == 1


def test_other_keys_are_passed_through_and_left_alone() -> None:
    extra = {"zero_optimization": {"reduce_bucket_size": 1000}, "steps_per_print": 7, "wall_clock_breakdown": True}
    config = deepspeed_config(zero_stage=3, max_grad_norm=None, extra=extra)
    assert config["zero_optimization"] == {"reduce_bucket_size": 1000, "stage": 3}
    assert config["steps_per_print"] == 7
    assert config["wall_clock_breakdown"] is True
    assert extra == {
        "zero_optimization": {"reduce_bucket_size": 1000},
        "steps_per_print": 7,
        "wall_clock_breakdown": True,
    }


@pytest.mark.parametrize(
    ("section", "device", "stage", "needed"),
    [("offload_optimizer", "cpu", 0, 1), ("offload_param", "cpu", 2, 3), ("offload_optimizer", "nvme", 2, 3)],
)
def test_offload_that_a_stage_has_not_is_refused(section: str, device: str, stage: int, needed: int) -> None:
    """DeepSpeed would pass over it, or take the host's memory for NVMe."""
    extra = {"zero_optimization": {section: {"device": device}}}
    with pytest.raises(DpoError, match=rf"{section}\.device={device} has no effect at ZeRO {stage}: set .*={needed}"):
        check_offload(extra, stage)


def test_offload_that_a_stage_has_is_not() -> None:
    check_offload({"zero_optimization": {"offload_optimizer": {"device": "cpu"}, "offload_param": None}}, 1)
    check_offload({"zero_optimization": {"offload_param": {"device": "cpu"}}}, 3)
    check_offload({"zero_optimization": {"offload_param": {"device": "none"}}}, 0)


def test_offload_to_nvme_says_what_a_machine_lacks() -> None:
    """Where it lacks anything, which DeepSpeed itself says in a traceback after minutes."""
    extra = {"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": "/somewhere"}}}
    if AsyncIOBuilder().is_compatible(verbose=False):
        check_offload(extra, 3)
        return
    with pytest.raises(DpoError, match=r"device=nvme: .*libaio.* install them .*, or use device=cpu") as error:
        check_offload(extra, 3)
    assert "\n" not in str(error.value)
