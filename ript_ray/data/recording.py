"""Parallel recording of scripted experts into demonstration files, which do not depend on the number of workers.

The attempts of a task are numbered, and a file contains the first successful ones. An attempt starts only if the file
would be incomplete even if all pending attempts succeeded: none is wasted, and the attempts are the same as in serial
recording.
"""

import contextlib
import functools
import importlib.metadata
import json
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ript_envs.contract import Benchmark, Environment, require_task
from ript_ray.checks import require, require_at_least, require_between
from ript_ray.config.serialization import flatten
from ript_ray.data.demonstrations import Attempt, ExpertEpisode, FailureLimit, require_scripted, run_expert
from ript_ray.data.hdf5 import DemonstrationWriter, Recipe, read_recipe
from ript_ray.errors import ConfigError, RiptError
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.heartbeat import Heartbeat
from ript_ray.runtime.task_pool import TaskPool, open_task_pool

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the content of a file."""

MAX_ENVIRONMENTS = 2
"""Environments cached per process: two, because a worker switches between tasks as one ends and the next begins."""


@dataclass(frozen=True)
class Plan:
    """Settings of a recording.

    Attributes:
        benchmark: The benchmark, with the cameras and render settings of the observations.
        num_episodes: Demonstrations per task, at least 1.
        action_noise: Standard deviation of Gaussian noise on the expert's actions, in [0, 1].
        keep_failures: Whether failed episodes count as demonstrations.
        max_steps: Length limit of an attempt, in environment steps.
        max_attempts: Consecutive failures after which a task is given up, at least 1.
        seed: Seed of all randomness.
    """

    benchmark: Benchmark
    num_episodes: int
    action_noise: float
    max_steps: int
    seed: int
    keep_failures: bool = False
    max_attempts: int = 20

    def __post_init__(self) -> None:
        require_at_least("episodes", self.num_episodes, 1)
        require_between("action-noise", self.action_noise, 0.0, 1.0)
        require_between("max-steps", self.max_steps, 1, self.benchmark.spec.max_steps)
        require_at_least("max-attempts", self.max_attempts, 1)
        require_between("seed", self.seed, 0, 2**31 - 1)

    def recipe_of(self, task: str) -> Recipe:
        """Return the settings that determine the content of a task's file."""
        settings = json.loads(json.dumps(asdict(self)))  # as it is read back: lists for tuples
        del settings["max_attempts"]  # does not affect the content
        return {"format": FORMAT, "task": task, **settings}


def record_files(plan: Plan, paths: dict[str, Path], cluster: Cluster) -> None:
    """Record the files that do not exist yet.

    Args:
        plan: What to record.
        paths: Path of each task's file.
        cluster: Where it runs.

    Raises:
        RiptError: An existing file was recorded with other settings or is corrupt, or an expert failed too often;
            complete files are kept.
        MissingPackageError: The benchmark's simulator is not installed.
    """
    missing = [task for task, path in paths.items() if not _is_complete(plan, task, path)]
    if len(missing) < len(paths):
        logger.info("%d of %d files are complete already", len(paths) - len(missing), len(paths))
    if not missing:
        return
    plan.benchmark.require_installed()
    waiting = deque(missing)
    active: dict[str, _TaskFile] = {}
    heartbeat, num_recorded = Heartbeat("recording, demonstrations", len(missing) * plan.num_episodes), 0
    with open_task_pool(functools.partial(attempt_expert, plan.benchmark), cluster) as workers:
        try:
            while waiting or active:
                heartbeat.beat(num_recorded)
                _keep_busy(workers, active, waiting, lambda task: _TaskFile(plan, task, paths[task]))
                attempt, episode = workers.next_done()
                file = active[attempt.task]
                file.add(attempt, episode)
                num_recorded += file.counts(episode)
                if file.is_complete:
                    del active[attempt.task]
                    logger.info(file.finish())
        finally:
            for file in active.values():
                file.discard()


def attempt_expert(benchmark: Benchmark, attempt: Attempt) -> ExpertEpisode:
    """Run an attempt in this process; environments are cached between attempts."""
    try:
        include_final = benchmark.demonstration_layout(attempt.task).final_observation
        return run_expert(benchmark, _environment(benchmark, attempt.task), attempt, include_final=include_final)
    except Exception:
        _environment.cache_clear()  # its state is unknown: the next attempt builds a new one
        raise


@functools.lru_cache(maxsize=MAX_ENVIRONMENTS)
def _environment(benchmark: Benchmark, task: str) -> Environment:
    return benchmark.make(task)


