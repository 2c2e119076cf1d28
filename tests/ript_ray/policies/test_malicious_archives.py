"""Upstream checkpoint files that are built to harm: to end the process, or to show two readers two archives."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ript_ray.errors import CheckpointError
from ript_ray.policies.quest.upstream_checkpoint import read_upstream_checkpoint

EVIL = b"\x80\x02}X\x05\x00\x00\x00modelcos\nsystem\nX\x04\x00\x00\x00true\x85Rs."  # {"model": os.system("true")}


def archive(path: Path, pickles: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as file:
        for name, content in pickles.items():
            file.writestr(f"odd/{name}", content)
        file.writestr("odd/version", "3\n")
    return path


def nested_tuples(path: Path) -> None:
    """Hashing the key of the dict takes 300,000 stack frames."""
    archive(path, {"data.pkl": b"\x80\x02})" + b"\x85" * 300_000 + b"Ns."})


def deep_keys(path: Path) -> None:
    """Few enough to be hashed, but too many to be shown."""
    model = pickle.dumps({"model": {}}, 2)[:-1]
    archive(path, {"data.pkl": model + b")" + b"\x85" * 5_000 + b"Ns."})


def damaged_lzma(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}}, path)
    with zipfile.ZipFile(path) as whole:
        content = whole.read(f"{path.stem}/data.pkl")
    archive(path, {"data.pkl": content}, zipfile.ZIP_LZMA)
    damaged = bytearray(path.read_bytes())
    start = damaged.index(b"data.pkl") + 20
    damaged[start : start + 20] = b"\xff" * 20
    path.write_bytes(damaged)


def two_archives(path: Path) -> None:
    """Python finds the second one, torch the first."""
    archive(path, {"data.pkl": EVIL})
    first = path.read_bytes()
    torch.save({"model": {"a": torch.zeros(1)}}, path)
    path.write_bytes(first + path.read_bytes())


def pickle_before_the_archive(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}}, path)
    path.write_bytes(EVIL + path.read_bytes())


def name_in_capitals(path: Path) -> None:
    """Torch looks for data.pkl in any case."""
    archive(path, {"DATA.PKL": EVIL, "other.pkl": pickle.dumps({}, 2)})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (nested_tuples, "more than 20,000 tuples"),
        (deep_keys, "keys that the authors' files do not have: a tuple"),
        (damaged_lzma, "packed by a method that torch does not read"),
        (two_archives, "does not begin with its archive"),
        (pickle_before_the_archive, "does not begin with its archive"),
        (name_in_capitals, "but 2 pickles"),
    ],
)
def test_a_file_that_is_built_to_harm_is_refused_by_name(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    write(tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=rf"evil\.pth .*{message}"):
        read_upstream_checkpoint(tmp_path / "evil.pth")
