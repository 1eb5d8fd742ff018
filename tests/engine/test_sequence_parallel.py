"""Processes that share rows (Ulysses) against one that has them to itself, and against a plain loop in float64."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import sequence_case as case
from helpers.families import RECURRENT, build
from helpers.plain_model import gradients, plain_logps
from helpers.ranks import run_ranks
from safetensors.torch import load_file
from transformers import LlamaConfig, RwkvConfig

from dpo_cli.data.collate import collate
from dpo_cli.errors import DpoError
from dpo_cli.model.activations import activations
from dpo_cli.model.adapters import Adapter, AsReference
from dpo_cli.model.load import load_model
from dpo_cli.model.sequence_parallel import most_rows, why_not

WORKER = Path(__file__).with_name("sequence_worker.py")


@pytest.mark.parametrize("job", ["exchanges", "sinks"])
def test_an_exchange_and_what_is_made_of_it(tmp_path: Path, job: str) -> None:
    run_ranks(WORKER, [job, 2, str(tmp_path)], 2, tmp_path)


def test_the_first_of_those_that_share_rows_keeps_the_references_log_probs(tmp_path: Path) -> None:
    run_ranks(WORKER, ["reference", 2, str(tmp_path)], 2, tmp_path)


@pytest.fixture(scope="module")
def of_families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("families")
    run_ranks(WORKER, ["families", 2, str(out)], 2, out)
    return out


@pytest.mark.parametrize(("name", "share", "dtype", "kernel"), case.FAMILIES_TRIED)
def test_log_probs_and_gradients_are_the_models_own(
    of_families: Path, name: str, share: bool, dtype: str, kernel: bool
) -> None:
    """As the model's own attention has them, one sequence at a time; gradients summed over the processes."""
    found, other = (
        load_file(of_families / f"{case.key(name, share, dtype, kernel)}-{rank}.safetensors") for rank in (0, 1)
    )
    assert all(torch.equal(found[key], tensor) for key, tensor in other.items())  # both have the whole of it
    model = build(case.CONFIGS[name](), "eager", getattr(torch, dtype))
    # Norms that compute in float32 whatever the model's numbers bound the agreement; GPT-2 has none.
    tolerance = 2e-4 if dtype == "float32" else 1e-12 if name == "gpt2" else 1e-6
    for rows, groups in case.ROWS.items():
        logps = plain_logps(model, groups())
        expected = gradients(model, logps)
        assert float((found[f"{rows}/logps"] - logps.detach()).abs().max()) <= tolerance
        for key, gradient in expected.items():
            scale = float(gradient.abs().max()) or 1.0
            assert float((found[f"{rows}/{key}"] - gradient).abs().max()) <= 20 * tolerance * scale, (rows, key)


def test_how_sure_the_model_is_is_put_together_as_well(of_families: Path) -> None:
    found = load_file(of_families / f"{case.key('llama', True, 'float64', False)}-1.safetensors")
    policy = case.policy_of("llama", True, "float64", spread=False)
    for rows, groups in case.ROWS.items():
        batch = collate(groups())
        expected = policy(batch, True)[1][torch.from_numpy(batch.answer_tokens)]
        assert torch.allclose(found[f"{rows}/concentration"], expected, rtol=0, atol=1e-6)


def test_each_process_keeps_its_share_of_a_long_row(tmp_path: Path) -> None:
    run_ranks(WORKER, ["memory", 2, str(tmp_path)], 2, tmp_path)
    counted = activations(case.CONFIGS["llama"](), collate([case.long_group()]), precision="fp32", kernel=False)
    estimated = counted.spread(2).layers + counted.spread(2).head
    for rank in range(2):
        whole, spread = json.loads((tmp_path / f"memory-{rank}.json").read_text())
        assert 0.4 * whole < spread < 0.56 * whole, (rank, spread / whole)
        assert spread == pytest.approx(estimated, rel=0.03)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.faults)])
def test_logits_are_made_in_even_parts(tmp_path: Path, size: int) -> None:
    """Also where all answers lie in the last slice."""
    run_ranks(WORKER, ["logits", size, str(tmp_path)], size, tmp_path)
    made = [json.loads((tmp_path / f"logits-{rank}.json").read_text()) for rank in range(size)]
    for rows, groups in {**case.ROWS, "long": lambda: [case.long_group()]}.items():
        count = len(collate(groups()).rows)
        parts = [found[rows] for found in made]
        assert sum(parts) == count
        assert max(parts) == most_rows(count, size)
        assert max(parts) - min(parts) <= 1
    assert [found["long, of the slice"] for found in made] == [0] * (size - 1) + [35]


