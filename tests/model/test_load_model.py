"""What is read of a model's folder is data."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
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
