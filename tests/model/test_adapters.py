"""Adapters in a model, against peft's own wrapper and against the model without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.families import FAMILIES, MIXTURES, awkward_groups, build
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from dpo_cli.data.collate import collate
from dpo_cli.errors import DpoError
from dpo_cli.model import adapters
from dpo_cli.model.adapters import (
    POLICY,
    REFERENCE,
    Adapter,
    AsReference,
    NewAdapter,
    add_adapter,
    hold_in_bfloat16,
    load_adapter,
    saved_names,
)
from dpo_cli.model.attention import GROUP_ATTENTION
from dpo_cli.model.files import ModelFiles, find_files
from dpo_cli.model.flops import FlopsModel
from dpo_cli.model.policy import Policy

BATCH = collate(awkward_groups())
IDS = torch.arange(2, 30)[None]
KINDS = ["lora", "dora", "rslora"]


def wanted(kind: str = "lora", **changes: object) -> NewAdapter:
    return NewAdapter(**{"kind": kind, "r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear", **changes})


def adapted(family: str = "llama", kind: str = "lora", **changes: object) -> tuple[PreTrainedModel, Adapter]:
    """A model with a new adapter."""
    model = build((FAMILIES | MIXTURES)[family](), GROUP_ATTENTION, torch.float32)
    return model, add_adapter(model, wanted(kind, **changes), ModelFiles("base"), seed=3)


def trained(adapter: Adapter) -> None:
    """As if some updates had been made."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.weights_of(POLICY).values():
            parameter.add_(0.05 * torch.randn_like(parameter))


def logps(model: PreTrainedModel, precision: str = "fp32") -> Tensor:
    with torch.no_grad():
        found: Tensor = Policy(model, precision=precision, groups=True)(BATCH)
    return found


def without(family: str, precision: str = "fp32") -> Tensor:
    """Log-probs of the model before anything was done to it."""
    return logps(build((FAMILIES | MIXTURES)[family](), GROUP_ATTENTION, torch.float32), precision)


def saved(folder: Path, adapter: Adapter) -> Path:
    """As ``final/`` is written."""
    folder.mkdir()
    weights = saved_names((name, p.detach()) for name, p in adapter.weights_of(POLICY).items())
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(adapter.settings()))
    return folder


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing_and_alone_is_trained(family: str, kind: str) -> None:
    if (family, kind) == ("gpt2", "dora"):
        pytest.skip("peft's DoRA computes transposed matrices in another order: to 1e-6, tested below")
    model, adapter = adapted(family, kind)
    assert float((logps(model) - without(family)).abs().max()) <= (1e-5 if kind == "dora" else 0.0)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == set(adapter.weights_of(POLICY))
    assert names
    assert all("lora_" in name for name in names)
    assert not any("lm_head" in name for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_adapter_that_peft_would_make(kind: str) -> None:
    """The same weights from the same seed, and the same log-probs once they have moved."""
    model, adapter = adapted(kind=kind)
    plain = build(FAMILIES["llama"](), "eager", torch.float32)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", use_dora=kind == "dora", use_rslora=kind == "rslora"
    )
    torch.manual_seed(3)
    theirs = get_peft_model(plain, config)
    trained(adapter)
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in theirs.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, theirs(IDS).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_saved_is_what_peft_loads_and_what_we_load(kind: str, family: str, tmp_path: Path) -> None:
    model, adapter = adapted(family, kind)
    trained(adapter)
    assert float((logps(model) - without(family)).abs().max()) > 1e-2
    folder = saved(tmp_path / "adapter", adapter)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(IDS).logits
        theirs = PeftModel.from_pretrained(build(FAMILIES[family](), "eager", torch.float32), folder)
        ours = build(FAMILIES[family](), "eager", torch.float32)
        again = load_adapter(ours, ModelFiles("base", adapter=str(folder)), seed=0)
        assert torch.equal(ours(IDS).logits, expected)
        assert torch.equal(theirs(IDS).logits, expected)
        merged = theirs.merge_and_unload()(IDS).logits
    assert float((merged - expected).abs().max()) < 1e-4
    assert not again.new
    assert again.settings() == {**adapter.settings(), "base_model_name_or_path": "base"}


def test_with_the_adapter_off_it_is_the_base() -> None:
    model, adapter = adapted()
    trained(adapter)
    policy = Policy(model, precision="fp32", groups=True)
    on = policy(BATCH)
    assert torch.equal(AsReference(policy, adapter)(BATCH), without("llama"))
    assert torch.equal(policy(BATCH), on)
    assert on.requires_grad


def test_the_references_own_adapter_stays_as_it_was() -> None:
    model, adapter = adapted(dropout=0.1)
    trained(adapter)
    before = logps(model)
    adapter.keep_reference()
    policy = Policy(model, precision="fp32", groups=True)
    assert torch.equal(logps(model), before)
    trained(adapter)
    after = logps(model)
    assert not torch.equal(after, before)
    assert torch.equal(AsReference(policy, adapter)(BATCH), before)
    assert torch.equal(logps(model), after)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(adapter.weights_of(POLICY))
    assert adapter.weights_of(REFERENCE).keys() == adapter.weights_of(POLICY).keys()


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen2", "gpt2", "gemma2"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_matrices_in_bfloat16_are_what_autocast_makes_of_them(family: str, kind: str) -> None:
    expected = without(family, "bf16")
    model = build(FAMILIES[family](), GROUP_ATTENTION, torch.float32)
    hold_in_bfloat16(model)
    held = sum(p.numel() for p in model.parameters() if p.dtype == torch.bfloat16)
    assert torch.equal(logps(model, "bf16"), expected)
    adapter = add_adapter(model, wanted(kind), ModelFiles("base"), seed=0)
    assert held > 0.5 * sum(p.numel() for name, p in model.named_parameters() if "proj" in name or "c_" in name)
    assert {p.dtype for p in adapter.weights_of(POLICY).values()} == {torch.float32}
    found = logps(model, "bf16")
    assert float((found - expected).abs().max()) <= (0.1 if kind == "dora" else 0.0)
    embedding = model.get_input_embeddings().weight
    assert embedding.dtype == torch.float32
    assert torch.equal(AsReference(Policy(model, precision="bf16", groups=True), adapter)(BATCH), expected)


