"""Where does the processor time of rollouts and of updates go?

Question: which share of a rollout is physics, the simulator's Python, pictures, the policy, and our own code? Which
    share of an update is the forward pass, the backward pass, the optimizer, and the rest (minibatches, moving of data,
    losses, clipping, a snapshot for a rollback)?
Method: one process with one thread, as an actor has it. A stopwatch stands around MuJoCo's functions (physics,
    pictures), the environment's methods (what is left of them is Python), the policy's `act`, and `roll_out` (the rest
    is our own); in an update around `log_probs`, `backward` and the optimizer's step. Policies have random weights, so
    that nearly all episodes last to their end. Processor time of all threads; medians of the rounds after the first.
Expected: without pictures physics and the policy take two fifths of a rollout each, with pictures these take most,
    and our own code takes a few percent; of an update, passes take eight to nine tenths.
"""

import contextlib
import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import mujoco
import torch
import tyro
from numpy.typing import NDArray
from rich.progress import track

from experiments import libero_object, pixels, quickstart
from experiments.benchmarks.timed import print_table
from ript_envs.contract import Environment
from ript_ray.config.experiment import Experiment
from ript_ray.data.contexts import training_stream
from ript_ray.policies.base import Policy
from ript_ray.rl.learner import Learner
from ript_ray.rl.rollout import EnvironmentPool, roll_out
from ript_ray.rl.train import group_request
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.types import Group, Version

EXPERIMENTS = {module.EXPERIMENT.name: module.EXPERIMENT for module in (quickstart, pixels, libero_object)}

PHYSICS, PICTURES, PYTHON, POLICY, OWN = "physics", "pictures", "Python", "policy", "own"
FORWARD, BACKWARD, OPTIMIZER, REST = "forward", "backward", "optimizer", "rest"

ROLLOUT_PARTS = (PHYSICS, PYTHON, PICTURES, POLICY, OWN)
UPDATE_PARTS = (FORWARD, BACKWARD, OPTIMIZER, REST)

MUJOCO = {
    PHYSICS: ("mj_step", "mj_step1", "mj_step2", "mj_forward"),
    PICTURES: ("mjv_updateScene", "mjr_render", "mjr_readPixels"),
}
"""By part: functions of MuJoCo."""


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark.

    Attributes:
        experiments: Names of what is measured.
        rounds: Groups of each experiment, and updates, each of which trains all of them.
        num_steps: Environment steps of an episode; by default those of the experiment.
    """

    experiments: tuple[str, ...] = tuple(EXPERIMENTS)
    rounds: int = 5
    num_steps: int | None = None


@dataclass(frozen=True)
class Spent:
    """Seconds of processor time by part, and how many things they were spent on."""

    seconds: Mapping[str, float]
    count: int

    @property
    def total_s(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    def share(self, part: str) -> float:
        """Return the share of a part."""
        return self.seconds.get(part, 0.0) / self.total_s


class Stopwatch:
    """Seconds of processor time by part; within a part, another one may be timed, which is not part of the first."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._parts: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge the time of the block to a part."""
        self._charge()
        self._parts.append(name)
        try:
            yield
        finally:
            self._charge()
            self._parts.pop()

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time is charged to a part, wherever another one is being timed."""

        @functools.wraps(function)
        def timed(*arguments: object, **named: object) -> object:
            if not self._parts:
                return function(*arguments, **named)
            with self.part(name):
                return function(*arguments, **named)

        return timed

    def take(self, count: int) -> Spent:
        """Return the time since the last call, spent on so many things."""
        spent, self._seconds = Spent(self._seconds, count), defaultdict(float)
        return spent

    def _charge(self) -> None:
        now = time.process_time()
        if self._parts:
            self._seconds[self._parts[-1]] += now - self._since
        self._since = now


class WatchedEnvironment:
    """An environment whose methods are charged to the simulator's Python."""

    def __init__(self, environment: Environment, watch: Stopwatch):
        self._environment = environment
        self.num_steps = 0
        self.reset = watch.around(PYTHON, environment.reset)
        self.observe = watch.around(PYTHON, environment.observe)
        self.render = watch.around(PYTHON, environment.render)
        self.close = environment.close
        self._step = watch.around(PYTHON, environment.step)

    def step(self, action: NDArray[Any]) -> bool:
        """Execute an action, and count it."""
        self.num_steps += 1
        return bool(self._step(action))


