"""Which optimizer is made of what, and what is said where one can't run."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dpo_cli.engine.optimizers import check_optimizer, make_optimizer, moment_names, set_updates
from dpo_cli.errors import DpoError, ExitCode

CPU = torch.device("cpu")
ADAMW = {"betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]


def test_weight_decay_is_for_matrices() -> None:
    given = parameters()
    optimizer = make_optimizer("adamw", given, **ADAMW)
    assert [(group["weight_decay"], group["params"]) for group in optimizer.param_groups] == [
        (0.1, [given[0], given[2]]),
        (0.0, [given[1]]),
    ]
    assert all(
        (group["betas"], group["eps"], group["lr"]) == ((0.8, 0.9), 1e-6, 0.0) for group in optimizer.param_groups
    )


def test_rmsprop_has_its_own_numbers_and_neither_decay_nor_momentum() -> None:
    (group,) = make_optimizer("rmsprop", parameters(), alpha=0.9, eps=1e-7).param_groups
    assert (group["alpha"], group["eps"], group["lr"]) == (0.9, 1e-7, 0.0)
    assert (group["weight_decay"], group["momentum"], group["centered"]) == (0, 0, False)


@pytest.mark.parametrize(
    ("name", "hyperparameters", "moments"),
    [("adamw", ADAMW, ["exp_avg", "exp_avg_sq"]), ("rmsprop", {"alpha": 0.9, "eps": 1e-7}, ["square_avg"])],
)
def test_moments_are_what_is_remembered_but_for_the_count(name: str, hyperparameters, moments: list[str]) -> None:
    given = parameters()
    optimizer = make_optimizer(name, given, **hyperparameters)
    for parameter in given:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert sorted(moment_names(optimizer.state[given[0]])) == moments
    set_updates(optimizer.state[given[0]], 7)
    assert float(optimizer.state[given[0]]["step"]) == 7


def test_a_count_may_be_a_plain_number() -> None:
    state: dict[str, Any] = {"step": 1, "state1": torch.zeros(2), "qmap1": torch.zeros(256), "absmax1": torch.zeros(1)}
    set_updates(state, 7)
    assert state["step"] == 7
    assert moment_names(state) == ["state1", "absmax1"]


# -- bitsandbytes, whether it is installed or not


def refusal(name: str, zero_stage: int = 0) -> str:
    with pytest.raises(DpoError) as error:
        check_optimizer(name, zero_stage, CPU)
    assert error.value.exit_code == ExitCode.USAGE
    assert "\n" not in str(error.value)
    return str(error.value)


def install(monkeypatch: pytest.MonkeyPatch, **classes: Any) -> None:
    """A bitsandbytes with these optimizers."""
    package, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    vars(optim).update(classes)
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
@pytest.mark.parametrize("zero_stage", [0, 3])
def test_torchs_own_need_nothing(name: str, zero_stage: int, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    check_optimizer(name, zero_stage, CPU)


def test_without_bitsandbytes_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.optim", raising=False)
    assert refusal("adamw_8bit") == (
        "optim=adamw_8bit needs bitsandbytes, which is not installed: pip install 'dpo-cli[bnb]', or choose optim=adamw"
    )


def test_a_bitsandbytes_that_cannot_run_is_found_out(monkeypatch) -> None:
    def fail() -> None:
        raise RuntimeError("no kernel for cpu\nand much more")

    install(monkeypatch, AdamW8bit=lambda groups, **_: SimpleNamespace(step=fail))
    assert refusal("adamw_8bit") == (
        "optim=adamw_8bit: bitsandbytes does not run on this cpu (no kernel for cpu); install a version that does, or "
        "choose optim=adamw"
    )


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_8_bits_and_zero_are_refused(name: str, zero_stage: int) -> None:
    problem = refusal(name, zero_stage)
    assert problem.startswith(f"optim={name} shares one scale among 256 numbers, and ZeRO {zero_stage} cuts through")
    assert "set engine.zero_stage=0" in problem


@pytest.mark.parametrize(("name", "instead"), [("paged_adamw_8bit", "adamw_8bit"), ("paged_adamw_32bit", "adamw")])
def test_there_is_nothing_to_page_without_a_gpu(name: str, instead: str) -> None:
    assert refusal(name) == (
        f"optim={name} pages between GPU and CPU memory, and there is no GPU: choose optim={instead}"
    )


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_bitsandbytes_runs_8_bits_on_a_cpu() -> None:
    check_optimizer("adamw_8bit", 0, CPU)
    large, small = nn.Parameter(torch.ones(64, 64)), nn.Parameter(torch.ones(64))
    optimizer = make_optimizer("adamw_8bit", [large, small], **ADAMW)
    large.grad, small.grad = torch.ones_like(large), torch.ones_like(small)
    optimizer.step()
    assert sorted(moment_names(optimizer.state[large])) == ["absmax1", "absmax2", "state1", "state2"]
    assert sorted(moment_names(optimizer.state[small])) == ["state1", "state2"]
    assert optimizer.state[large]["state1"].dtype == torch.uint8
    assert optimizer.state[small]["state1"].dtype == torch.float32
