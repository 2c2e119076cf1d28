"""KubeRay's manifests: keys that it knows, shipped settings, pods without privileges, room for what a run asks for."""

import copy
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay import autoscaling_config

from experiments.quickstart import EXPERIMENT
from ript_ray.cli.launch import Launch, parse_options
from ript_ray.runtime.cluster import Node
from ript_ray.runtime.cluster_file import read_cluster
from tests.clusters.layouts import CLUSTERS, manifest, settings

SCHEMA = json.loads((CLUSTERS.parent / "tests" / "clusters" / "kuberay.schema.json").read_text())
FOLDER = CLUSTERS / "kubernetes"
IN_IMAGE = "/opt/ript-ray/"


def ray_cluster() -> dict[str, Any]:
    return manifest("kubernetes/base/raycluster.yaml")


def ray_job() -> dict[str, Any]:
    """Return the job with the cluster that job/kustomization.yaml copies into it."""
    job = manifest("kubernetes/job/rayjob.yaml")
    job["spec"]["rayClusterSpec"] = ray_cluster()["spec"]
    return job


def pods() -> dict[str, dict[str, Any]]:
    """Return the pod specifications by the name of their group."""
    spec = ray_cluster()["spec"]
    workers = {group["groupName"]: group["template"]["spec"] for group in spec["workerGroupSpecs"]}
    submitter = ray_job()["spec"]["submitterPodTemplate"]["spec"]
    return {"head": spec["headGroupSpec"]["template"]["spec"], **workers, "submitter": submitter}


def groups_at_most() -> dict[str, dict[str, Any]]:
    """Return the groups of pods as Ray's own autoscaler reads them."""
    cluster = ray_cluster()
    cluster["metadata"]["namespace"] = "default"
    return autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]


@pytest.mark.parametrize("resource", [ray_cluster(), ray_job()], ids=["RayCluster", "RayJob"])
def test_rays_resources_have_only_keys_and_values_that_kuberay_knows(resource: dict[str, Any]) -> None:
    jsonschema.validate(resource, SCHEMA)


@pytest.mark.parametrize("name", ["environment", "storage"])
def test_other_resources_have_only_keys_and_values_that_kubernetes_knows(name: str) -> None:
    jsonschema.validate(manifest(f"kubernetes/base/{name}.yaml"), SCHEMA)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("spec",), "authoptions"),
        (("spec", "workerGroupSpecs", 0), "maxReplica"),
        (("spec", "headGroupSpec", "template", "spec"), "terminationGracePeriodSecond"),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0), "envfrom"),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "securityContext"), "runAsNonroot"),
    ],
)
def test_a_misspelled_key_is_refused(path: tuple[str | int, ...], wrong: str) -> None:
    resource = copy.deepcopy(ray_cluster())
    place: Any = resource
    for step in path:
        place = place[step]
    place[wrong] = place.popitem()[1]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(resource, SCHEMA)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("metadata", "name"), "a" * 48),  # the job's cluster is named after it, and its services after the cluster
        (("spec", "shutdownAfterJobFinishes"), False),
        (("spec", "activeDeadlineSeconds"), 0),
        (("spec", "submitterPodTemplate", "spec", "restartPolicy"), "Always"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers"), []),
    ],
)
def test_a_value_that_the_operator_refuses_is_refused(path: tuple[str, ...], wrong: object) -> None:
    job = copy.deepcopy(ray_job())
    place: Any = job
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, SCHEMA)


def test_pods_are_replaced_and_not_restarted_as_rays_autoscaler_needs_it() -> None:
    """KubeRay forbids restarts where version 2 is named, not where Ray chooses it: then no idle pod would ever go."""
    assert ray_cluster()["spec"]["autoscalerOptions"]["version"] == "v2"


def test_every_ray_container_has_every_shipped_setting() -> None:
    data = manifest("kubernetes/base/environment.yaml")["data"]
    assert {name: data.get(name) for name in settings()} == settings()
    source = [{"configMapRef": {"name": manifest("kubernetes/base/environment.yaml")["metadata"]["name"]}}]
    for name, pod in pods().items():
        assert name == "submitter" or [each["envFrom"] for each in pod["containers"]] == [source]


