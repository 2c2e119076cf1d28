"""The runtimes give the same numbers in one process and on Ray, for any number of actors."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import ray

from ript_ray.config.rl import Sampling
from ript_ray.errors import ConfigError, DivergenceError, WorkerError
from ript_ray.evaluation.evaluate import evaluate, evaluation_requests
from ript_ray.policies.base import Policy
from ript_ray.rl.callbacks import Callback, RolloutStats, UpdateRecord
from ript_ray.rl.context_stream import Perturb
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.learner import UpdateReport
from ript_ray.rl.protocols import Components, Runtime
from ript_ray.rl.train import group_request, train
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import open_runtime
from ript_ray.runtime.host import processor_kind
from ript_ray.runtime.ray_runtime import RayRuntime
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.types import GroupSummary, RolloutRequest
from tests.conftest import line_parts, line_stream, tiny_quest
from tests.fakes import LineEnvironment, TinyChunkPolicy
from tests.ript_ray.rl.test_group_request import nudge

SAMPLING = Sampling(group_size=4, batch_rollouts=16, max_uniform_groups=200)
NUM_UPDATES = 3
START_TIMEOUT_S = 600.0
"""Actors that start side by side on two cores need seconds each, and minutes together on a busy machine."""


class Log:
    def __init__(self) -> None:
        self.records: list[UpdateRecord] = []
        self.num_groups = 0

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        self.num_groups += 1

    def on_update(self, record: UpdateRecord) -> None:
        self.records.append(record)


def train_on(
    runtime: Runtime,
    num_updates: int = NUM_UPDATES,
    *,
    perturb: Perturb | None = None,
    sampling: Sampling = SAMPLING,
    callbacks: Sequence[Callback] = (),
) -> Log:
    log, stream = Log(), line_stream(perturb=perturb)
    outcome = train(runtime, stream, sampling=sampling, num_updates=num_updates, seed=5, callbacks=[log, *callbacks])
    assert outcome.exhausted is None
    return log


def next_summary(runtime: Runtime) -> GroupSummary:
    event = runtime.next_event()
    assert isinstance(event, GroupSummary)
    return event


def checksums(log: Log) -> list[str]:
    return [record.weights.checksum for record in log.records]


POLICIES: dict[str, Callable[[], Policy]] = {
    "tokens": tiny_quest,
    "gaussian": functools.partial(TinyChunkPolicy, "gaussian"),
    "laplace": functools.partial(TinyChunkPolicy, "laplace"),
}


@pytest.mark.parametrize("kind", POLICIES)
def test_serial_training_repeats_bit_for_bit_and_changes_the_weights(kind: str) -> None:
    first, second = (checksums(train_on(SerialRuntime(line_parts(POLICIES[kind])))) for _ in range(2))
    assert first == second
    assert len(set(first)) == NUM_UPDATES


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_a_continuous_policy_learns_the_line(kind: str) -> None:
    parts = line_parts(POLICIES[kind], num_iterations=4, learning_rate=3e-3)
    sampling = Sampling(group_size=8, batch_rollouts=64)
    log = Log()
    train(SerialRuntime(parts), line_stream(), sampling=sampling, num_updates=6, seed=5, callbacks=[log])
    rates = [record.stats.success_rate for record in log.records]
    assert rates[-1] > rates[0] + 0.3, rates


def test_groups_are_counted_by_verdict_and_every_batch_is_full() -> None:
    log = train_on(SerialRuntime(line_parts(POLICIES["laplace"])))
    for update, record in enumerate(log.records, start=1):
        assert record.stats.update == update
        assert record.weights.version == update
        assert record.stats.verdicts[Verdict.ACCEPTED] == 4
        assert record.stats.num_rollouts == 4 * record.stats.verdicts.total()
        assert record.stats.record_bytes > 0
    assert log.num_groups == sum(record.stats.verdicts.total() for record in log.records)


def test_without_dynamic_sampling_a_batch_is_the_next_groups_and_uniform_ones_count_as_trained() -> None:
    sampling = replace(SAMPLING, dynamic=False)
    log = train_on(SerialRuntime(line_parts(POLICIES["laplace"])), sampling=sampling)
    for update, record in enumerate(log.records, start=1):
        verdicts, ledger = record.stats.verdicts, record.ledger
        assert record.stats.num_rollouts == 16
        assert record.stats.num_collected == verdicts.total() == 4
        assert record.stats.num_uniform_trained == 4 - verdicts[Verdict.ACCEPTED]
        assert (ledger.dispatched, ledger.trained, ledger.uniform, ledger.balance) == (4 * update, 4 * update, 0, 0)
        assert record.report.error is None
    assert log.num_groups == 4 * NUM_UPDATES
    assert sum(record.stats.num_uniform_trained for record in log.records) > 0
    with_it = train_on(SerialRuntime(line_parts(POLICIES["laplace"])))
    assert [record.stats.num_uniform_trained for record in with_it.records] == [0] * NUM_UPDATES


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_serial_and_two_actors_give_bitwise_the_same_weights_without_dynamic_sampling() -> None:
    sampling, parts = replace(SAMPLING, dynamic=False), line_parts(POLICIES["laplace"])
    expected = checksums(train_on(SerialRuntime(parts), sampling=sampling))
    runtime = on_ray(parts, 2)
    try:
        assert checksums(train_on(runtime, sampling=sampling)) == expected
    finally:
        runtime.close()


def on_ray(parts: Components, num_actors: int, **changes: Any) -> RayRuntime:
    cluster = Cluster(num_actors=num_actors, cpus_per_actor=0.5, start_timeout_s=START_TIMEOUT_S)
    return RayRuntime(parts, replace(cluster, **changes))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_serial_and_two_actors_give_bitwise_the_same_weights_with_noise_on_rollouts() -> None:
    parts = line_parts(POLICIES["laplace"])
    expected = checksums(train_on(SerialRuntime(parts), perturb=nudge))
    assert expected != checksums(train_on(SerialRuntime(parts)))
    runtime = on_ray(parts, 2)
    try:
        assert checksums(train_on(runtime, perturb=nudge)) == expected
    finally:
        runtime.close()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("kind", ["tokens", "laplace"])
def test_serial_one_actor_and_four_actors_give_bitwise_the_same_weights(kind: str) -> None:
    expected = checksums(train_on(SerialRuntime(line_parts(POLICIES[kind]))))
    for num_actors in (1, 4):
        runtime = on_ray(line_parts(POLICIES[kind]), num_actors)
        try:
            assert runtime.num_actors == num_actors
            assert checksums(train_on(runtime)) == expected
        finally:
            runtime.close()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_evaluation_is_the_same_on_every_runtime() -> None:
    contexts = [line_stream().at(index) for index in range(12)]
    parts = line_parts(POLICIES["laplace"])
    expected = evaluate(SerialRuntime(parts), evaluation_requests(contexts, batch_size=5, seed=5))
    runtime = on_ray(parts, 3)
    try:
        assert evaluate(runtime, evaluation_requests(contexts, batch_size=5, seed=5)) == expected
    finally:
        runtime.close()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_with_too_few_nodes_warns_of_the_shortage_and_continues_with_the_actors_that_fit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = Cluster(num_actors=3, cpus_per_actor=1.0, start_timeout_s=START_TIMEOUT_S)
    runtime = RayRuntime(line_parts(POLICIES["laplace"]), cluster)
    try:
        assert caplog.messages == [
            "rollout actors: asked for 3, got 2, waiting for 1; the live nodes have capacity for 2"
        ]
        assert len(train_on(runtime, num_updates=1).records) == 1
    finally:
        runtime.close()
    with pytest.raises(WorkerError, match=r"asked for 1, got 0, waiting for 1; .* none became available within 1 s"):
        RayRuntime(
            line_parts(POLICIES["laplace"]),
            Cluster(num_actors=1, cpus_per_actor=5, node_timeout_s=1),
            with_learner=False,
        )


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_on_another_kind_of_processor_than_the_drivers_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    actual = processor_kind()
    processor_kind.cache_clear()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "other")  # not in the processes that Ray starts
    runtime = on_ray(line_parts(POLICIES["laplace"]), 1)
    try:
        runtime.broadcast()
        runtime.launch(RolloutRequest(0, (line_stream().at(0),), ((0,),), keep_record=False))
        next_summary(runtime)
        assert runtime._pool._actors[0].processor == actual != processor_kind()
        text = f"actor 0 has another kind of processor ({actual}) than the driver ({processor_kind()})"
        assert [text in message for message in caplog.messages] == [True]
    finally:
        runtime.close()
        processor_kind.cache_clear()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_that_cannot_be_built_is_reported_at_the_start() -> None:
    def broken_policy() -> TinyChunkPolicy:
        raise OSError("no such weights")

    with pytest.raises(WorkerError, match="no such weights"):
        on_ray(line_parts(broken_policy), 1, max_replacements=0)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_broadcast_reaches_every_actor_before_the_next_group() -> None:
    runtime = on_ray(line_parts(POLICIES["laplace"]), 2)
    try:
        train_on(runtime, num_updates=1)
        for index in range(6):
            runtime.launch(RolloutRequest(index, (line_stream().at(0),), ((index,),), keep_record=False))
        assert {next_summary(runtime).version for _ in range(6)} == {1}
    finally:
        runtime.close()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_update_counts_as_running_until_its_report_is_fetched_so_that_no_wait_can_miss_it() -> None:
    runtime = on_ray(line_parts(POLICIES["laplace"]), 1)
    try:
        runtime.broadcast()
        index = 0
        while True:
            runtime.launch(group_request(line_stream(), index, sampling=SAMPLING, seed=5))
            if not next_summary(runtime).error:
                runtime.send_to_learner(index)
                break
            runtime.discard(index)
            index += 1
        learners = runtime._learners
        assert learners is not None
        runtime.start_update([index])
        ray.wait(learners._update, timeout=300)
        assert learners.is_updating, "it has finished, and nobody knows yet"
        assert learners.awaited == []
        assert isinstance(runtime.next_event(), UpdateReport)
        assert not learners.is_updating
    finally:
        runtime.close()


def test_a_serial_runtime_without_learner_builds_one_policy_and_several_learners_are_refused() -> None:
    built: list[Policy] = []

    def build() -> Policy:
        built.append(POLICIES["laplace"]())
        return built[-1]

    contexts = [line_stream().at(index) for index in range(3)]
    with open_runtime(line_parts(build), Cluster(in_process=True), with_learner=False) as runtime:
        evaluate(runtime, evaluation_requests(contexts, batch_size=3, seed=5))
    assert len(built) == 1
    with pytest.raises(ConfigError, match="num-learners is 2; in one process it must be 1"):
        SerialRuntime(replace(line_parts(build), num_learners=2))


class CountedEnvironment(LineEnvironment):
    """Counts the environments that are open, and the most that ever were."""

    num_open = 0
    most_open = 0

    def __init__(self) -> None:
        super().__init__()
        CountedEnvironment.num_open += 1
        CountedEnvironment.most_open = max(self.most_open, self.num_open)

    def close(self) -> None:
        super().close()
        CountedEnvironment.num_open -= 1


def test_the_bound_on_open_environments_holds_and_changes_no_weight() -> None:
    parts = replace(line_parts(POLICIES["laplace"]), make_environment=lambda task: CountedEnvironment())
    expected, most_open = [], []
    for bound in (64, 4):
        CountedEnvironment.num_open = CountedEnvironment.most_open = 0
        with open_runtime(parts, Cluster(in_process=True, max_environments=bound)) as runtime:
            expected.append(checksums(train_on(runtime)))
        most_open.append(CountedEnvironment.most_open)
        assert CountedEnvironment.num_open == 0
    assert most_open == [8, 4], "two tasks with groups of four"
    assert expected[0] == expected[1]


class EasyEnvironment(LineEnvironment):
    """Solved by the first step, so that every group is uniform, after `after` episodes in this process."""

    episodes = 0
    after = 150

    def reset(self, initial_state):
        EasyEnvironment.episodes += 1
        super().reset(initial_state)

    def step(self, action):
        solved = super().step(action)
        if EasyEnvironment.episodes > self.after:
            self._solved = solved = True
        return solved


def exhaust(runtime: Runtime) -> None:
    log = Log()
    sampling = Sampling(group_size=4, batch_rollouts=16, max_uniform_groups=40)
    outcome = train(runtime, line_stream(), sampling=sampling, num_updates=50, seed=5, callbacks=[log])
    assert outcome.exhausted is not None
    assert len(log.records) >= 1, "the example must end after an update"
    assert outcome.last is not None
    totals = [record.stats.verdicts.total() for record in log.records]
    assert log.num_groups == sum(totals) + outcome.last.verdicts.total(), "a finished group was not counted"
    assert outcome.last.num_rollouts == 4 * outcome.last.verdicts.total()
    contexts = [line_stream().at(index) for index in range(8)]
    result = evaluate(
        runtime, evaluation_requests(contexts, batch_size=3, seed=5)
    )  # no request of the search may still be in flight
    assert result.overall.num_rollouts == 8


def test_a_search_that_ends_after_updates_leaves_nothing_in_flight() -> None:
    EasyEnvironment.episodes = 0
    parts = replace(
        line_parts(POLICIES["laplace"], learning_rate=1e-4), make_environment=lambda task: EasyEnvironment()
    )
    exhaust(SerialRuntime(parts))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_search_that_ends_after_updates_leaves_nothing_in_flight_on_ray() -> None:
    parts = replace(
        line_parts(POLICIES["laplace"], learning_rate=1e-4), make_environment=lambda task: EasyEnvironment()
    )
    runtime = on_ray(parts, 3)
    try:
        exhaust(runtime)
    finally:
        runtime.close()


def test_non_finite_updates_are_skipped_and_the_third_in_a_row_ends_the_run() -> None:
    runtime = SerialRuntime(line_parts(POLICIES["tokens"], learning_rate=1e30))
    before = runtime.broadcast().checksum
    log = Log()
    with pytest.raises(DivergenceError, match=r"3 updates in a row were skipped: update 3: .* not finite; lower ppo"):
        train(runtime, line_stream(), sampling=SAMPLING, num_updates=5, seed=5, callbacks=[log])
    assert checksums(log) == [before] * 3
    assert runtime.learner_state() == {}
    assert [record.progress.skipped_streak for record in log.records] == [1, 2, 3]
