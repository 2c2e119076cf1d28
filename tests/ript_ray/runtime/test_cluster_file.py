"""Clusters as TOML files: what is read, what is refused and how."""

import re
from pathlib import Path

import pytest

from ript_ray.errors import ConfigError
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.cluster_file import read_cluster

REFUSED = {
    "num-actrs = 1": r"unknown num-actrs \(did you mean num-actors\?\)",
    "cpus_per_actor = 1": r"unknown cpus_per_actor \(did you mean cpus-per-actor\?\)",
    "colour = 1": r"unknown colour \(there are num-actors, cpus-per-actor, .*keep-groups\)",
    "[cluster]\nnum-actors = 1": "unknown cluster ",
    "num-actors = 'two'": r"cluster\.num-actors: .*integer, not 'two'",
    "num-actors = 1.5": r"cluster\.num-actors: .*integer, not 1\.5",
    "in-process = 1": r"cluster\.in-process: .*boolean, not 1",
    "num-actors = 0": r"cluster\.num-actors must be at least 1, not 0",
    "in-process = true\nnum-actors = 2": r"cluster\.num-actors has no effect with cluster\.in-process",
    "num-actors = [": "cannot be read as TOML",
}


def test_a_file_names_fields_as_options_do_and_the_others_have_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text('cpus-per-actor = 2  # a whole number will do\nstraggler-factor = inf\naddress = "10.0.0.1:6379"\n')
    assert read_cluster(path) == Cluster(cpus_per_actor=2, straggler_factor=float("inf"), address="10.0.0.1:6379")
    path.write_text("# nothing\n")
    assert read_cluster(path) == Cluster()


@pytest.mark.parametrize("content", REFUSED)
def test_what_a_file_has_wrong_is_named_with_the_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"cluster file {re.escape(str(path))}.*{REFUSED[content]}"):
        read_cluster(path)


def test_a_missing_file_and_one_that_is_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_cluster(tmp_path / "cluster.toml")
    (tmp_path / "cluster.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read as TOML"):
        read_cluster(tmp_path / "cluster.toml")
