"""What the benchmarks share: environments and policies of known duration, a Ray session, a table."""

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from ript_envs.contract import Environment, Observation
from ript_ray.policies.base import Decisions
from ript_ray.policies.state_dict import load_module_arrays, module_arrays
from ript_ray.rl.context_stream import ContextStream
from ript_ray.runtime.host import num_cpus
from ript_ray.types import Arrays, Context, RolloutRequest

TENSOR_BYTES = 4_000_000
"""Largest tensor of a policy, as a layer of a real one has."""

STATE_DIM = 16


class TimedEnvironment:
    """Every step takes `step_s`, asleep or at work; an episode lasts `num_steps`.

    Of those built in one process every second one succeeds, with its last step: a group whose size is even takes
    the same time as any other, and is never rejected.
    """

    _built = itertools.count()

    def __init__(self, *, step_s: float, num_steps: int, at_work: bool):
        self._step_s = step_s
        self._num_steps = num_steps
        self._at_work = at_work
        self._succeeds = next(self._built) % 2 == 1
        self._num_done = 0

    def reset(self, initial_state: NDArray[np.float64]) -> None:
        """Begin an episode; the state does not matter."""
        self._num_done = 0

    def step(self, action: NDArray[np.float32]) -> bool:
        """Let `step_s` pass, of this thread's processor time where it is at work."""
        if self._at_work:
            end = time.thread_time() + self._step_s
            while time.thread_time() < end:
                pass
        else:
            time.sleep(self._step_s)
        self._num_done += 1
        return self._succeeds and self._num_done == self._num_steps

    def observe(self) -> Observation:
        """Zeros."""
        return {"state": np.zeros(STATE_DIM, np.float32)}

    def expert_action(self) -> NDArray[np.float32]:
        """Nothing."""
        return np.zeros(1, np.float32)

    def close(self) -> None:
        """Free nothing."""


class TimedPolicy(nn.Module):
    """One Gaussian action per chunk step; trains `num_bytes` of parameters, and takes `score_s` to score decisions."""

    def __init__(self, *, chunk_length: int = 1, num_bytes: int = 4, score_s: float = 0.0):
        super().__init__()
        sizes = [min(TENSOR_BYTES, num_bytes - start) // 4 for start in range(0, num_bytes, TENSOR_BYTES)]
        self.layers = nn.ParameterList([nn.Parameter(torch.zeros(size)) for size in sizes])
        self._chunk_length = chunk_length
        self._score_s = score_s

    def act(
        self, observations: Arrays, instructions: Sequence[str], generators: Sequence[np.random.Generator]
    ) -> Decisions:
        """Draw actions around the first parameter."""
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
        """Score actions, after `score_s`."""
        time.sleep(self._score_s)
        return self._log_probs(record["action"])

    def trainable(self) -> dict[str, nn.Parameter]:
        """All parameters."""
        return dict(self.named_parameters())

    def state_arrays(self) -> Arrays:
        """All parameters, copied."""
        return module_arrays(self)

    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over all parameters."""
        load_module_arrays(self, arrays)

    def _log_probs(self, actions_NU: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(self.layers[0][0], 1.0).log_prob(actions_NU)


def make_timed(task: str, *, group_s: float, group_size: int, num_steps: int, at_work: bool = False) -> Environment:
    """An environment with which a group of `group_size` episodes of `num_steps` takes `group_s`."""
    return TimedEnvironment(step_s=group_s / (group_size * num_steps), num_steps=num_steps, at_work=at_work)


def timed_requests(num_requests: int, *, group_size: int) -> list[RolloutRequest]:
    """Requests that differ in nothing but their index and seeds."""
    context = timed_stream().at(0)
    return [
        RolloutRequest(index, (context,) * group_size, tuple((index, member) for member in range(group_size)))
        for index in range(num_requests)
    ]


def timed_stream() -> ContextStream:
    """A stream of one context."""
    return ContextStream([Context("wait", "wait", (0.0,))], seed=0)


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    """Ray on this machine, with its true number of cores."""
    ray.init(address="local", num_cpus=num_cpus(), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def spread(values: Iterable[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, median, high = np.quantile(list(values), [0.25, 0.5, 0.75])
    return float(low), float(median), float(high)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print figures, right-aligned."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
