"""Shared parts of the benchmarks: environments and policies of known duration, a Ray session, tables."""

import contextlib
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from ript_envs.contract import Environment, Observation
from ript_ray.config.rl import PPO
from ript_ray.policies.base import Decisions
from ript_ray.policies.state_dict import ModulePolicy
from ript_ray.rl.context_stream import ContextStream
from ript_ray.rl.protocols import Components
from ript_ray.runtime.host import num_cpus
from ript_ray.types import Arrays, Context, RolloutRequest

TENSOR_BYTES = 4_000_000
"""Size of the largest tensor of a policy, like a layer of a real one."""

STATE_DIM = 16
IMAGE_SIZE = 8


class TimedEnvironment:
    """An environment whose steps take a known time, sleeping or busy.

    Every second environment built in a process succeeds, at its last step: groups of even size all take the same time
    and are never rejected.
    """

    _built = itertools.count()

    def __init__(self, *, step_s: float, num_steps: int, is_busy: bool):
        """Create the environment.

        Args:
            step_s: Duration of a step, in seconds.
            num_steps: Steps until every second environment succeeds.
            is_busy: Whether a step uses processor time rather than sleep.
        """
        self._step_s = step_s
        self._num_steps = num_steps
        self._is_busy = is_busy
        self._succeeds = next(self._built) % 2 == 1
        self._num_done = 0

    def reset(self, initial_state: NDArray[np.float64]) -> None:
        """Start an episode; the state is ignored."""
        self._num_done = 0

    def step(self, action: NDArray[np.float32]) -> bool:
        """Take `step_s`; if busy, of this thread's processor time."""
        if self._is_busy:
            end = time.thread_time() + self._step_s
            while time.thread_time() < end:
                pass
        else:
            time.sleep(self._step_s)
        self._num_done += 1
        return self._succeeds and self._num_done == self._num_steps

    def observe(self) -> Observation:
        """Return zeros."""
        return {"state": np.zeros(STATE_DIM, np.float32)}

    def render(self, camera: str) -> NDArray[np.uint8]:
        """Return a black image."""
        return np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)

    def close(self) -> None:
        """Do nothing."""


class TimedPolicy(ModulePolicy):
    """A policy with one Gaussian action per chunk step, of known size and duration."""

    def __init__(self, *, chunk_length: int = 1, num_bytes: int = 4, score_s: float = 0.0):
        """Build the policy.

        Args:
            chunk_length: Actions per query.
            num_bytes: Size of the trainable parameters.
            score_s: Seconds that `log_probs` sleeps.
        """
        super().__init__()
        sizes = [min(TENSOR_BYTES, num_bytes - start) // 4 for start in range(0, num_bytes, TENSOR_BYTES)]
        self.layers = nn.ParameterList([nn.Parameter(torch.zeros(size)) for size in sizes])
        self._chunk_length = chunk_length
        self._score_s = score_s

    def act(
        self, observations: Arrays, instructions: Sequence[str], generators: Sequence[np.random.Generator]
    ) -> Decisions:
        """Sample actions; the mean is the first parameter."""
        actions_BU = np.stack([generator.normal(0.0, 1.0, self._chunk_length) for generator in generators])
        with torch.no_grad():
            log_probs_BU = self._log_probs(torch.from_numpy(actions_BU.astype(np.float32))).numpy()
        return Decisions(
            actions_BCA=actions_BU.astype(np.float32)[:, :, None],
            record={"state": observations["state"], "action": actions_BU.astype(np.float32)},
            log_probs_BU=log_probs_BU,
            valid_BU=np.ones(log_probs_BU.shape, np.bool_),
        )

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Score actions after sleeping for `score_s`."""
        time.sleep(self._score_s)
        return self._log_probs(record["action"])

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return all parameters."""
        return dict(self.named_parameters())

    def _log_probs(self, actions_NU: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(self.layers[0][0], 1.0).log_prob(actions_NU)


def make_timed(task: str, *, group_s: float, group_size: int, num_steps: int, is_busy: bool = False) -> Environment:
    """Build an environment in which a group of `group_size` episodes of `num_steps` steps takes `group_s` seconds."""
    return TimedEnvironment(step_s=group_s / (group_size * num_steps), num_steps=num_steps, is_busy=is_busy)


def timed_components(*, num_bytes: int, group_s: float, group_size: int, num_steps: int) -> Components:
    """Return a policy of that size, and environments in which a group takes that time; see `make_timed`."""
    return Components(
        build_policy=functools.partial(TimedPolicy, num_bytes=num_bytes),
        make_environment=functools.partial(make_timed, group_s=group_s, group_size=group_size, num_steps=num_steps),
        max_steps=num_steps,
        ppo=PPO(),
        seed=0,
        learner_threads=1,
    )


def timed_requests(num_requests: int, *, group_size: int) -> list[RolloutRequest]:
    """Return requests that differ only in their index and seeds."""
    context = timed_stream().at(0)
    return [
        RolloutRequest(index, (context,) * group_size, tuple((index, member) for member in range(group_size)))
        for index in range(num_requests)
    ]


def timed_stream() -> ContextStream:
    """Return a stream of a single context."""
    return ContextStream([Context("wait", "wait", (0.0,))], seed=0)


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    """Run Ray on this machine, with its actual number of cores."""
    ray.init(address="local", num_cpus=num_cpus(), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def spread(values: Iterable[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile."""
    low, median, high = np.quantile(list(values), [0.25, 0.5, 0.75])
    return float(low), float(median), float(high)


def extremes(values: Sequence[float]) -> tuple[float, float, float]:
    """Return minimum, median and maximum."""
    return min(values), statistics.median(values), max(values)


def in_turns(ways: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Return the processor time of this thread that each way takes in each round; a first one is not counted."""
    durations_s: list[list[float]] = [[] for _ in ways]
    for _ in range(1 + rounds):
        for way, samples_s in zip(ways, durations_s, strict=True):
            started = time.thread_time()
            way()
            samples_s.append(time.thread_time() - started)
    return [samples_s[1:] for samples_s in durations_s]


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with right-aligned columns."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
