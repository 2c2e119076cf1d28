"""Damaged, missing and malicious files are tested on real checkpoints, in runs/test_checkpoint.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from ript_ray.errors import CheckpointError, StorageError
from ript_ray.storage.hashed_dir import atomic_directory, load_arrays, save_arrays, sha256_of, verify_manifest
from ript_ray.types import Arrays
from tests.disk import full_disk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    with atomic_directory(folder) as temporary:
        (temporary / "a").write_text("content of a")
        (temporary / "b").write_text("content of b")
        assert not folder.exists(), "a reader could see half a directory"
    return folder


def test_a_directory_appears_with_the_hashes_of_its_files(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "manifest.json"]
    assert json.loads((folder / "manifest.json").read_text()) == {
        "schema": 1,
        "sha256": {name: sha256_of(folder / name) for name in ("a", "b")},
    }
    verify_manifest(folder, ("a", "b"))


def test_only_the_named_files_are_verified(folder: Path) -> None:
    (folder / "a").write_text("changed")
    verify_manifest(folder, ("b",))
    with pytest.raises(CheckpointError, match=r"saved/a is damaged: its SHA-256 is not the one in manifest\.json"):
        verify_manifest(folder, ("b", "a"))


def test_a_file_that_is_not_in_the_manifest_does_not_pass(folder: Path) -> None:
    (folder / "c").write_text("foreign")
    with pytest.raises(CheckpointError, match="saved/c is damaged"):
        verify_manifest(folder, ("c",))


def test_an_existing_directory_is_never_overwritten(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="saved exists already; nothing is overwritten"), atomic_directory(folder):
        pytest.fail("the directory must be refused before anything is written")
    verify_manifest(folder, ("a", "b"))


def test_a_full_disk_leaves_no_temporary_directory(tmp_path: Path) -> None:
    with (
        full_disk(100),
        pytest.raises(StorageError, match=r"saved cannot be written: .*File too large"),
        atomic_directory(tmp_path / "saved") as temporary,
    ):
        (temporary / "a").write_text("x" * 1000)
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_directory_of_a_killed_process_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".saved.unfinished").mkdir()
    (tmp_path / ".saved.unfinished" / "old").write_text("half")
    with atomic_directory(tmp_path / "saved") as temporary:
        (temporary / "a").write_text("new")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["a", "manifest.json"]


def test_arrays_round_trip_with_shapes_and_dtypes(tmp_path: Path) -> None:
    arrays: Arrays = {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "step": np.array(3, np.int64),
        "empty": np.zeros((0, 4), np.float16),
    }
    save_arrays(arrays, tmp_path / "arrays.safetensors")
    loaded = load_arrays(tmp_path / "arrays.safetensors")
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (loaded[name].shape, loaded[name].dtype) == (array.shape, array.dtype)
        assert np.array_equal(loaded[name], array)
