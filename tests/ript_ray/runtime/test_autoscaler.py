"""What is asked of Ray's autoscaler, read where Ray keeps it."""

import json
from typing import Any

import pytest
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.autoscaler.sdk import request_resources
from ray.experimental.internal_kv import _internal_kv_get

from ript_ray.errors import WorkerError
from ript_ray.runtime.autoscaler import RoomRequest
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.placement import RESERVED
from ript_ray.runtime.ray_runtime import RayRuntime
from tests.conftest import line_parts
from tests.fakes import TinyChunkPolicy


def asked() -> Any:
    """Return what the autoscaler was asked for last."""
    return json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or "null")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_asks_a_joined_cluster_for_what_it_lacks_until_it_ends_and_others_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lacking = Cluster(address="joined", num_actors=1, learner_gpus=1.0, node_timeout_s=0.1)
    for cluster, reserved in ((Cluster(address="joined"), ""), (Cluster(num_actors=9), ""), (lacking, "a trial's")):
        monkeypatch.setenv(RESERVED, reserved)
        request = RoomRequest(cluster, 1)
        request.send()
        request.end()
        assert asked() is None, "nothing is lacking, nobody could come, or a trial has its placement group"

    monkeypatch.setenv(RESERVED, "")
    request = RoomRequest(lacking, 1)
    request.send()
    assert asked() == [{"GPU": 1.0}, {"CPU": 1.0}]
    request_resources(bundles=[{"CPU": 7.0}])
    RoomRequest(lacking, 1).end()
    assert asked() == [{"CPU": 7.0}], "who asked for nothing withdraws nothing"
    with pytest.raises(WorkerError, match="no live node has room for a learner of 0 cores and 1 GPUs"):
        RayRuntime(line_parts(lambda: TinyChunkPolicy("gaussian")), lacking)
    assert asked() == [], "it asked for its learner, and withdrew that when it failed"