def test_the_token_is_required_and_comes_from_a_secret_that_is_in_no_file() -> None:
    assert ray_cluster()["spec"]["authOptions"] == {"mode": "token", "secretName": "ript-ray-token"}
    for path in FOLDER.rglob("*.yaml"):
        assert "kind: Secret" not in path.read_text(), path


@pytest.mark.parametrize("name", pods())
def test_containers_run_without_privileges_and_within_limits(name: str) -> None:
    pod = pods()[name]
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["runAsGroup"] == 1000
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert container["resources"]["requests"] == container["resources"]["limits"]
    claims = {volume["name"] for volume in pod.get("volumes", ())}
    assert {mount["name"] for each in pod["containers"] for mount in each.get("volumeMounts", ())} == claims


def test_a_pod_waits_longer_for_its_jobs_than_these_have_for_a_checkpoint() -> None:
    wait_s = int(manifest("kubernetes/base/environment.yaml")["data"]["RAY_JOB_STOP_WAIT_TIME_S"])
    assert pods()["head"]["terminationGracePeriodSeconds"] >= wait_s + 15
    (command,) = (each["lifecycle"]["preStop"]["exec"]["command"] for each in pods()["head"]["containers"])
    assert (CLUSTERS.parent / command[1].removeprefix(IN_IMAGE)).exists()


def test_the_pods_that_the_autoscaler_may_start_hold_what_the_cluster_file_asks_for() -> None:
    cluster, groups = read_cluster(FOLDER / "cluster.toml"), groups_at_most()
    nodes = [
        Node(group["resources"]["CPU"], group["resources"].get("GPU", 0))
        for group in groups.values()
        for _ in range(group["max_workers"])
    ]
    assert groups["headgroup"]["resources"]["CPU"] == 0
    assert cluster.count_actors(nodes) == cluster.num_actors
    assert cluster.learner_gpus == 1
    without_gpus = replace(cluster, learner_gpus=0.0, num_actors=None)
    assert without_gpus.count_actors([node for node in nodes if not node.gpus]) == 28, "as README.md says"
    learner = groups["learner"]
    assert (learner["min_workers"], learner["max_workers"], learner["resources"]["GPU"]) == (0, 1, 1)


def test_the_cluster_has_the_ray_that_is_installed() -> None:
    assert ray_cluster()["spec"]["rayVersion"] == ray.__version__


def test_the_job_starts_an_experiment_with_options_that_it_has() -> None:
    words = shlex.split(ray_job()["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "experiments.quickstart"]
    file = words.index("--cluster-file")
    words[file + 1] = str(CLUSTERS.parent / words[file + 1].removeprefix(IN_IMAGE))
    options = parse_options(Launch, EXPERIMENT, words[3:], prog="quickstart", description="Does it parse?")
    assert options.cluster.num_actors
    mounts = pods()["head"]["containers"][0]["volumeMounts"]
    assert str(options.runs) in {mount["mountPath"] for mount in mounts}


@pytest.mark.cli
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.parametrize(("layout", "kind"), [("cluster", "RayCluster"), ("job", "RayJob"), ("resume", "RayJob")])
def test_kustomize_builds_each_layout_with_the_image_that_is_set_in_one_place(layout: str, kind: str) -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / layout)], capture_output=True, text=True, timeout=300, check=True
    ).stdout
    resources = {resource["kind"]: resource for resource in yaml.safe_load_all(built)}
    assert set(resources) == {"ConfigMap", "PersistentVolumeClaim", kind}
    for resource in resources.values():
        jsonschema.validate(resource, SCHEMA)
    image = manifest("kubernetes/base/kustomization.yaml")["images"][0]
    images = re.findall(r"image: (\S+)", built)
    assert set(images) == {f"{image['newName']}:{image['newTag']}"}
    assert len(images) == len(pods()) - (kind == "RayCluster")
    if layout == "resume":
        assert resources[kind]["spec"]["entrypoint"].startswith("ript-ray resume /runs/quickstart/latest ")
