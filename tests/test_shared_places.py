"""Files on machines with other users, names that files give, and jobs that start in the same second."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_cli.commands.caches import cache_folder
from dpo_cli.data.types import Group, Pair
from dpo_cli.errors import DpoError
from dpo_cli.file_hash import file_hash
from dpo_cli.model.weight_files import is_plain_name
from dpo_cli.reference.store import ReferenceStore
from dpo_cli.run_folder import RunRecord, new_run_dir
from dpo_cli.training import checkpoint

PARTS = st.sampled_from(
    ["..", ".", "/", "\\", "\x00", "~", "a", "model.safetensors", "é", "\n", "\ud800", " ", "x" * 200]
)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(st.one_of(st.text(max_size=300), st.lists(PARTS, max_size=6).map("".join)))
@example("../x")
@example("/etc/passwd")
@example("a/../../x")
@example("..")
@example("")
@example("x" * 256)
@example("a\x00b")
def test_a_plain_name_stays_where_it_is(name: str) -> None:
    folder = Path("/somewhere/of/ours")
    if is_plain_name(name):
        place = Path(os.path.normpath(folder / name))
        assert place.parent == folder
        assert place.name == name
        assert len(os.fsencode(name)) <= 255
        assert name.isprintable()


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", "é.safetensors", "..a", "~"])
def test_plain_names(name: str) -> None:
    assert is_plain_name(name)


def test_files_are_as_closed_as_the_umask_says(tmp_path: Path) -> None:
    group = Group(np.array([1], np.int32), (np.array([3], np.int32), np.array([4], np.int32)), (Pair(0, 1),), "row 1")
    before = os.umask(0o077)
    try:
        tensors = [("a", torch.zeros(3))]
        checkpoint.write(tmp_path / "c", checkpoint.TrainingState(1, "", {}), tensors, tensors, first=True)
        ReferenceStore(tmp_path / "r", {}).add([group], [[np.zeros(1, np.float32), np.zeros(1, np.float32)]])
        RunRecord(tmp_path).update(a=1)
        (tmp_path / "weights").write_text("x")
        file_hash(tmp_path / "weights", tmp_path / "hashes")
    finally:
        os.umask(before)
    places = list(tmp_path.rglob("*"))
    assert len(places) > 10
    assert not [path for path in places if path.stat().st_mode & 0o077]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_strangers_open_cache_is_refused(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    assert cache_folder(str(cache)) == cache
    os.chown(cache, 4242, 4242)
    assert cache_folder(str(cache)) == cache  # a colleague's, who is trusted with it
    cache.chmod(0o1777)
    with pytest.raises(DpoError, match="is another user's, and everybody may write to it"):
        cache_folder(str(cache))
    os.chown(cache, os.getuid(), -1)
    assert cache_folder(str(cache)) == cache


def _start(folder: str) -> str:
    os.chdir(folder)
    return str(new_run_dir("dpo"))


def test_jobs_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, get_context("fork")) as pool:
        names = list(pool.map(_start, [str(tmp_path)] * 12))
    assert len(set(names)) == 12
    assert all((tmp_path / name).is_dir() for name in names)