REFUSED = {
    "heads": (LlamaConfig(hidden_size=72, num_attention_heads=9), 2, "does not divide the 9 attention heads of llama"),
    "recurrent": (RwkvConfig(), 2, "rwkv has layers that hand a state from token to token"),
    "hybrid": (RECURRENT(), 2, "falcon_h1 has layers that groups can't reach: hybrid"),
    "dynamic": (
        LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        2,
        "llama turns positions by how long the row is (rope_type dynamic)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_whose_rows_cant_be_shared_is_refused_before_its_weights_are_looked_for(
    tmp_path: Path, name: str
) -> None:
    config, processes, problem = REFUSED[name]
    config.save_pretrained(tmp_path)  # and no weights
    line = f"engine.sequence_parallel={processes}: .*{re.escape(problem)}; use engine.sequence_parallel=1$"
    with pytest.raises(DpoError, match=line):
        load_model(str(tmp_path), None, vocabulary=10, attention="auto", sequence_parallel=processes)


def test_other_models_are_not_refused() -> None:
    assert not any(why_not(config(), 2) for config in case.CONFIGS.values())


def test_an_adapter_switched_off_shares_rows_like_the_policy() -> None:
    run = case.Run("llama", 0, adapter=True)
    for spread in (True, False):
        policy = case.trained(run, spread=spread)
        adapter = Adapter(policy.model, None, policy.noise, new=True)
        assert AsReference(policy, adapter).spread is spread


@cache
def plain(family: str) -> case.Plain:
    return case.Plain(family)


def made(out: Path, runs: list[case.Run], processes: int, size: int) -> list[tuple[list, dict]]:
    """Curve and final weights of each run, by so many processes in groups of ``size``, which must agree."""
    out.mkdir()
    run_ranks(WORKER, ["runs", size, str(out), runs], processes, out)
    found = []
    for number in range(len(runs)):
        curves = [json.loads((out / f"run-{number}-{rank}.json").read_text()) for rank in range(processes)]
        assert all(curve == curves[0] for curve in curves)
        found.append((curves[0], load_file(out / f"run-{number}.safetensors")))
    return found


def assert_same(found: tuple[list, dict], curve: list, weights: dict, tolerance: float = 1e-6) -> None:
    """Loss, gradient norm and log-probs of each update to 2e-6, and the weights relative to each one's largest."""
    for line, known in zip(found[0], curve, strict=True):
        assert line == pytest.approx(known, rel=2e-6)
    assert found[1].keys() == weights.keys()
    for name, tensor in weights.items():
        assert float((found[1][name] - tensor).abs().max() / tensor.abs().max()) <= tolerance, name


FIRST = [case.Run("one-key-head", 0), case.Run("llama", 3, share=False)]
MORE = [
    case.Run("llama", 2),
    case.Run("llama", 0, share=False),
    case.Run("llama", 3, checkpointing="full"),
    case.Run("llama", 2, checkpointing="selective"),
]
OTHERS = [
    case.Run("llama", 0, adapter=True),
    case.Run("llama", 3, adapter=True, share=False, checkpointing="full"),
    case.Run("llama", 2, loss="aot"),  # which has statistics over the global batch
]
FOUR = [pytest.param((4, size), marks=pytest.mark.faults) for size in (2, 4)]
"""Processes, and how many of them share a row."""


@pytest.mark.parametrize("layout", [(2, 2), *FOUR])
def test_a_run_is_that_of_one_plain_process(tmp_path: Path, layout: tuple[int, int]) -> None:
    runs = [run for run in FIRST if run.family == "llama" or layout[1] == 2]  # the other has two heads
    for run, found in zip(runs, made(tmp_path / "out", runs, *layout), strict=True):
        assert_same(found, plain(run.family).curve, plain(run.family).weights)


@pytest.mark.parametrize("layout", [pytest.param((2, 2), marks=pytest.mark.slow), *FOUR])
def test_more_runs_are_those_of_one_plain_process(tmp_path: Path, layout: tuple[int, int]) -> None:
    for run, found in zip(MORE, made(tmp_path / "out", MORE, *layout), strict=True):
        assert_same(found, plain(run.family).curve, plain(run.family).weights)


@pytest.mark.parametrize("layout", [pytest.param((2, 2), marks=pytest.mark.slow), *FOUR])
def test_adapters_and_statistics_are_those_of_one_process(tmp_path: Path, layout: tuple[int, int]) -> None:
    """An adapter's dropout as well, which the plain loop has not."""
    expected = made(tmp_path / "alone", OTHERS, 1, 1)
    for found, known in zip(made(tmp_path / "shared", OTHERS, *layout), expected, strict=True):
        assert_same(found, *known, tolerance=1e-5)  # of weights that begin at zero: of what updates made them
    assert expected[0][0] != expected[2][0]
