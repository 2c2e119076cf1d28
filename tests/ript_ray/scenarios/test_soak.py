"""Ten minutes of training with a fault in one actor every 15 s: nothing hangs, is lost or leaks.

`pytest -m slow -s tests/ript_ray/scenarios/test_soak.py`; RIPT_SOAK_S shortens it.
"""

import ctypes
import itertools
import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
import ray

from ript_ray.config.rl import Sampling
from ript_ray.rl.callbacks import RolloutStats, UpdateRecord
from ript_ray.rl.dynamic_sampling import Verdict
from ript_ray.rl.train import train
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.ray_runtime import RayRuntime
from ript_ray.types import GroupSummary
from tests.conftest import line_parts, line_stream, start_ray
from tests.fakes import LineEnvironment, TinyChunkPolicy

SOAK_S = float(os.environ.get("RIPT_SOAK_S", "600"))
UNDISTURBED_S = min(120.0, SOAK_S)  # compared by groups per second
EVERY_S = 15
WEIGH_EVERY_S = 5
NUM_ACTORS = 8
GROUP_S = 0.3
MAX_PAUSE_S = 30.0
SAMPLING = Sampling(group_size=4, batch_rollouts=64, max_policy_lag=1)
EPISODE_STEPS = 3

SIGNALS = {"SIGKILL": signal.SIGKILL, "segfault": signal.SIGSEGV, "SIGSTOP": signal.SIGSTOP}
"""Sent from outside, whatever the actor is doing."""

IN_ENVIRONMENT: dict[str, Callable[[], object]] = {
    "os._exit": lambda: os._exit(3),
    "exception": lambda: 1 / 0,
    "sleep": lambda: time.sleep(600),
    "locked interpreter": lambda: ctypes.PyDLL(None).sleep(600),
}
IN_POLICY = ("death in the constructor", "death in a broadcast")
KINDS = (*SIGNALS, *IN_ENVIRONMENT, *IN_POLICY)


def takes(mark: Path) -> bool:
    """Return whether a mark exists, and delete it: exactly one process gets it."""
    try:
        mark.unlink()
    except FileNotFoundError:
        return False
    return True


class SoakEnvironment(LineEnvironment):
    """Sleeps; every second one built in a process succeeds, so that every group is mixed. Polls for its fault."""

    _built = itertools.count()

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder
        self._succeeds = next(self._built) % 2 == 1

    def reset(self, initial_state):
        self.num_steps = 0
        super().reset(initial_state)

    def step(self, action):
        time.sleep(GROUP_S / SAMPLING.group_size / EPISODE_STEPS)
        for kind, strike in IN_ENVIRONMENT.items():
            if takes(self._folder / f"{kind} {os.getpid()}"):
                strike()
        super().step(action)
        self._solved = self._succeeds and self.num_steps == EPISODE_STEPS
        return self._solved


class SoakPolicy(TinyChunkPolicy):
    """Marks its process as an active actor by a file named after the pid; polls for the other faults."""

    def __init__(self, folder: Path):
        super().__init__("laplace")
        self._folder = folder
        self._has_acted = False
        if takes(folder / "death in the constructor"):
            os._exit(3)

    def act(self, *arguments):
        if not self._has_acted:
            (self._folder / f"at work {os.getpid()}").touch()
            self._has_acted = True
        return super().act(*arguments)

    def trainable(self):
        if self._has_acted and takes(self._folder / f"death in a broadcast {os.getpid()}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().trainable()


class FaultsAndMemory(threading.Thread):
    """Injects a fault into one actor every `EVERY_S`, all kinds equally often in random order; samples memory."""

    def __init__(self, folder: Path, duration_s: float):
        super().__init__(daemon=True)
        self.struck: Counter[str] = Counter()
        self.samples: list[tuple[float, Counter[str]]] = []
        self._folder = folder
        self._duration_s = duration_s
        self._random = random.Random(17)
        self._struck_pids: set[int] = set()
        self._over = threading.Event()

    def run(self) -> None:
        started = time.monotonic()
        deck: list[str] = []
        for moment in range(1, int(self._duration_s)):
            if self._over.wait(max(0.0, started + moment - time.monotonic())):
                return
            if moment % WEIGH_EVERY_S == 0:
                self.samples.append((time.monotonic() - started, pss_bytes()))
            if moment % EVERY_S == 0 and moment < self._duration_s - 10:
                deck = deck or self._random.sample(KINDS, len(KINDS))
                self._strike(deck.pop())

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _strike(self, kind: str) -> None:
        pid = self._random.choice(self._actors_at_work())
        self.struck[kind] += 1
        if kind in SIGNALS:
            os.kill(pid, SIGNALS[kind])
        elif kind in IN_ENVIRONMENT or kind == "death in a broadcast":
            (self._folder / f"{kind} {pid}").touch()
        else:
            (self._folder / kind).touch()  # for the replacement of the killed actor
            os.kill(pid, signal.SIGKILL)
        if kind != "exception":
            self._struck_pids.add(pid)

    def _actors_at_work(self) -> list[int]:
        pids = {int(path.name.rpartition(" ")[2]) for path in self._folder.glob("at work *")}
        return sorted(pid for pid in pids - self._struck_pids if psutil.pid_exists(pid))


def pss_bytes() -> Counter[str]:
    """Memory of this process and all of Ray's by kind of process; shared memory is counted once.

    Without mapped files: other programs on the machine map the same libraries, and their share would come and go.
    """
    sizes: Counter[str] = Counter()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            name = process.name().partition(".")[0]
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            continue  # the process has exited
        sizes[name] += sum(
            1024 * int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))
        )
    return sizes


