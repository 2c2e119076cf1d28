"""Learners that die, hang or differ: the run continues to the same bits, or ends and says who was the cause."""

import itertools
import logging
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch
from numpy.typing import NDArray
from torch import nn

from ript_ray.errors import WorkerError
from ript_ray.rl.callbacks import UpdateRecord
from ript_ray.rl.protocols import Components
from ript_ray.runtime.learner_watch import LearnerWatch
from ript_ray.runtime.ray_runtime import RayRuntime
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.types import Group
from tests.conftest import line_parts
from tests.fakes import TinyChunkPolicy
from tests.faulty import is_first
from tests.ript_ray.runtime.test_runtimes import SAMPLING, Log, checksums, on_ray, train_on

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

NUM_UPDATES = 5
NO_PROGRESS_S = 20.0
"""A pass of the policy takes milliseconds, unless the machine is busy."""

FAULTS: dict[str, Callable[[], object]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSTOP": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda: time.sleep(3600),
}
DIED = "The actor (died|.* is unavailable)"
"""The latter is what Ray says of a dead actor until it has noticed its death, a second or more on a busy machine."""
CAUSES = {"SIGKILL": DIED, "SIGSTOP": "has not answered for", "sleep": "has made no progress for"}


class FaultyPolicy(TinyChunkPolicy):
    """Triggers the faults one by one: each in one learner, in the middle of the second update of its process."""

    def __init__(self, faults: Sequence[str], folder: Path):
        super().__init__("laplace")
        self._faults, self._folder, self._num_scored = faults, folder, 0

    def log_probs(self, record):
        self._num_scored += 1
        if self._num_scored == 7:  # an update has two passes of two minibatches
            for place, fault in enumerate(self._faults):
                if is_first(self._folder / str(place)):
                    FAULTS[fault]()
                if psutil.pid_exists(pid_of_fault(self._folder, place)):
                    break  # a fault of another learner, not an earlier one
        return super().log_probs(record)


class FaultyShardedPolicy(FaultyPolicy):
    """Its frozen weights, which change nothing, can be shared by learners."""

    def __init__(self, faults: Sequence[str], folder: Path):
        super().__init__(faults, folder)
        self.base = nn.Linear(2, 2).requires_grad_(False)
        self.base.weight.copy_(torch.eye(2))
        self.base.bias.zero_()

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in super().trainable().items() if not name.startswith("base.")}

    def shard_units(self) -> list[nn.Module]:
        return [self.base]

    def _at(self, state: torch.Tensor) -> torch.distributions.Distribution:
        return super()._at(self.base(state))


def pid_of_fault(folder: Path, place: int) -> int:
    return int((folder / str(place)).read_text())


Start = Callable[..., RayRuntime]


def plain() -> TinyChunkPolicy:
    return TinyChunkPolicy("laplace")


def parts_of(build: Callable[[], TinyChunkPolicy], num_learners: int) -> Components:
    return replace(line_parts(build, learning_rate=1e-3), num_learners=num_learners)


@pytest.fixture
def started() -> Iterator[Start]:
    """Start runtimes with one actor; the test ends them."""
    runtimes: list[RayRuntime] = []

    def start(parts: Components, **changes: float) -> RayRuntime:
        runtimes.append(on_ray(parts, 1, **changes))
        return runtimes[-1]

    yield start
    for runtime in runtimes:
        runtime.close()


