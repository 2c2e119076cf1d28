"""Requests that are not for training run beside it: with the newest weights, and outside the ledger."""

import logging
import math
import re
import time
from dataclasses import replace

import pytest
import ray

from ript_ray.data.contexts import draw_contexts
from ript_ray.errors import WorkerError
from ript_ray.evaluation.evaluate import evaluation_requests
from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.protocols import Runtime
from ript_ray.rl.train import train
from ript_ray.runtime import ray_calls
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.seeding import Split
from ript_ray.types import GroupSummary
from tests.conftest import line_parts, line_stream
from tests.fakes import LineBenchmark
from tests.ript_ray.runtime.test_runtimes import POLICIES, SAMPLING, Log, checksums, on_ray

CONTEXTS = draw_contexts(LineBenchmark(), ["left", "right"], num_per_task=10, seed=5, purpose=Split.TEST.contexts)
REQUESTS = evaluation_requests(CONTEXTS, batch_size=3, seed=5)


class Evaluating:
    """Callback that evaluates after every update."""

    def __init__(self, runtime: Runtime):
        self._runtime = runtime
        self.steps: list[list[tuple[int, ...]]] = []

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        assert summary.index >= 0, "an event of the evaluation reached training"

    def on_update(self, record: UpdateRecord) -> None:
        summaries = self._runtime.roll_out(REQUESTS)
        assert [summary.index for summary in summaries] == [request.index for request in REQUESTS]
        assert {summary.version for summary in summaries} == {record.weights.version}
        self.steps.append([summary.num_steps for summary in summaries])


def train_and_evaluate(runtime: Runtime, lag: int) -> tuple[Log, Evaluating]:
    log, evaluating = Log(), Evaluating(runtime)
    sampling = replace(SAMPLING, max_policy_lag=lag)
    train(runtime, line_stream(), sampling=sampling, num_updates=4, seed=5, callbacks=[log, evaluating])
    return log, evaluating


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_evaluations_between_updates_are_the_same_on_every_runtime_and_change_no_weight() -> None:
    alone = Log()
    train(
        SerialRuntime(line_parts(POLICIES["laplace"])),
        line_stream(),
        sampling=SAMPLING,
        num_updates=4,
        seed=5,
        callbacks=[alone],
    )
    serial, expected = train_and_evaluate(SerialRuntime(line_parts(POLICIES["laplace"])), 0)
    runtime = on_ray(line_parts(POLICIES["laplace"]), 2, straggler_factor=math.inf)  # copies would be in the ledger
    try:
        log, evaluating = train_and_evaluate(runtime, 0)
    finally:
        runtime.close()
    assert checksums(log) == checksums(serial) == checksums(alone)
    assert evaluating.steps == expected.steps
    last = log.records[-1].ledger
    needed = replace(last, dispatched=last.dispatched - last.speculated, speculated=0)
    assert needed == alone.records[-1].ledger


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_groups_of_training_that_finish_during_an_evaluation_are_trained_all_the_same() -> None:
    for runtime in (SerialRuntime(line_parts(POLICIES["laplace"])), on_ray(line_parts(POLICIES["laplace"]), 2)):
        try:
            log, evaluating = train_and_evaluate(runtime, 2)
        finally:
            runtime.close()
        assert len(evaluating.steps) == 4
        ledger = log.records[-1].ledger
        assert (ledger.trained, ledger.in_flight, ledger.lost) == (16, 0, 0)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_long_wait_for_an_answer_is_told_and_ends_at_its_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_calls, "HEARTBEAT_S", 0.2)
    caplog.set_level(logging.INFO)
    waiting = ray.remote(num_cpus=0)(lambda seconds: time.sleep(seconds))  # noqa: PLW0108 (Ray takes no built-in)
    assert ray_calls.get_result(waiting.remote(0.5), "the learner's weights", 600) is None
    assert re.match(r"waiting for the learner's weights: for \d+ s so far, at most 600 s", caplog.messages[0])
    with pytest.raises(WorkerError, match=re.escape("the learner's state: no answer within 0.5 s")):
        ray_calls.get_result(waiting.remote(600), "the learner's state", 0.5)
