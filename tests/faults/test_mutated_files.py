"""Files by strangers, mutated: each is read as what it says or refused in a line, and no memory is taken for it."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.numpy
from helpers import runs, tokenizers
from helpers.mutations import mutated_bytes, mutated_json, mutated_safetensors
from helpers.run_folders import config
from helpers.sources import read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpo_cli.commands.list_runs import listed
from dpo_cli.data.tokenize import Encoding, tokenize
from dpo_cli.data.types import Example, Pair
from dpo_cli.errors import DpoError
from dpo_cli.model.adapters import NewAdapter, load_adapter, saved_names
from dpo_cli.model.files import CONFIG_FILE, WEIGHTS_FILE, ModelFiles, adapter_settings
from dpo_cli.model.load import attach, load_model, load_tokenizer
from dpo_cli.model.weight_files import read_header, read_headers
from dpo_cli.training import checkpoint
from dpo_cli.training.export import export_adapter

GROWTH = 2 << 30
"""Bytes that reading a mutated file of some kilobytes may take; torch's threads and arrow's pools come into it."""


def tries(few: int, many: int) -> Any:
    """A test with ``few`` files in the tests of every push, and with ``many`` when faults are tried."""
    counts = [pytest.param(few, marks=pytest.mark.slow), pytest.param(many, marks=pytest.mark.faults)]
    return pytest.mark.parametrize("count", counts)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """What takes more fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GROWTH, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def each(count: int, mutate: Callable[[Random], bytes], file: Path, act: Callable[[], object]) -> int:
    """Act on ``count`` mutations of a file; returns how many were refused, with one line each."""
    refused = 0

    @settings(max_examples=count, deadline=20_000, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def one(pick: Random) -> None:
        nonlocal refused
        file.write_bytes(mutate(pick))
        said = ""
        try:
            act()
        except DpoError as error:
            said = str(error)
        refused += bool(said)
        assert len(said.splitlines()) <= 1
        assert len(said) < 1500

    before = file.read_bytes()
    one()
    file.write_bytes(before)
    return refused


@tries(400, 5000)
def test_safetensors_are_read_as_the_library_reads_them_or_refused(count: int, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    tensors = {"a": np.zeros((2, 3), np.float32), "b": np.ones(5, np.float16), "empty": np.zeros((0, 4), np.int8)}
    file.write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    data = file.read_bytes()

    def act() -> None:
        content = file.read_bytes()
        found = read_header(file)
        with suppress(KeyError):  # of its NumPy part: formats that NumPy lacks
            read_by_library = safetensors.numpy.load(content)  # a SafetensorError fails the test
            assert {name: tensor.shape for name, tensor in read_by_library.items()} == {
                name: tensor.shape for name, tensor in found.items()
            }

    assert each(count, lambda pick: mutated_safetensors(data, pick), file, act) > count // 4


def test_a_header_of_gigabytes_takes_none(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    with file.open("wb") as stream:
        stream.write((3 << 30).to_bytes(8, "little"))
        stream.truncate(4 << 30)  # sparse
    with pytest.raises(DpoError, match="its header has 3,221,225,472 bytes, more than 100,000,000"):
        read_header(file)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    return runs.make_model(folder, runs.llama(num_hidden_layers=1), tokenizers.quickstart())


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


def load(folder: Path) -> Any:
    return load_model(str(folder), None, vocabulary=10, attention="auto", name="the model")


@tries(40, 600)
def test_configurations_of_models(count: int, copied: Path) -> None:
    file = copied / "config.json"
    text = file.read_text()
    assert each(count, lambda pick: mutated_json(text, pick), file, lambda: load(copied)) > count // 4


@tries(25, 400)
def test_weights_of_models(count: int, copied: Path) -> None:
    file = copied / "model.safetensors"
    data = file.read_bytes()
    assert each(count, lambda pick: mutated_safetensors(data, pick), file, lambda: load(copied)) > count // 4


ROW = Example("Hi", ["Hello", "Go away"], (Pair(0, 1),), source="row 1")


@tries(40, 600)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_tokenizers(count: int, name: str, copied: Path) -> None:
    file = copied / name
    text = file.read_text()

    def act() -> None:
        tokenizer = load_tokenizer(str(copied), None, name="the model")
        tokenize([ROW], tokenizer, Encoding(), [0])

    each(count, lambda pick: mutated_json(text, pick), file, act)


@tries(25, 400)
@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_adapters(count: int, name: str, copied: Path, tmp_path: Path) -> None:
    loaded = load(copied)
    folder = tmp_path / "adapter"
    files = ModelFiles(str(copied), adapter=str(folder))
    attach(loaded, ModelFiles(str(copied)), NewAdapter("lora", 4, 8, 0.0, "all-linear"), precision="fp32", seed=0)
    assert loaded.adapter is not None
    weights = [(key, value.detach()) for key, value in loaded.adapter.weights_of("policy").items()]
    assert saved_names(weights)
    export_adapter(folder, loaded.adapter, tokenizers.quickstart(), weights, card="", first=True)
    file = folder / name
    before = file.read_bytes()

    def mutate(pick: Random) -> bytes:
        return mutated_json(before.decode(), pick) if name == CONFIG_FILE else mutated_safetensors(before, pick)

    def act() -> None:
        adapter_settings.cache_clear()
        load_adapter(load(copied).model, files, seed=0)

    assert each(count, mutate, file, act) > count // 8


INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(copied: Path) -> Path:
    """The model in two files with an index."""
    tensors = safetensors.numpy.load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, held in shards.items():
        safetensors.numpy.save_file({name: tensors[name] for name in held}, copied / shard, metadata={"format": "pt"})
    places = {name: shard for shard, held in shards.items() for name in held}
    (copied / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    load(copied)
    return copied


@tries(40, 600)
def test_indices(count: int, sharded: Path) -> None:
    file = sharded / INDEX
    text = file.read_text()
    assert each(count, lambda pick: mutated_json(text, pick), file, lambda: load(sharded)) > count // 4


def wrong_index(sharded: Path, change: Callable[[dict[str, str]], object], says: str) -> None:
    said = json.loads((sharded / INDEX).read_text())
    change(said["weight_map"])
    (sharded / INDEX).write_text(json.dumps(said))
    with pytest.raises(DpoError, match=says):
        read_headers(sharded)
    with pytest.raises(DpoError, match=rf"^the model: its weights could not be loaded \(.*{says}"):
        load(sharded)


def test_an_index_that_leads_elsewhere(sharded: Path) -> None:
    shutil.copy(sharded / "one.safetensors", sharded.parent / "x")
    wrong_index(sharded, lambda places: places.update({next(iter(places)): "../x"}), "which is not a file beside it")


def test_an_index_that_is_wrong(sharded: Path) -> None:
    wrong_index(
        sharded, lambda places: places.update(new="one.safetensors"), "new is in one.safetensors, and it is not"
    )


def test_an_index_with_a_file_that_is_not_there(sharded: Path) -> None:
    wrong_index(sharded, lambda places: places.update(new="three.safetensors"), "three.safetensors, which is not there")


def test_a_tensor_in_two_files(sharded: Path) -> None:
    tensors = safetensors.numpy.load_file(sharded / "one.safetensors")
    other = safetensors.numpy.load_file(sharded / "two.safetensors")
    safetensors.numpy.save_file({**tensors, **dict([next(iter(other.items()))])}, sharded / "one.safetensors")
    wrong_index(sharded, lambda places: None, "which another file holds as well")


def test_a_link_out_of_a_model(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai password canary")
    (copied / "chat_template.jinja").unlink(missing_ok=True)
    (copied / "chat_template.jinja").symlink_to("../netrc")
    with pytest.raises(DpoError, match=r"chat_template.jinja is a link to .*netrc, outside of its folder"):
        load_tokenizer(str(copied), None)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint."""
    torch = pytest.importorskip("torch")
    state = checkpoint.TrainingState(2, "data", {"optim.lr": 0.1}, best={"step": 1, "value": 0.5}, pending=[1.0])
    tensors = [("a", torch.zeros(3))]
    return checkpoint.write(tmp_path / "checkpoints", state, tensors, tensors, first=True)


@tries(200, 3000)
@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_checkpoints(count: int, name: str, saved: Path) -> None:
    file, manifest = saved / name, saved / "manifest.json"
    text, hashes = file.read_text(), json.loads(manifest.read_text())

    def act() -> None:
        if name == "state.json":  # by somebody who knows how to make a manifest
            hashes[name] = hashlib.sha256(file.read_bytes()).hexdigest()
            manifest.write_text(json.dumps(hashes))
        found = checkpoint.read(saved).state
        assert found.step >= 0
        assert sum(found.pending) is not None

    assert each(count, lambda pick: mutated_json(text, pick), file, act) > count // 8


@tries(150, 2000)
@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.jsonl"])
def test_run_folders(count: int, name: str, tmp_path: Path) -> None:
    """``dpo runs`` lists them, whatever they say."""
    (tmp_path / "config.yaml").write_text(json.dumps(config()))
    record = {
        "status": "failed",
        "error": "x",
        "process": {"pid": 1, "space": "x"},
        "planned": 4,
        "starts": [{"at": 1}],
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    lines = [json.dumps({"step": step, "loss": 0.5, "eval/loss": 0.4}) for step in range(1, 4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    file = tmp_path / name
    before = file.read_bytes()

    def mutate(pick: Random) -> bytes:
        return mutated_bytes(before, pick) if name == "metrics.jsonl" else mutated_json(before.decode(), pick)

    each(count, mutate, file, lambda: listed([tmp_path]))


@tries(150, 2000)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow"])
def test_rows(count: int, name: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "chosen": [{"role": "user", "content": "a"}], "rejected": "b"} for n in range(30)]
    file = tmp_path / name
    texts = [{key: str(value) for key, value in row.items()} for row in rows]
    match file.suffix:
        case ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            file.write_text(json.dumps(rows))
        case ".csv":
            file.write_text("prompt,chosen,rejected\n" + "".join(",".join(row.values()) + "\n" for row in texts))
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(texts), file)
        case _:
            table = pyarrow.Table.from_pylist(texts)
            with pyarrow.ipc.new_file(str(file), table.schema) as writer:
                writer.write_table(table)
    before = file.read_bytes()
    each(count, lambda pick: mutated_bytes(before, pick), file, lambda: read(file))
