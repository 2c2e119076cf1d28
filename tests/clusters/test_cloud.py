"""Files of Ray's cluster launcher: Ray's own check accepts them, and Ray starts with the shipped settings."""

import copy
import subprocess
from typing import Any

import jsonschema
import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from ript_ray.runtime.cluster import Cluster, Node
from ript_ray.runtime.cluster_file import read_cluster
from tests.clusters.layouts import CLUSTERS, manifest
from tests.commands import ROOT

PLACES = ("aws", "hosts")


def prepared(place: str) -> dict[str, Any]:
    """Return a launcher's file as Ray completes it, or raise what Ray has against it."""
    config = prepare_config(manifest(f"cloud/{place}/cluster.yaml"))
    validate_config(config)
    return config


@pytest.mark.parametrize("place", PLACES)
def test_ray_accepts_the_file_and_adds_no_commands_of_its_own(place: str) -> None:
    config, ours = prepared(place), manifest(f"cloud/{place}/cluster.yaml")
    for name in ("initialization_commands", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        assert config[name] == ours[name]


@pytest.mark.parametrize("place", PLACES)
def test_ray_refuses_a_misspelled_key(place: str) -> None:
    config = copy.deepcopy(prepared(place))
    config["docker"]["run_option"] = []
    with pytest.raises(jsonschema.ValidationError, match="run_option"):
        validate_config(config)


@pytest.mark.parametrize("place", PLACES)
def test_head_and_workers_start_with_the_shipped_settings_and_a_private_dashboard(place: str) -> None:
    config = prepared(place)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        sourced, started = (commands[-1].index(each) for each in ("clusters/environment.sh && ", "ray start "))
        assert sourced < started
        assert "--dashboard-host" not in commands[-1]


@pytest.mark.parametrize("place", PLACES)
def test_a_machine_that_allows_fewer_open_files_starts_with_as_many_as_it_allows(place: str) -> None:
    config = prepared(place)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        before, _, _ = commands[-1].replace("/opt/ript-ray", str(ROOT)).partition("ray start ")
        shell = ["bash", "-c", f"ulimit -Sn 500; ulimit -Hn 1000; {before} ulimit -Sn"]
        result = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=True)
        assert int(result.stdout) == 1000


@pytest.mark.parametrize("place", PLACES)
def test_the_token_is_sent_as_a_file_and_stands_in_none(place: str) -> None:
    assert list(manifest(f"cloud/{place}/cluster.yaml")["file_mounts"].values()) == ["~/.ray/auth_token"]
    assert "RAY_AUTH_TOKEN" not in (CLUSTERS / "cloud" / place / "cluster.yaml").read_text()


def test_the_machines_that_aws_may_rent_hold_what_the_cluster_file_asks_for() -> None:
    types, cluster = prepared("aws")["available_node_types"], read_cluster(CLUSTERS / "cloud" / "aws" / "cluster.toml")
    nodes = [
        Node(each["resources"]["CPU"], each["resources"].get("GPU", 0))
        for each in types.values()
        for _ in range(each["max_workers"])
    ]
    assert cluster.count_actors(nodes) == cluster.num_actors
    assert sum(each["max_workers"] for each in types.values()) == prepared("aws")["max_workers"]


def test_the_autoscaler_is_asked_for_learners_and_for_every_actor_that_was_asked_for_by_number() -> None:
    sharing = Cluster(num_actors=2, cpus_per_actor=0.5, gpus_per_actor=0.25)
    assert sharing.requested_room(1) == [{"CPU": 0.5, "GPU": 0.25}] * 2, "this learner takes what is there"
    assert Cluster(num_actors=1, learner_gpus=1.0).requested_room(2) == [{"GPU": 1.0}, {"GPU": 1.0}, {"CPU": 1.0}]
    assert Cluster(num_actors=1, learner_gpus=1.0).requested_room(0) == [{"CPU": 1.0}], "as for an evaluation"
    assert Cluster(learner_cpus=4.0).requested_room(1) == [{"CPU": 4.0}]
    assert Cluster().requested_room(1) == []


@pytest.mark.parametrize("place", ["cloud/aws", "kubernetes"])
def test_the_gpu_of_the_learner_is_asked_for_where_no_machine_has_one_at_first(place: str) -> None:
    cluster = read_cluster(CLUSTERS / place / "cluster.toml")
    assert cluster.requested_room(1) == [{"CPU": 4.0, "GPU": 1.0}] + [{"CPU": 1.0}] * (cluster.num_actors or 0)


def test_only_machines_that_roll_out_may_be_reclaimed() -> None:
    types = prepared("aws")["available_node_types"]
    spot = {name for name, each in types.items() if "InstanceMarketOptions" in each["node_config"]}
    assert spot == {"rollout"}


def test_all_hosts_join() -> None:
    (hosts,) = prepared("hosts")["available_node_types"].values()
    assert hosts["min_workers"] == hosts["max_workers"] == len(prepared("hosts")["provider"]["worker_ips"])
    assert read_cluster(CLUSTERS / "cloud" / "hosts" / "cluster.toml").num_actors is None


def test_the_head_of_ones_own_machines_has_the_autoscaler_that_starts_the_others() -> None:
    command = prepared("hosts")["head_start_ray_commands"][-1]
    assert 0 < command.index("export RAY_enable_autoscaler_v2=0 && ") < command.index("ray start ")
