"""The cluster files that are shipped."""

from pathlib import Path

import pytest

from ript_ray.runtime.cluster import Node
from ript_ray.runtime.cluster_file import read_cluster
from tests.commands import ROOT

FILES = sorted((ROOT / "clusters").rglob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "clusters")))
def test_every_shipped_cluster_file_is_read(path: Path) -> None:
    read_cluster(path)


def test_the_slurm_files_fill_the_nodes_of_the_documented_jobs() -> None:
    cpu, gpu = (read_cluster(ROOT / "clusters" / "slurm" / name) for name in ("cluster.toml", "gpu.toml"))
    assert cpu.count_actors([Node(32)] * 4) == 128
    assert gpu.count_actors([Node(64, gpus=4)]) == 12, "four on each GPU but the learner's"
