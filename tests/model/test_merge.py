"""Merged weights against the formulas in float64 numpy, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tokenizers
from helpers.runs import llama, make_model
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, PretrainedConfig, PreTrainedModel, Qwen2Config

import dpo_cli.model.merge
from dpo_cli.commands.merge import check_output
from dpo_cli.commands.merging import Source, Wanted, _card, find_source, merge_into
from dpo_cli.errors import DpoError, NumericsError
from dpo_cli.model.files import ModelFiles
from dpo_cli.model.load import load_model
from dpo_cli.model.merge import Gap, allowed_gap
from dpo_cli.model.quantize import keep_one_path, quantization_options

IDS = torch.arange(4, 24)[None]
R, ALPHA = 3, 12
QUANTISED = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes, which is not installed"
)


def small(config: type[PretrainedConfig], **changes: Any) -> PretrainedConfig:
    return config(vocab_size=len(tokenizers.quickstart()), bos_token_id=None, eos_token_id=1, **changes)


CONFIGS = {
    "llama": llama,
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    # Biases beside matrices that the adapter changes.
    "qwen2": lambda: small(
        Qwen2Config,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=None,
    ),
    # Transposed matrices.
    "gpt2": lambda: small(GPT2Config, n_positions=64, n_embd=32, n_layer=2, n_head=4),
}
KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}

FAST = {("llama", "lora"), ("llama-tied", "dora"), ("qwen2", "rslora"), ("gpt2", "dora")}
PAIRS = [
    pytest.param(family, kind, marks=() if (family, kind) in FAST else pytest.mark.slow)
    for family in CONFIGS
    for kind in KINDS
]


def make_adapter(
    folder: Path, family: str, kind: str = "lora", targets: Any = "all-linear", size: float = 0.05
) -> Path:
    """A base model in ``folder/base``, and beside it an adapter as if some updates had been made, by peft alone."""
    make_model(folder / "base", CONFIGS[family](), tokenizers.quickstart())
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    conv = family == "gpt2"
    config = LoraConfig(
        task_type="CAUSAL_LM", r=R, lora_alpha=ALPHA, target_modules=targets, fan_in_fan_out=conv, **KINDS[kind]
    )
    model = get_peft_model(base, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return folder / "adapter"


def arrays(folder: Path) -> dict[str, NDArray[np.float64]]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            found |= {name: tensors.get_tensor(name).astype(np.float64) for name in tensors.keys()}  # noqa: SIM118
    return found


def expected(base: dict[str, NDArray[np.float64]], adapter: Path, kind: str, *, transposed: bool) -> dict[str, Any]:
    """LoRA (Hu et al. 2021, eq. 3), rsLoRA (Kalajdzievski 2023, eq. 4), DoRA (Liu et al. 2024, eq. 5), in float64."""
    factors = arrays(adapter)
    merged = dict(base)
    for name, down in factors.items():
        module, found, _ = name.removeprefix("base_model.model.").partition(".lora_A")
        if not found:
            continue
        up = factors[name.replace("lora_A", "lora_B")]
        place = next(key for key in base if key.endswith(f"{module.removeprefix('transformer.')}.weight"))
        matrix = base[place].T if transposed else base[place]
        matrix = matrix + ALPHA / (np.sqrt(R) if kind == "rslora" else R) * up @ down
        if kind == "dora":
            magnitude = factors[name.replace("lora_A.weight", "lora_magnitude_vector")]
            matrix = magnitude.reshape(-1, 1) * matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        merged[place] = matrix.T if transposed else matrix
    assert sum(not np.array_equal(merged[name], base[name]) for name in base) == sum("lora_A" in n for n in factors)
    return merged


def logps(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits.double().log_softmax(-1)


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_merged_weights_are_those_of_the_formula(tmp_path: Path, family: str, kind: str) -> None:
    adapter = make_adapter(tmp_path, family, kind)
    merge_into(tmp_path / "merged", find_source(str(adapter)), Wanted("float32", "trained"))
    wanted = expected(arrays(tmp_path / "base"), adapter, kind, transposed=family == "gpt2")
    found = arrays(tmp_path / "merged")
    assert found.keys() == wanted.keys()
    for name, matrix in wanted.items():
        np.testing.assert_allclose(found[name], matrix, rtol=1e-5, atol=1e-6, err_msg=name)
    # And so are the log-probs: of the same model with the formula's weights, computed in float64.
    exact = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    named = {name.removeprefix("transformer."): parameter for name, parameter in exact.named_parameters()}
    with torch.no_grad():
        for name, matrix in wanted.items():
            named[name.removeprefix("transformer.")].copy_(torch.from_numpy(matrix))
    merged = logps(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert float((merged - logps(exact)).abs().max()) < 1e-4
    before = logps(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    assert float((merged - before).abs().mean()) > 1e-2


def test_what_is_written_is_a_plain_folder(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path, "llama")
    merge_into(tmp_path / "merged", find_source(str(adapter)), Wanted("float32", "trained"))
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert "adapter_config.json" not in names
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["attention_dropout"] == CONFIGS["llama"]().attention_dropout
    assert config["dtype"] == "float32"
    assert "peft" not in json.dumps(config)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter", "merged"}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    "targets", [["embed_tokens", "q_proj"], pytest.param(["lm_head", "q_proj"], marks=pytest.mark.slow)]
)
def test_a_matrix_that_embeddings_and_output_layer_share_becomes_two(tmp_path: Path, targets: list[str]) -> None:
    adapter = make_adapter(tmp_path, "llama-tied", targets=targets)
    merge_into(tmp_path / "merged", find_source(str(adapter)), Wanted("float32", "trained"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.config.tie_word_embeddings is False
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), adapter)
    assert float((logps(merged) - logps(beside)).abs().max()) < 1e-4


def test_other_formats_are_the_float32_weights_rounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = make_adapter(tmp_path, "llama", size=0.001)
    source = find_source(str(adapter))
    merge_into(tmp_path / "full", source, Wanted("float32", "trained"))
    assert "warning" not in capsys.readouterr().err
    merge_into(tmp_path / "half", source, Wanted("bfloat16", "trained"))
    said = capsys.readouterr()
    assert "rounding to bfloat16 changes them by" in said.out
    assert "times what the adapter changes" in said.err
    full, half = (load_file(tmp_path / name / "model.safetensors") for name in ("full", "half"))
    assert all(torch.equal(half[name], tensor.bfloat16()) for name, tensor in full.items())
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


@QUANTISED
@pytest.mark.parametrize(
    ("held", "limit"),
    [("nf4_double", 1e-4), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("nf4", 1e-4), ("int8", 0.5)))],
)
def test_a_quantised_base_stays_what_was_trained_on(tmp_path: Path, held: str, limit: float) -> None:
    """int8 rounds activations as well, which plain weights can't: there the log-probs are near, and that is said."""
    adapter = make_adapter(tmp_path, "llama", size=0.2)
    vocabulary = len(tokenizers.quickstart())

    def held_in(kind: str) -> Tensor:
        options = quantization_options(kind, "fp32", torch.device("cpu"))
        base = load_model(
            str(tmp_path / "base"), None, vocabulary=vocabulary, attention="plain", quantization=options
        ).model
        keep_one_path(base)
        return logps(PeftModel.from_pretrained(base, adapter))

    source = find_source(str(adapter), held=held)
    merge_into(tmp_path / "merged", source, Wanted("float32", "trained"))
    merge_into(tmp_path / "original", source, Wanted("float32", "original"))
    trained = held_in(held)
    merged, original = (logps(AutoModelForCausalLM.from_pretrained(tmp_path / n)) for n in ("merged", "original"))
    gap = float((merged - trained).abs().max())
    assert gap < limit
    assert float((original - trained).abs().max()) > 3 * gap
    wanted = expected(arrays(tmp_path / "base"), adapter, "lora", transposed=False)
    found = arrays(tmp_path / "original")
    for name, matrix in wanted.items():
        np.testing.assert_allclose(found[name], matrix, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_merge_that_goes_wrong_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One module of fourteen merged at another scale than training's."""
    adapter = make_adapter(tmp_path, "llama")
    right = dpo_cli.model.merge._with_adapter

    def wrong(*arguments: Any) -> Any:
        wrapped = right(*arguments)
        layer = wrapped.base_model.model.model.layers[1].mlp.down_proj
        merge = layer.merge

        def scaled(*given: Any, **options: Any) -> None:
            layer.scaling["default"] *= 1.1
            merge(*given, **options)

        layer.merge = scaled
        return wrapped

    monkeypatch.setattr(dpo_cli.model.merge, "_with_adapter", wrong)
    with pytest.raises(NumericsError, match="from the adapter's, more than rounding"):
        merge_into(tmp_path / "merged", find_source(str(adapter)), Wanted("float32", "trained"))
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_how_much_is_rounding() -> None:
    one = torch.zeros(2, 3, dtype=torch.float64)
    other = one.clone()
    other[0, 1] = 0.6
    assert Gap.between(one, other) == Gap(pytest.approx(0.1), pytest.approx(0.6))
    assert allowed_gap(0.0) < 1e-4
    assert allowed_gap(0.01) == pytest.approx(1.5e-4)
    assert allowed_gap(100.0) == 1e-3
    other[1, 1] = float("nan")
    with pytest.raises(NumericsError, match="not finite"):
        Gap.between(one, other)


def test_what_can_not_be_merged(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path, "llama")
    with pytest.raises(DpoError, match="holds all weights: there is nothing to merge"):
        find_source(str(tmp_path / "base"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(DpoError, match="has no final/"):
        find_source(str(run))
    with pytest.raises(DpoError, match="is there already"):
        check_output(adapter)
    with pytest.raises(DpoError, match="there is no such folder"):
        merge_into(tmp_path / "m", find_source(str(adapter), base=str(tmp_path / "no")), Wanted("float32", "trained"))
    weights = adapter / "adapter_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(DpoError, match="pickles"):
        merge_into(tmp_path / "m", find_source(str(adapter)), Wanted("float32", "trained"))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("/dev/null", "is there already"),
        (".", "name a new folder in it"),
        ("link", "is there already"),
        ("x" * 250, "File name too long"),
    ],
)
def test_where_nothing_can_be_merged_to(
    output: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if output == "link":
        Path(output).symlink_to("nowhere")
    with pytest.raises(DpoError, match=says):
        check_output(Path(output))


@pytest.mark.parametrize("about", [{}, {"base": 5}, {"base": "x", "adapter": [], "license": 5}])
def test_a_strange_record_is_said(tmp_path: Path, about: dict[str, Any]) -> None:
    source = Source(ModelFiles("x", adapter="a"), {"loss": 5}, {"about": about})
    with pytest.raises(DpoError, match="the run of a does not say what a model card needs"):
        _card(source, Wanted("float32", "trained"))


def test_how_the_base_was_held_is_what_the_run_says(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path, "llama")
    assert find_source(str(adapter)).files.quantization is None
    (adapter / "config.yaml").write_text("model: {adapter: {name: qlora, double_quant: true}}\n")
    assert find_source(str(adapter)).files.quantization == "nf4_double"
    assert find_source(str(adapter), held="int8").files.quantization == "int8"
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "config.yaml").write_text("model: {adapter: {name: existing, quantization: nf4}}\n")
    adapter.rename(run / "final")
    for place in (run, run / "final"):
        assert find_source(str(place)).files.quantization == "nf4"
