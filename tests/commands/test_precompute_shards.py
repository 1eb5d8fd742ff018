"""The reference pass in shards: the numbers of one pass, and each token computed once."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.configs import composed
from helpers.runs import make_place

from dpo_cli.commands import precompute_ref
from dpo_cli.compose import _register_resolvers
from dpo_cli.config import PrecomputeConfig
from dpo_cli.errors import ConfigError, DpoError
from dpo_cli.reference.store import read_chunk


def config(folder: Path, cache: str, shard: str | None) -> PrecomputeConfig:
    _register_resolvers()
    words = [
        f"model.path={folder / 'model'}",
        f"data.path={folder / 'train.jsonl'}",
        f"data.eval={folder / 'held-out.jsonl'}",
        f"reference.cache_dir={folder / cache}",
        f"data.cache_dir={folder / 'tables'}",
        "train.precision=fp32",
        f"shard={'null' if shard is None else shard}",
    ]
    return composed("precompute-ref", words)


def kept(cache: Path) -> dict[bytes, np.ndarray]:
    """All log-probs, of which no answer may be there twice."""
    found: dict[bytes, np.ndarray] = {}
    for chunk in (cache / "reference").rglob("chunk-*"):
        entries = read_chunk(chunk)
        assert not entries.keys() & found.keys()
        found |= entries
    return found


def test_shards_come_to_one_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_place(tmp_path)
    precompute_ref.run(config(tmp_path, "whole", None))
    (total,) = re.findall(r"([\d,]+) tokens computed, 0 were there", capsys.readouterr().out)
    computed = []
    for shard, lacking in (("3/3", "1/3, 2/3"), ("1/3", "2/3"), ("2/3", None)):
        precompute_ref.run(config(tmp_path, "parts", shard))
        said = capsys.readouterr().out
        assert f"of shard {shard} (9 of 27 rows)" in said
        assert (f"not there yet: {lacking} of 3 shards" if lacking else "all 3 shards are there") in said
        computed += re.findall(r"([\d,]+) tokens computed, 0 were there", said)
    assert len(computed) == 3
    assert sum(int(count.replace(",", "")) for count in computed) == int(total.replace(",", ""))
    assert max(map(int, computed)) < 1.25 * min(map(int, computed))
    expected, found = kept(tmp_path / "whole"), kept(tmp_path / "parts")
    assert found.keys() == expected.keys()
    for key, logps in expected.items():  # other rows in a micro-batch round otherwise
        np.testing.assert_allclose(found[key], logps, rtol=0, atol=2e-5)
    for shard in ("1/3", None):  # again, or as one: nothing is left
        precompute_ref.run(config(tmp_path, "parts", shard))
        assert ": 0 tokens computed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shard", "error"), [("4/3", DpoError), ("1/100001", DpoError), ("0/3", ConfigError), ("1", ConfigError)]
)
def test_a_shard_that_is_none_is_refused(shard: str, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error, match="shard="):
        precompute_ref.run(config(tmp_path, "parts", shard))
