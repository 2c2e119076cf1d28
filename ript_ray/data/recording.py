"""Scripted experts into demonstration files: many attempts at once, the same files however many.

The attempts of a task are numbered, and a file holds the first so many that succeeded. An attempt is begun only if
the file lacks demonstrations even should all that are under way succeed: so none is wasted, and those that are begun
are the ones that would be made one after the other.
"""

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
from ript_ray.data.demonstrations import Attempt, ExpertEpisode, FailureLimit, run_expert
from ript_ray.data.hdf5 import DemonstrationWriter, Recipe, read_recipe
from ript_ray.errors import ConfigError, RiptError
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.task_pool import TaskPool, open_task_pool

logger = logging.getLogger(__name__)

FORMAT = 1
"""Counts changes of what a file holds."""

MAX_ENVIRONMENTS = 2
"""Environments that a process keeps: one, and another where a task ends and the next begins."""


@dataclass(frozen=True)
class Plan:
    """What to record of each task.

    Attributes:
        benchmark: Where the tasks come from, and what is seen of them.
        num_episodes: Demonstrations per task, at least 1.
        action_noise: Standard deviation of Gaussian noise on the expert's actions, in [0, 1].
        keep_failures: Whether episodes that fail count as well.
        max_steps: When an attempt has failed, in environment steps.
        max_attempts: Give up on a task after this many failures in a row, at least 1.
        seed: All of the randomness.
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
        """What the content of a task's file depends on."""
        settings = json.loads(json.dumps(asdict(self)))  # as it will be read back: lists for tuples
        del settings["max_attempts"]  # decides whether there is a file, not what is in it
        return {"format": FORMAT, "task": task, **settings}


def record_files(plan: Plan, paths: dict[str, Path], cluster: Cluster) -> None:
    """Record what is not there yet.

    Args:
        plan: What to record.
        paths: Where the file of each task goes.
        cluster: Where it runs.

    Raises:
        RiptError: A file was recorded differently or is damaged, or an expert failed too often; files that are
            complete stay.
    """
    missing = [task for task, path in paths.items() if not _is_complete(plan, task, path)]
    if len(missing) < len(paths):
        logger.info("%d of %d files are complete already", len(paths) - len(missing), len(paths))
    if not missing:
        return
    waiting = deque(missing)
    active: dict[str, _TaskFile] = {}
    with open_task_pool(functools.partial(attempt_expert, plan.benchmark), cluster) as workers:
        try:
            while waiting or active:
                _keep_busy(workers, active, waiting, lambda task: _TaskFile(plan, task, paths[task]))
                attempt, episode = workers.next_done()
                file = active[attempt.task]
                file.take(attempt, episode)
                if file.is_complete:
                    del active[attempt.task]
                    logger.info(file.finish())
        finally:
            for file in active.values():
                file.discard()


def attempt_expert(benchmark: Benchmark, attempt: Attempt) -> ExpertEpisode:
    """Make an attempt in this process, which keeps its environments from one to the next."""
    try:
        return run_expert(benchmark, _environment(benchmark, attempt.task), attempt, include_final=True)
    except Exception:
        _environment.cache_clear()  # whatever state it is in, the next attempt builds it anew
        raise


@functools.lru_cache(maxsize=MAX_ENVIRONMENTS)
def _environment(benchmark: Benchmark, task: str) -> Environment:
    return benchmark.make(task)


def _is_complete(plan: Plan, task: str, path: Path) -> bool:
    if not path.exists():
        return False
    wanted, found = flatten(plan.recipe_of(task)), flatten(read_recipe(path))
    differing = [name for name in sorted(wanted | found) if wanted.get(name) != found.get(name)]
    if differing:
        difference = "; ".join(f"{name} is {found.get(name)}, not {wanted.get(name)}" for name in differing)
        raise RiptError(f"{path} was recorded differently ({difference}): move it away, or record elsewhere")
    return True


class _TaskFile:
    """One task's file and the attempts at it."""

    def __init__(self, plan: Plan, task: str, path: Path):
        self._plan = plan
        self._task = task
        self._path = path
        packages = (*plan.benchmark.packages, "numpy", "ript-ray")
        versions = {name: importlib.metadata.version(name) for name in packages}
        self._writer = DemonstrationWriter(path, task, recipe=plan.recipe_of(task), versions=versions)
        self._num_begun = 0
        self._num_pending = 0
        self._num_good = 0
        self._next_index = 0
        self._limit = FailureLimit(task, max_attempts=plan.max_attempts, max_steps=plan.max_steps)
        self._arrived: dict[int, ExpertEpisode] = {}

    @property
    def lacks_attempts(self) -> bool:
        """Whether it would be incomplete even if all attempts under way succeeded."""
        return self._num_good + self._num_pending < self._plan.num_episodes

    @property
    def is_complete(self) -> bool:
        return self._num_good == self._plan.num_episodes and not self._num_pending

    def begin(self) -> Attempt:
        """The next attempt."""
        plan = self._plan
        attempt = Attempt(self._task, self._num_begun, plan.action_noise, plan.max_steps, plan.seed)
        self._num_begun += 1
        self._num_pending += 1
        return attempt

    def take(self, attempt: Attempt, episode: ExpertEpisode) -> None:
        """Note an attempt that was made; write what is next in order."""
        self._num_pending -= 1
        self._num_good += self._is_good(episode)
        self._arrived[attempt.index] = episode
        while self._next_index in self._arrived:
            self._write(self._arrived.pop(self._next_index))
            self._next_index += 1

    def finish(self) -> str:
        """Give the file its name, and say what it holds."""
        self._writer.finish()
        return f"{self._path}: {self._num_good} demonstrations of {self._num_begun} attempts"

    def discard(self) -> None:
        self._writer.discard()

    def _is_good(self, episode: ExpertEpisode) -> bool:
        return episode.success or self._plan.keep_failures

    def _write(self, episode: ExpertEpisode) -> None:
        is_good = self._is_good(episode)
        self._limit.count(is_good)
        if is_good:
            self._writer.add(episode, attempt=self._next_index, is_truncated=not episode.success)


def _keep_busy(
    workers: TaskPool[Attempt, ExpertEpisode],
    active: dict[str, _TaskFile],
    waiting: deque[str],
    open_file: Callable[[str], _TaskFile],
) -> None:
    """Begin as many attempts as can be worked on; a further task only where those begun have enough."""
    for _ in range(workers.num_free):
        lacking = [file for file in active.values() if file.lacks_attempts]
        if not lacking:
            if not waiting:
                return
            task = waiting.popleft()
            lacking = [active.setdefault(task, open_file(task))]
        workers.submit(lacking[0].begin())


def files_of(benchmark: Benchmark, folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return where the file of each task belongs: where the benchmark's other loaders look for it.

    Args:
        benchmark: The benchmark of the tasks.
        folder: The folder of the data of all benchmarks.
        names: Tasks, or the benchmark's names for sets of tasks.

    Raises:
        ConfigError: There is no such task, or none is named.
    """
    sets = benchmark.task_sets
    tasks = [task for name in names for task in sets.get(name, (name,))]
    require(bool(tasks), "task: name at least one")
    for task in tasks:
        try:
            require_task(task, benchmark.tasks, benchmark.spec.name)
        except ValueError as error:
            hint = f", or {' or '.join(sets)} for a set of tasks" if sets else ""
            raise ConfigError(f"task: {error}{hint}") from None
    return {task: folder / benchmark.demonstration_path(task) for task in tasks}