class TimeIsUpError(Exception):
    pass


@dataclass
class Watch:
    """Ends the run after `duration_s`; records pauses between updates."""

    duration_s: float
    records: list[UpdateRecord] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def on_group(self, stats: RolloutStats, summary: GroupSummary, verdict: Verdict) -> None:
        pass

    def on_update(self, record: UpdateRecord) -> None:
        self.records = [record]
        self.ends.append(time.monotonic())
        if self.ends[-1] - self.ends[0] > self.duration_s:
            raise TimeIsUpError

    @property
    def groups_per_s(self) -> float:
        seconds = self.ends[-1] - self.ends[0]
        return SAMPLING.groups_per_update * (len(self.ends) - 1) / seconds

    @property
    def longest_pause_s(self) -> float:
        return max(after - before for before, after in itertools.pairwise(self.ends))


def soak(folder: Path, duration_s: float, *, faults: bool) -> tuple[Watch, FaultsAndMemory]:
    parts = replace(
        line_parts(lambda: SoakPolicy(folder), num_iterations=1, minibatch_rollouts=64, learning_rate=1e-4),
        make_environment=lambda task: SoakEnvironment(folder),
        max_steps=EPISODE_STEPS,
    )
    cluster = Cluster(num_actors=NUM_ACTORS, cpus_per_actor=0.1, group_timeout_s=5 * GROUP_S, max_replacements=10_000)
    watch, thread = Watch(duration_s), FaultsAndMemory(folder, duration_s if faults else 0.0)
    runtime = RayRuntime(parts, cluster)
    try:
        thread.start()
        with pytest.raises(TimeIsUpError):
            train(runtime, line_stream(), sampling=SAMPLING, num_updates=10**9, seed=5, callbacks=[watch])
    finally:
        thread.stop()
        runtime.close()
    return watch, thread


@pytest.fixture
def _ray() -> Iterator[None]:
    start_ray(num_cpus=2)
    yield
    ray.shutdown()


def window_mb(samples: list[tuple[float, Counter[str]]], begin_s: float, end_s: float) -> Counter[str]:
    """Median memory in MB by kind of process and in total: a brief absence of an actor does not matter."""
    window = [sizes for moment, sizes in samples if begin_s <= moment <= end_s]
    kinds = {kind: [sizes[kind] for sizes in window] for kind in set().union(*window)}
    kinds["all"] = [sizes.total() for sizes in window]
    return Counter({kind: round(statistics.median(values) / 1e6) for kind, values in kinds.items()})


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300 + 2 * SOAK_S)
@pytest.mark.usefixtures("_ray")
def test_ten_minutes_of_faults_cost_less_than_a_tenth_of_the_groups_and_leak_nothing(tmp_path: Path) -> None:
    (tmp_path / "undisturbed").mkdir()
    (tmp_path / "disturbed").mkdir()
    calm, _ = soak(tmp_path / "undisturbed", UNDISTURBED_S, faults=False)
    watch, thread = soak(tmp_path / "disturbed", SOAK_S, faults=True)

    last = watch.records[-1]
    window_s = min(60.0, SOAK_S / 5)
    before = window_mb(thread.samples, window_s, 2 * window_s)
    after = window_mb(thread.samples, SOAK_S - window_s, SOAK_S)
    share = watch.groups_per_s / calm.groups_per_s
    print(f"\nfaults: {dict(thread.struck)}")
    print(f"{last.ledger}, {last.num_replaced} actors replaced")
    print(f"groups/s: {watch.groups_per_s:.2f} of {calm.groups_per_s:.2f} undisturbed, {share:.1%}")
    print(f"longest pause between updates: {watch.longest_pause_s:.1f} s, undisturbed {calm.longest_pause_s:.1f} s")
    print(f"MB: {before.most_common()}, at the end {after.most_common()}, {after['all'] / before['all'] - 1:+.1%}")

    assert not [path.name for path in (tmp_path / "disturbed").iterdir() if not path.name.startswith("at work")]
    assert last.num_replaced >= sum(thread.struck.values()) - thread.struck["exception"]
    assert calm.records[-1].num_replaced == 0
    assert watch.longest_pause_s < MAX_PAUSE_S
    assert share >= 0.9
    assert after["all"] <= 1.05 * before["all"]
