"""What is read of a model's folder is data."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import runs, tokenizers

from dpo_cli.errors import DpoError
from dpo_cli.model.load import load_model, load_tokenizer


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return runs.make_model(tmp_path / "model", runs.llama(), tokenizers.quickstart())


def load(folder: Path) -> Any:
    return load_model(str(folder), None, vocabulary=10, attention="auto")


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Touch(tmp_path / "ran")))
    with pytest.raises(DpoError, match="its weights could not be loaded"):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("known", [True, False])
def test_code_beside_a_model_is_not_run(folder: Path, tmp_path: Path, known: bool) -> None:
    """A family that transformers knows is built by its own code, another one refused, and nobody is asked."""
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    names = {
        "AutoConfig": "evil.Config",
        "AutoModelForCausalLM": "evil.Model",
        "AutoTokenizer": ["evil.Tokenizer", None],
    }
    for file in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / file).read_text())
        content["auto_map"] = names
        if not known and file == "config.json":
            content["model_type"] = "evil"
        if not known and file == "tokenizer_config.json":
            content["tokenizer_class"] = "EvilTokenizer"
        (folder / file).write_text(json.dumps(content))
    if known:
        assert load(folder).model.config.model_type == "llama"
        load_tokenizer(str(folder), None)
    else:
        with pytest.raises(DpoError, match="is not a model"):
            load(folder)
    assert not (tmp_path / "ran").exists()


def changed_config(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


@pytest.mark.parametrize("attention", ["auto", "plain"])
@pytest.mark.parametrize(
    "named",
    [
        {"attn_implementation": "evil/kernel", "experts_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel@main:flash", "_experts_implementation": "evil/kernel"},
        {"_attn_implementation_internal": "evil/kernel", "_experts_implementation_internal": "evil/kernel"},
    ],
)
def test_kernels_that_a_configuration_names_are_not_fetched(
    named: dict[str, str], attention: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*arguments: Any, **options: Any) -> None:
        pytest.fail(f"{arguments} was to be fetched")

    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", fetch)
    changed_config(folder, **named)
    model = load_model(str(folder), None, vocabulary=10, attention=attention).model
    assert "evil" not in f"{model.config._attn_implementation} {model.config._experts_implementation}"


def test_what_a_forward_pass_gives_back_is_ours_and_can_be_saved(folder: Path, tmp_path: Path) -> None:
    """transformers loads a model with output_attentions, and refuses to save it."""
    auto_map = {"AutoModelForCausalLM": "evil.Model"}
    changed_config(folder, return_dict=False, output_attentions=True, output_hidden_states=True, auto_map=auto_map)
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**tokens, "auto_map": {"AutoTokenizer": ["evil.T", None]}})
    )
    loaded = load_model(str(folder), None, vocabulary=10, attention="plain")
    output = loaded.model(torch.tensor([[1, 2, 3]]))
    assert output.logits.shape[:2] == (1, 3)
    assert output.hidden_states is None
    loaded.model.save_pretrained(tmp_path / "saved", state_dict={})
    load_tokenizer(str(folder), None).save_pretrained(tmp_path / "saved")
    for file in (tmp_path / "saved").glob("*.json"):
        assert "evil" not in file.read_text()


@pytest.mark.parametrize(("value", "kept"), [(float("nan"), None), (1, 1), (0.25, 0.25)])
def test_dropout_is_off_whatever_its_kind(value: float, kept: float | None, folder: Path) -> None:
    changed_config(folder, attention_dropout=value)
    loaded = load(folder)
    assert loaded.model.config.attention_dropout == 0.0
    before = loaded.dropout["attention_dropout"]
    assert before != before if kept is None else before == kept


@pytest.mark.parametrize("said", [{"quant_method": "awq", "load_in_4bit": True}, {"load_in_8bit": True}])
def test_weights_that_are_only_said_to_be_quantised(said: dict[str, Any], folder: Path) -> None:
    changed_config(folder, quantization_config=said)
    with pytest.raises(DpoError, match="has a quantization_config, and the files hold no quantised weights"):
        load(folder)


def test_a_tokenizers_files_lead_nowhere(folder: Path, tmp_path: Path) -> None:
    """Neither the name of a template nor that of a vocabulary is a way to other files."""
    secret = tmp_path / "secret.txt"
    secret.write_text("canary of another file\n")
    content = json.loads((folder / "tokenizer_config.json").read_text())
    content |= {"vocab_file": str(secret), "merges_file": str(secret), "tokenizer_file": str(secret)}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    names = ["../x", "/tmp/x", "../../x"]
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    for templates in ({"default": "{{ messages }}"}, *({"default": "a", name: "b"} for name in names)):
        content["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
        (folder / "tokenizer_config.json").write_text(json.dumps(content))
        out = tmp_path / "out" / "deep" / "er"
        try:
            load_tokenizer(str(folder), None).save_pretrained(out)
        except (DpoError, ValueError):
            assert len(templates) > 1
    assert not [path for path in tmp_path.rglob("x*") if path.is_file()]
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert all(path.is_relative_to(tmp_path / "out" / "deep" / "er") for path in written)
    assert not [path for path in written if "canary" in path.read_text()]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"num_hidden_layers": -1}, "config.json says num_hidden_layers=-1; expected 1 or more"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "config.json has a quantization_config, and the files hold no quantised weights",
        ),
    ],
)
def test_a_configuration_of_another_model_is_named(changed: dict[str, Any], says: str, folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **changed}))
    with pytest.raises(DpoError, match=says):
        load(folder)
