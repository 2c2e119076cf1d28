"""`--cluster-file` of launchers and commands: the file is the base, the command line overrides it, `--help` tells."""

import contextlib
from pathlib import Path

import pytest

from experiments import quickstart
from ript_ray.cli.launch import Launch, parse_options
from ript_ray.runtime.cluster import Cluster
from tests.commands import quickstart_here, ript_ray_here

pytestmark = pytest.mark.cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "many.toml").write_text("num-actors = 999\n")
    (tmp_path / "wrong.toml").write_text("num-actrs = 2\n")
    return tmp_path


@pytest.mark.parametrize("spelling", [["--cluster-file", "many.toml"], ["--cluster_file=many.toml"]])
def test_a_launcher_runs_on_the_cluster_of_a_file_unless_an_option_says_otherwise(
    spelling: list[str], folder: Path
) -> None:
    def cluster(*arguments: str) -> Cluster:
        with contextlib.chdir(folder):
            return parse_options(Launch, quickstart.EXPERIMENT, arguments, prog="", description="").cluster

    assert cluster(*spelling) == Cluster(num_actors=999)
    assert cluster("--cluster.num-actors", "998", *spelling, "--cluster.learner-cpus", "1") == Cluster(998, 1, 1)


def test_a_plan_is_made_for_the_cluster_of_a_file(folder: Path) -> None:
    command = ("plan", "experiments.quickstart", "--cluster-file", "many.toml", "--cpus", "4")
    assert "999 rollout actors" in ript_ray_here(*command, cwd=folder).stderr
    planned = ript_ray_here(*command, "--cluster.num-actors", "3", cwd=folder)
    assert "3 x rollout actor" in planned.stdout, planned.stderr


@pytest.mark.parametrize("command", ["resume", "evaluate", "compare", "evaluate-libero", "demos"])
def test_every_command_that_runs_on_a_cluster_takes_a_file_and_shows_its_values(command: str, folder: Path) -> None:
    result = ript_ray_here(command, "--cluster-file", "many.toml", "somewhere", "--help", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "(default: many.toml)" in result.stdout
    assert "(default: 999)" in result.stdout
    refused = ript_ray_here(command, "somewhere", "--cluster-file", "wrong.toml", cwd=folder)
    assert refused.returncode == 2
    assert "cluster file wrong.toml: unknown num-actrs (did you mean num-actors?)" in refused.stderr


def test_an_option_without_a_file_is_refused(folder: Path) -> None:
    assert "--cluster-file needs a value" in quickstart_here("--cluster-file", "--seed", "1", cwd=folder).stderr
    assert "No such file" in quickstart_here("--cluster-file", "none.toml", cwd=folder).stderr
