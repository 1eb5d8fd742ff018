"""What the data section of a configuration makes of paths, splits and shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dpo_cli.commands.rows import held_out_part, training_parts
from dpo_cli.config import DataConfig
from dpo_cli.data.load import Part
from dpo_cli.data.sources import Place
from dpo_cli.errors import DataError

DEFAULTS = Path(__file__).parents[2] / "configs" / "data" / "default.yaml"


def config(**changes: Any) -> DataConfig:
    return DataConfig.model_validate(OmegaConf.to_container(OmegaConf.load(DEFAULTS)) | changes)


def place(data: DataConfig) -> Place:
    part = held_out_part(data, "pairs")
    assert isinstance(part, Part)
    return part.place


def test_one_source() -> None:
    (part,) = training_parts(config(path="o/n", split="train[:5%]", subset="s", revision="r", limit=7), "pairs")
    assert part.place == Place("o/n", "train[:5%]", "s", "r")
    assert (part.key, part.recipe.limit, part.recipe.encoding.max_length) == ("data.path", 7, 2048)


def test_a_limit_comes_after_a_fraction_is_held_out() -> None:
    (part,) = training_parts(config(path="a.jsonl", limit=7, eval=0.1), "pairs")
    assert part.recipe.limit is None


def test_sources_of_a_mixture_say_what_differs() -> None:
    mix = {
        "a": {"path": "o/n", "split": "test", "rows": 5, "columns": {"prompt": "q"}},
        "b": {"path": "b.jsonl", "weight": 0.5, "shape": "nectar"},
    }
    first, second = training_parts(config(mix=mix, revision="r", columns={"chosen": "c"}), "answers")
    assert (first.key, first.place, first.rows) == ("data.mix.a.path", Place("o/n", "test", None, "r"), 5)
    assert (first.recipe.reading.columns, second.recipe.reading.columns) == ({"prompt": "q"}, {"chosen": "c"})
    assert (second.place, second.weight, second.recipe.reading.shape) == (Place("b.jsonl"), 0.5, "nectar")
    assert second.recipe.kind == "answers"


@pytest.mark.parametrize("name", ["subset", "revision"])
def test_what_is_for_the_hub_has_no_effect_on_files(name: str) -> None:
    with pytest.raises(DataError, match=rf"data.path=a.jsonl is a file or folder: {name} has no effect"):
        training_parts(config(path="a.jsonl", **{name: "x"}), "pairs")
    with pytest.raises(DataError, match=r"data.mix.a.path=a.jsonl is a file or folder: streaming has no effect"):
        training_parts(config(mix={"a": {"path": "a.jsonl", "streaming": True}}), "pairs")


def test_held_out_places(tmp_path: Path) -> None:
    hub = {"path": "o/n", "subset": "s", "revision": "r"}
    assert held_out_part(config(path="a.jsonl", eval=0.1), "pairs") == 0.1
    assert place(config(**hub, eval="test")) == Place("o/n", "test", "s", "r")
    assert place(config(**hub, eval="p/m:test")) == Place("p/m", "test")
    assert place(config(**hub, eval="test[:100]")) == Place("o/n", "test[:100]", "s", "r")
    assert place(config(**hub, eval="p/m:train[-200:]")) == Place("p/m", "train[-200:]")
    assert place(config(**hub, eval="held[12].jsonl")) == Place("held[12].jsonl")
    assert place(config(**hub, eval="p/m")) == Place("p/m", "train")
    assert place(config(**hub, eval="held.jsonl")) == Place("held.jsonl")
    assert place(config(path=str(tmp_path), eval="test")) == Place(str(tmp_path), "test")
    assert place(config(path="a.jsonl", eval="s3://b/held.jsonl")) == Place("s3://b/held.jsonl")
    with pytest.raises(DataError, match=r"data.eval=test: .* data.path=a.jsonl is a file .*OWNER/NAME:SPLIT"):
        held_out_part(config(path="a.jsonl", eval="test"), "pairs")
    with pytest.raises(DataError, match=r"there are several in data\.mix"):
        held_out_part(config(mix={"a": {"path": "a.jsonl"}}, eval="test"), "pairs")