def _is_complete(plan: Plan, task: str, path: Path) -> bool:
    if not path.exists():
        return False
    try:
        found = flatten(read_recipe(path))
    except RiptError as error:
        raise RiptError(f"{error}; delete it or move it away, and it is recorded again") from error
    wanted = flatten(plan.recipe_of(task))
    differing = [name for name in sorted(wanted | found) if wanted.get(name) != found.get(name)]
    if differing:
        difference = "; ".join(f"{name} is {found.get(name)}, not {wanted.get(name)}" for name in differing)
        raise RiptError(f"{path} was recorded with other settings ({difference}): move it away, or record elsewhere")
    return True


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed: some benchmarks are in one of several."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


class _TaskFile:
    """The file of one task and its attempts."""

    def __init__(self, plan: Plan, task: str, path: Path):
        self._plan = plan
        self._task = task
        self._path = path
        self._writer = DemonstrationWriter(
            path,
            task,
            recipe=plan.recipe_of(task),
            versions=_versions((*plan.benchmark.packages, "numpy", "ript-ray")),
            attributes=plan.benchmark.demonstration_layout(task).attributes,
        )
        self._num_started = 0
        self._num_pending = 0
        self._num_good = 0
        self._next_index = 0
        self._limit = FailureLimit(task, max_attempts=plan.max_attempts, max_steps=plan.max_steps)
        self._episodes: dict[int, ExpertEpisode] = {}

    @property
    def lacks_attempts(self) -> bool:
        """Whether the file would be incomplete even if all pending attempts succeeded."""
        return self._num_good + self._num_pending < self._plan.num_episodes

    @property
    def is_complete(self) -> bool:
        return self._num_good == self._plan.num_episodes and not self._num_pending

    def start(self) -> Attempt:
        """Start the next attempt."""
        plan = self._plan
        attempt = Attempt(self._task, self._num_started, plan.action_noise, plan.max_steps, plan.seed)
        self._num_started += 1
        self._num_pending += 1
        return attempt

    def add(self, attempt: Attempt, episode: ExpertEpisode) -> None:
        """Add the result of an attempt; results are written in the order of the attempts."""
        self._num_pending -= 1
        self._num_good += self.counts(episode)
        self._episodes[attempt.index] = episode
        while self._next_index in self._episodes:
            self._write(self._episodes.pop(self._next_index))
            self._next_index += 1

    def counts(self, episode: ExpertEpisode) -> bool:
        """Return whether an attempt is one of the demonstrations."""
        return episode.success or self._plan.keep_failures

    def finish(self) -> str:
        """Complete the file; returns its summary for the log."""
        self._writer.finish()
        return f"{self._path}: {self._num_good} demonstrations of {self._num_started} attempts"

    def discard(self) -> None:
        self._writer.discard()

    def _write(self, episode: ExpertEpisode) -> None:
        is_good = self.counts(episode)
        self._limit.count(is_good)
        if is_good:
            self._writer.add(episode, attempt=self._next_index, is_truncated=not episode.success)


def _keep_busy(
    workers: TaskPool[Attempt, ExpertEpisode],
    active: dict[str, _TaskFile],
    waiting: deque[str],
    open_file: Callable[[str], _TaskFile],
) -> None:
    """Start an attempt per free worker; a new task starts only when the active ones need no more attempts."""
    for _ in range(workers.num_free):
        lacking = [file for file in active.values() if file.lacks_attempts]
        if not lacking:
            if not waiting:
                return
            task = waiting.popleft()
            lacking = [active.setdefault(task, open_file(task))]
        workers.submit(lacking[0].start())


def files_of(benchmark: Benchmark, folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return the path of each task's file, as the benchmark's own loaders expect it.

    Args:
        benchmark: The benchmark of the tasks.
        folder: Root folder of the data of all benchmarks.
        names: Names of tasks or of the benchmark's task sets.

    Raises:
        ConfigError: A task is unknown, or none is given.
    """
    sets = benchmark.task_sets
    tasks = [task for name in names for task in sets.get(name, (name,))]
    require(bool(tasks), "task: name at least one")
    for task in tasks:
        try:
            require_task(task, (*sets, *benchmark.tasks), benchmark.spec.name)
        except ValueError as error:
            raise ConfigError(f"task: {error}") from None
    require_scripted(benchmark, tasks)
    return {task: folder / benchmark.demonstration_path(task) for task in tasks}