@pytest.fixture(scope="module")
def received(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file per learner and group that it received in the undisturbed run of two: PID and index."""
    return tmp_path_factory.mktemp("received")


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, received: Path) -> dict[int, Log]:
    """Undisturbed runs, by number of learners."""

    def note(group: Group) -> None:
        (received / f"{os.getpid()} {group.index}").touch()

    two = on_ray(replace(parts_of(plain, 2), keep_group=note), 1)
    try:
        return {1: train_on(SerialRuntime(parts_of(plain, 1)), NUM_UPDATES), 2: train_on(two, NUM_UPDATES)}
    finally:
        two.close()


def test_two_learners_take_the_steps_of_one(undisturbed: dict[int, Log]) -> None:
    for one, two in zip(undisturbed[1].records, undisturbed[2].records, strict=True):
        np.testing.assert_allclose(floats(two), floats(one), atol=1e-6)


def test_a_group_is_delivered_to_one_of_two_learners_each_in_its_turn(
    undisturbed: dict[int, Log], received: Path
) -> None:
    pids, indices = zip(*(path.name.split() for path in received.iterdir()), strict=True)
    assert len(indices) == len(set(indices)) == undisturbed[2].records[-1].ledger.trained
    first, second = Counter(pids).values()
    assert abs(first - second) <= 1


def learner_pids(runtime: RayRuntime) -> list[int]:
    assert runtime._learners is not None
    return [
        ray.get(learner.__ray_call__.remote(lambda learner: os.getpid()), timeout=300)
        for learner in runtime._learners._learners
    ]


def replacements(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "replacing the learners" in record.message]


def test_an_update_whose_learner_is_killed_is_repeated_to_the_same_bits(
    tmp_path: Path, undisturbed: dict[int, Log], started: Start, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = started(parts_of(lambda: FaultyPolicy(["SIGKILL"], tmp_path), 1))
    (before,) = learner_pids(runtime)
    log = train_on(runtime, NUM_UPDATES)
    assert before == pid_of_fault(tmp_path, 0) != learner_pids(runtime)[0]
    assert checksums(log) == checksums(undisturbed[1])
    (message,) = replacements(caplog)
    assert message.endswith("replacing the learners, attempt 2 of at most 3 at update 2")


class Killer:
    """Notes the learners' processes after every update, and kills the second one after the first update."""

    def __init__(self, runtime: RayRuntime):
        self._runtime = runtime
        self.pids: list[list[int]] = []

    def on_group(self, *_: object) -> None: ...

    def on_update(self, record: UpdateRecord) -> None:
        self.pids.append(learner_pids(self._runtime))
        if record.stats.update == 1:
            os.kill(self.pids[0][1], signal.SIGKILL)


@pytest.mark.parametrize(
    ("policy", "faults"), [(FaultyPolicy, ["SIGSTOP", "sleep", "SIGKILL"]), (FaultyShardedPolicy, ["sleep", "SIGKILL"])]
)
def test_the_one_of_two_learners_that_stops_hangs_or_dies_is_named_and_no_bit_changes(
    policy: type[FaultyPolicy],
    faults: list[str],
    tmp_path: Path,
    undisturbed: dict[int, Log],
    started: Start,
    caplog: pytest.LogCaptureFixture,
) -> None:
    parts = parts_of(lambda: policy(faults, tmp_path), 2)
    runtime = started(parts, update_timeout_s=NO_PROGRESS_S, shard_base=policy is FaultyShardedPolicy)
    killer = Killer(runtime)
    num_updates = 2 + len(faults)
    log = train_on(runtime, num_updates, callbacks=[killer])
    assert checksums(log) == checksums(undisturbed[2])[:num_updates]
    culprits = [killer.pids[2 + place - 1].index(pid_of_fault(tmp_path, place)) for place in range(len(faults))]
    causes = [DIED, *(CAUSES[fault] for fault in faults)]
    updates = range(2, num_updates + 1)
    for update, rank, cause, message in zip(updates, [1, *culprits], causes, replacements(caplog), strict=True):
        assert re.match(f"learner {rank}:? {cause}", message), message
        assert message.endswith(f"replacing the learners, attempt 2 of at most 3 at update {update}")
        assert ("cluster.update-timeout-s" in message) == (cause != DIED)
    for earlier, later in itertools.pairwise(killer.pids):
        assert not set(earlier) & set(later), "all learners are replaced"


def test_a_learner_killed_while_actors_run_ahead_loses_no_group(tmp_path: Path, started: Start) -> None:
    runtime = started(parts_of(lambda: FaultyPolicy(["SIGKILL"], tmp_path), 1))
    log = train_on(runtime, sampling=replace(SAMPLING, max_policy_lag=1))
    assert (tmp_path / "0").exists()
    ledger = log.records[-1].ledger
    assert (ledger.trained, ledger.lost, ledger.balance) == (12, 0, 0)


def test_an_update_that_always_kills_its_learner_ends_the_run(started: Start) -> None:
    class Fatal(TinyChunkPolicy):
        def log_probs(self, record):
            os._exit(1)

    runtime = started(parts_of(lambda: Fatal("laplace"), 1))
    with pytest.raises(WorkerError, match=rf"learner 0: {DIED}.*; update 1 has failed 3 times$"):
        train_on(runtime)


def test_an_exception_in_a_learner_ends_the_run_at_once(started: Start, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(TinyChunkPolicy):
        def log_probs(self, record):
            raise RuntimeError("no such layer")

    runtime = started(parts_of(lambda: Broken("laplace"), 1))
    with pytest.raises(WorkerError, match=r"learner 0: RuntimeError: no such layer$"):
        train_on(runtime)
    assert replacements(caplog) == []


def test_learners_whose_weights_differ_end_the_run_by_name(tmp_path: Path, started: Start) -> None:
    class Drifting(TinyChunkPolicy):
        """In one learner, a weight rounds differently in the second update."""

        def __init__(self) -> None:
            super().__init__("laplace")
            self._num_scored = 0

        def log_probs(self, record):
            self._num_scored += 1
            if self._num_scored == 7 and is_first(tmp_path / "mark"):
                self.log_scale.data.mul_(1 + 2e-7)
            return super().log_probs(record)

    runtime = started(parts_of(Drifting, 2))
    with pytest.raises(
        WorkerError, match=r"after update 2 the weights of learner 1 \(.*\) differ from those of learner 0"
    ):
        train_on(runtime)


class SlowPolicy(TinyChunkPolicy):
    """Takes a second per minibatch, at least."""

    def log_probs(self, record):
        time.sleep(1.0)
        return super().log_probs(record)


def test_an_update_may_take_longer_than_its_timeout_as_long_as_it_goes_on(
    started: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ript_ray")
    timeout_s = 12.0  # of one pass, also on a busy machine
    parts = line_parts(lambda: SlowPolicy("laplace"), num_iterations=13)
    runtime = started(parts, update_timeout_s=timeout_s)
    log = train_on(runtime, num_updates=1)
    assert log.records[0].report.learn_s > 2 * timeout_s
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    (estimate,) = [record.message for record in caplog.records if record.name == LearnerWatch.__module__]
    assert "of 26 optimizer steps took" in estimate
    assert "min per update" in estimate


def floats(record: UpdateRecord) -> NDArray[np.float32]:
    return record.weights.buffer.view(np.float32)