def test_modules_are_named_by_the_end_of_their_names() -> None:
    _, adapter = adapted(target_modules=["self_attn.q_proj", "down_proj"])
    places = {name.partition(".lora_")[0].rpartition(".")[2] for name in adapter.weights_of(POLICY)}
    assert places == {"q_proj", "down_proj"}
    with pytest.raises(DpoError, match="query is not a matrix of this model; there are down_proj, gate_proj, k_proj"):
        adapted(target_modules=["q_proj", "query"])
    with pytest.raises(DpoError, match="lm_head is not"):
        adapted(target_modules=["lm_head"])


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias='all'"),
        ({"peft_type": 5000 * "x"}, "of another type"),
        ({"bias": 5000 * "x"}, "has biases"),
        ({"init_lora_weights": {"a": 5000 * "x"}}, "changes its base model"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": 5}, "does not fit"),
        ({"target_modules": ["q_proj"]}, "none of its own"),
        ({"target_modules": ["nothing"]}, "does not fit"),
        ({"r": "4"}, "r='4'; expected a rank"),
        ({"rank_pattern": {"q_proj": 0}}, "q_proj=0; expected a rank"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan; expected a number"),
        ({"alpha_pattern": {"q_proj": "16"}}, "q_proj='16'; expected a number"),
        ({"lora_dropout": -1}, "lora_dropout=-1; expected a share"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0; expected a share"),
    ],
)
def test_adapters_that_can_not_be_gone_on_with(settings: dict, word: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter", adapted()[1])
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    model = build(FAMILIES["llama"](), "eager", torch.float32)
    with pytest.raises(DpoError, match=word) as raised:
        load_adapter(model, ModelFiles("base", adapter=str(folder)), seed=0)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "(([a-z_0-9]+)*\\.?)*!"},
        {"exclude_modules": "(([a-z_0-9]+)*\\.?)*!"},
        {"alpha_pattern": {"(.*)*(.*)*(.*)*(.*)*!": 4}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_patterns_that_take_for_ever(settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "PATIENCE", 0.2)
    folder = saved(tmp_path / "adapter", adapted()[1])
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    model = build(FAMILIES["llama"](), "eager", torch.float32)
    with pytest.raises(DpoError, match=r"has patterns that take more than 0\.2 s .* look at target_modules"):
        load_adapter(model, ModelFiles("base", adapter=str(folder)), seed=0)


def test_weights_that_are_whole_numbers(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter", adapted()[1])
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor.to(torch.int32) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(DpoError, match="as I32, in which no weights are trained"):
        load_adapter(
            build(FAMILIES["llama"](), "eager", torch.float32), ModelFiles("base", adapter=str(folder)), seed=0
        )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base_model_name_or_path", 7),
        ("base_model_name_or_path", "a\n\x1b[31m/b"),
        ("base_model_name_or_path", "a" * 5000),
        ("revision", {"a": 1}),
    ],
)
def test_a_base_that_is_no_name(key: str, value: object, tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "base", key: value}))
    with pytest.raises(DpoError, match=rf"says {key}=.*; expected the name") as error:
        find_files(str(tmp_path), None)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_an_adapter_in_pickles_is_not_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter", adapted()[1])
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(DpoError, match="pickles"):
        load_adapter(
            build(FAMILIES["llama"](), "eager", torch.float32), ModelFiles("base", adapter=str(folder)), seed=0
        )


def test_which_files_a_path_stands_for(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    folder = saved(tmp_path / "adapter", adapted()[1])
    assert find_files(str(base), "main") == ModelFiles(str(base), "main")
    assert find_files(str(folder), None) == ModelFiles("base", None, str(folder), None)
    on_it = find_files(str(base), None, adapter=str(folder), quantization="nf4")
    assert on_it == ModelFiles(str(base), None, str(folder), None, "nf4")
    with pytest.raises(DpoError, match="expected its base model"):
        find_files(str(folder), None, adapter=str(folder))
    with pytest.raises(DpoError, match="is not an adapter"):
        find_files(str(base), None, adapter=str(base))
    (tmp_path / "nameless").mkdir()
    (tmp_path / "nameless" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(DpoError, match="which model it is for"):
        find_files(str(tmp_path / "nameless"), None)


def test_a_frozen_matrix_costs_two_passes_and_a_trained_one_three() -> None:
    model, adapter = adapted()
    forward, update = FlopsModel.of(model), FlopsModel.of(model, update=True)
    own = sum(p.numel() for p in adapter.weights_of(POLICY).values())
    base = FlopsModel.of(build(FAMILIES["llama"](), "eager", torch.float32))
    assert forward.per_token == pytest.approx(base.per_token + 2 * own)
    assert update.per_token == pytest.approx(2 * base.per_token + 3 * 2 * own)
    assert update.per_prediction == 2 * base.per_prediction
    assert update.per_pair == 3 * base.per_pair
    full = FlopsModel.of(build(FAMILIES["llama"](), "eager", torch.float32), update=True)
    assert full.forward(awkward_groups()[0]) == pytest.approx(3 * base.forward(awkward_groups()[0]))
