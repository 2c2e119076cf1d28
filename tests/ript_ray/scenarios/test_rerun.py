"""With policy lag, a group that is lost before the learner has it is rolled out again, and that one is logged."""

import copy
import functools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from ript_ray.rl.protocols import Components, Rerun
from ript_ray.rl.rollout_worker import RolloutWorker
from ript_ray.rl.train import group_request, train
from ript_ray.runs.rollout_log import RolloutLog, load_weights, read_groups, weights_file
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.ray_runtime import RayRuntime
from ript_ray.types import GroupSummary, Progress, RolloutRequest
from tests.conftest import line_parts, line_stream
from tests.fakes import TinyChunkPolicy
from tests.ript_ray.runtime.test_runtimes import POLICIES, SAMPLING, START_TIMEOUT_S, Log
from tests.ript_ray.scenarios.test_lag import AdversarialRuntime, in_order

PARTS = line_parts(POLICIES["laplace"])


class LosesAGroup(AdversarialRuntime):
    """The first groups of a batch whose actor had older weights than there are now are lost on their way."""

    def __init__(self) -> None:
        super().__init__(PARTS, in_order)
        self._requests_of: dict[int, RolloutRequest] = {}
        self._summaries: dict[int, GroupSummary] = {}
        self.reruns: list[Rerun] = []

    def launch(self, request: RolloutRequest) -> None:
        super().launch(request)
        self._requests_of[request.index] = request
        self._summaries[request.index] = self._made[request.index][0]

    def start_update(self, indices: Sequence[int]) -> Sequence[Rerun]:
        super().start_update(indices)
        now = self._learner.weights().version
        lost = [index for index in indices if self._summaries[index].version < now]
        for index in lost:
            summary, group = self._worker.roll(self._requests_of[index])
            self._learner.receive(group)
            self.reruns.append(Rerun(self._summaries[index], summary))
        return self.reruns[-len(lost) :] if lost else ()


def test_a_group_that_is_rolled_out_again_is_logged_and_counted_as_it_is_trained(tmp_path: Path) -> None:
    runtime, stream, log = LosesAGroup(), line_stream(), Log()
    sampling = replace(SAMPLING, max_policy_lag=1)
    with RolloutLog(tmp_path / "groups.jsonl", tmp_path / "weights", stream, start=Progress()) as rollouts:
        train(runtime, stream, sampling=sampling, num_updates=4, seed=5, callbacks=[rollouts, log])
    assert any(rerun.trained.successes != rerun.lost.successes for rerun in runtime.reruns), "nothing would be shown"
    records = {record.group: record for record in read_groups(tmp_path / "groups.jsonl")}
    for rerun in runtime.reruns:
        record = records[rerun.trained.index]
        assert (record.version, record.num_steps) == (rerun.trained.version, rerun.trained.num_steps)
        assert record.successes == rerun.trained.successes
        policy = POLICIES["laplace"]()
        load_weights(weights_file(tmp_path / "weights", record.version), policy)
        worker = RolloutWorker(functools.partial(copy.copy, policy), PARTS.make_environment, PARTS.max_steps)
        replayed, _ = worker.roll(group_request(stream, record.group, sampling=sampling, seed=5))
        assert (replayed.successes, replayed.num_steps) == (record.successes, record.num_steps)
    stats = [record.stats for record in log.records]
    num_solved = sum(success or 0 for record in records.values() for success in record.successes)
    assert sum(each.num_solved for each in stats) == num_solved
    assert sum(each.env_steps for each in stats) == sum(sum(record.num_steps) for record in records.values())
    assert log.records[-1].ledger.balance == 0


class Owner:
    def own(self) -> list[ray.ObjectRef]:
        return [ray.put(np.zeros(1_000_000))]


def lost_object() -> ray.ObjectRef:
    """A reference to an object that is lost with its owner."""
    owner = ray.remote(num_cpus=0)(Owner).remote()
    (reference,) = ray.get(owner.own.remote())
    ray.kill(owner)
    return reference


class LearnsLate(TinyChunkPolicy):
    """Learns only once a group is lost that the initial weights rolled out."""

    def __init__(self, mark: Path):
        super().__init__("laplace")
        self._mark = mark

    def log_probs(self, record):
        while not self._mark.exists():
            time.sleep(0.01)
        return super().log_probs(record)


class LosesGroupsOnRay(RayRuntime):
    """After the first batch, all groups that the initial weights rolled out are lost on their way; marks the first."""

    def __init__(self, parts: Components, cluster: Cluster, mark: Path):
        super().__init__(parts, cluster)
        self._mark = mark
        self.num_sent = 0
        self.reruns: list[Rerun] = []

    def send_to_learner(self, index: int) -> None:
        self.num_sent += 1
        if self.num_sent > SAMPLING.groups_per_update and self._summaries[index].version == 0:
            self._groups[index] = (lost_object(),)
            self._mark.touch()
        super().send_to_learner(index)

    def start_update(self, indices: Sequence[int]) -> Sequence[Rerun]:
        reruns = super().start_update(indices)
        self.reruns += reruns
        return reruns


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_on_ray_groups_lost_in_transit_are_logged_as_their_reruns(tmp_path: Path) -> None:
    mark, log = tmp_path / "mark", Log()
    cluster = Cluster(num_actors=2, cpus_per_actor=0.5, start_timeout_s=START_TIMEOUT_S)
    runtime = LosesGroupsOnRay(line_parts(lambda: LearnsLate(mark), minibatch_rollouts=4), cluster, mark)
    sampling, stream = replace(SAMPLING, max_policy_lag=1), line_stream()
    try:
        with RolloutLog(tmp_path / "groups.jsonl", None, stream, start=Progress()) as rollouts:
            train(runtime, stream, sampling=sampling, num_updates=2, seed=5, callbacks=[rollouts, log])
    finally:
        runtime.close()
    records = {record.group: record for record in read_groups(tmp_path / "groups.jsonl")}
    assert runtime.reruns
    for rerun in runtime.reruns:
        assert (rerun.lost.version, rerun.trained.version) == (0, 1)
        record = records[rerun.trained.index]
        assert (record.version, record.successes) == (1, rerun.trained.successes)
    assert (log.records[-1].ledger.trained, log.records[-1].ledger.balance) == (8, 0)