@contextlib.contextmanager
def mujoco_watched(watch: Stopwatch) -> Iterator[None]:
    """Charge MuJoCo's functions to their parts."""
    with contextlib.ExitStack() as stack:
        for part, names in MUJOCO.items():
            for name in names:
                stack.enter_context(mock.patch.object(mujoco, name, watch.around(part, getattr(mujoco, name))))
        yield


def rollouts(experiment: Experiment, rounds: int) -> tuple[list[Spent], list[Group]]:
    """Return what each round of an experiment's rollouts took, and its group, after a first one."""
    torch.set_num_threads(1)
    watch = Stopwatch()
    parts = SavedPolicy.initial(experiment).components()
    policy, stream = parts.build_policy(), training_stream(experiment)
    groups, spent = list[Group](), list[Spent]()
    built: list[WatchedEnvironment] = []

    def make(task: str) -> WatchedEnvironment:
        built.append(WatchedEnvironment(parts.make_environment(task), watch))
        return built[-1]

    pool = EnvironmentPool(make)
    with mujoco_watched(watch), mock.patch.object(policy, "act", watch.around(POLICY, policy.act)):
        for index in range(1 + rounds):
            before = sum(environment.num_steps for environment in built)
            request = group_request(stream, 0, sampling=experiment.sampling, seed=index)  # of one task: one warm-up
            with watch.part(OWN):
                group = roll_out(request, policy, pool, max_steps=experiment.max_steps, version=Version(0))
            groups.append(replace(group, index=index))
            spent.append(watch.take(sum(environment.num_steps for environment in built) - before))
    pool.close()
    return spent[1:], groups[1:]


def updates(experiment: Experiment, groups: list[Group], rounds: int) -> list[Spent]:
    """Return what each of an experiment's updates on these groups took, after a first one."""
    watch = Stopwatch()
    parts = SavedPolicy.initial(experiment).components()

    def build_policy() -> Policy:
        policy = parts.build_policy()
        policy.log_probs = watch.around(FORWARD, policy.log_probs)  # type: ignore[method-assign]
        return policy

    ppo = replace(parts.ppo, parallel_passes=1)  # the stopwatch is of one thread
    learner = Learner(build_policy, ppo, seed=parts.seed, num_threads=1)
    spent = []
    with (
        mock.patch.object(torch.Tensor, "backward", watch.around(BACKWARD, torch.Tensor.backward)),
        mock.patch.object(torch.optim.AdamW, "step", watch.around(OPTIMIZER, torch.optim.AdamW.step)),
    ):
        for _ in range(1 + rounds):
            for group in groups:
                learner.receive(half_successful(group))
            with watch.part(REST):
                report = learner.update([group.index for group in groups])
            spent.append(watch.take(report.num_decisions * parts.ppo.num_iterations))
    return spent[1:]


def half_successful(group: Group) -> Group:
    """Let every second rollout be a success, so that gradients are not zero."""
    rollouts = tuple(replace(rollout, success=row % 2 == 0) for row, rollout in enumerate(group.rollouts))
    return replace(group, rollouts=rollouts)


def shortened(name: str, num_steps: int | None) -> Experiment:
    """Return an experiment, with episodes of so many steps if that is given."""
    experiment = EXPERIMENTS[name]
    return experiment if num_steps is None else replace(experiment, max_steps=num_steps)


def row_of(name: str, rounds: Sequence[Spent], parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return an experiment's milliseconds per counted thing, and each part's share."""
    milliseconds = statistics.median(1000 * spent.total_s / spent.count for spent in rounds)
    shares = (statistics.median(spent.share(part) for spent in rounds) for part in parts)
    return (name, f"{milliseconds:.3f}", *(f"{100 * share:.1f} %" for share in shares))


def main(options: Options) -> None:
    """Run the benchmark and print the tables."""
    rolled, updated = [], []
    for name in track(options.experiments, "experiments"):
        experiment = shortened(name, options.num_steps)
        rounds, groups = rollouts(experiment, options.rounds)
        rolled.append(row_of(name, rounds, ROLLOUT_PARTS))
        updated.append(row_of(name, updates(experiment, groups, options.rounds), UPDATE_PARTS))
    print_table("Rollouts", ("experiment", "ms/step", *ROLLOUT_PARTS), rolled)
    print_table("Updates", ("experiment", "ms/decision", *UPDATE_PARTS), updated)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
