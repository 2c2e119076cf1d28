"""Times and memory of an experiment's parts, measured on this machine in a few seconds."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ript_envs.contract import Environment, Observation
from ript_ray.config.experiment import Experiment
from ript_ray.data.contexts import draw_contexts
from ript_ray.planning.workload import Workload
from ript_ray.policies.base import Decisions, Policy
from ript_ray.rl.device import move_policy
from ript_ray.rl.learner import Learner
from ript_ray.rl.process_usage import process_usage
from ript_ray.rl.protocols import Components
from ript_ray.runtime.cluster import Cluster
from ript_ray.seeding import Purpose
from ript_ray.types import Context, Group, Rollout, Version

NUM_STEPS = 40
"""Environment steps that are timed."""

NUM_QUERIES = 3
"""Queries that are timed, after one that warms up."""

ENOUGH_S, ENOUGH_DECISIONS = 1.0, 32
"""A learner's step that lasts so long, over so many decisions, is long enough to count by, if a minibatch has more."""


@dataclass(frozen=True)
class EnvironmentCost:
    """What an environment takes.

    Attributes:
        first_bytes: Memory of the first one of a process, with the simulator's libraries.
        more_bytes: Memory of a further one of the same task.
        reset_s: A reset.
        step_s: A step.
        observe_s: An observation, with the images that the policy reads.
    """

    first_bytes: int
    more_bytes: int
    reset_s: float
    step_s: float
    observe_s: float


@dataclass(frozen=True)
class PolicyCost:
    """What a policy takes on the devices of its processes.

    Attributes:
        actor_device: Where it acted.
        learner_device: Where it learned.
        query_s: A query for all rollouts of a request.
        decision_s: An optimizer step, per decision of its minibatch.
    """

    actor_device: str
    learner_device: str
    query_s: float
    decision_s: float


def measure_environment(experiment: Experiment) -> tuple[EnvironmentCost, Context, Observation]:
    """Step an environment of the first task; return its cost, the context it began at, and what it observed."""
    benchmark = experiment.benchmark.with_cameras(experiment.policy.cameras)
    task = experiment.tasks[0]
    (context,) = draw_contexts(
        benchmark, (task,), num_per_task=1, seed=experiment.seed, purpose=Purpose.TRAINING_CONTEXTS
    )
    state = np.array(context.initial_state)
    sizes = [process_usage().rss_bytes]
    environments: list[Environment] = []
    for _ in range(2):
        environments.append(benchmark.make(task))
        environments[-1].reset(state)
        observation = environments[-1].observe()
        sizes.append(process_usage().rss_bytes)
    first = environments[0]
    reset_s = _duration(lambda: first.reset(state))
    action = np.zeros(benchmark.spec.action_dim, np.float32)
    durations_s: list[float] = []
    for _ in range(NUM_STEPS):
        started = time.perf_counter()
        is_solved = first.step(action)
        durations_s.append(time.perf_counter() - started)
        if is_solved:
            break
    cost = EnvironmentCost(
        first_bytes=sizes[1] - sizes[0],
        more_bytes=sizes[2] - sizes[1],
        reset_s=reset_s,
        step_s=statistics.median(durations_s),  # the machine may have other work
        observe_s=_duration(environments[1].observe),
    )
    for environment in environments:
        environment.close()
    return cost, context, observation


def measure_policy(
    work: Workload, parts: Components, cluster: Cluster, context: Context, observation: Observation
) -> PolicyCost:
    """Query the policy for a request's rollouts, and take learner's steps on what it decided."""
    actor_device, learner_device = (_available(device) for device in (cluster.actor_device, cluster.learner_device))
    policy = move_policy(parts.build_policy(), actor_device)
    decision, query_s = _query(policy, context.instruction, observation, work.rollouts_per_request)
    del policy  # before the learner builds another one
    return PolicyCost(actor_device, learner_device, query_s, _learner_s(work, parts, learner_device, decision))


def _query(policy: Policy, instruction: str, observation: Observation, num_rows: int) -> tuple[Rollout, float]:
    """Return what the policy decides at an observation, as a rollout of this decision alone, and how long that took."""
    observations = {name: np.stack([value] * num_rows) for name, value in observation.items()}
    torch.set_num_threads(1)  # as in an actor

    def query() -> Decisions:
        generators = [np.random.default_rng(row) for row in range(num_rows)]
        return policy.act(observations, [instruction] * num_rows, generators)

    made = query()
    record = {name: array[:1] for name, array in made.record.items()}
    decision = Rollout(True, 1, record, made.log_probs_BU[:1], made.valid_BU[:1])
    return decision, min(_duration(query) for _ in range(NUM_QUERIES))


def _learner_s(work: Workload, parts: Components, device: str, decision: Rollout) -> float:
    """Return how long an optimizer step takes per decision, of minibatches that double until one is long enough."""
    whole = work.minibatch_rollouts * work.decisions_per_rollout
    learner = Learner(
        parts.build_policy,
        replace(parts.ppo, num_iterations=1, minibatch_rollouts=2**31, recompute_log_probs=False),
        seed=parts.seed,
        num_threads=parts.learner_threads,
        parameter_groups=parts.parameter_groups,
        device=device,
    )

    def step(num_decisions: int) -> float:
        half = _repeated(decision, num_decisions // 2)
        learner.receive(Group(0, Version(0), (half, replace(half, success=False))))
        return learner.update([0]).learn_s

    num_decisions = 2
    while True:
        seconds = min(step(num_decisions), step(num_decisions))
        if num_decisions >= whole or (num_decisions >= ENOUGH_DECISIONS and seconds > ENOUGH_S):
            return seconds / num_decisions
        num_decisions *= 2


def _repeated(decision: Rollout, num_decisions: int) -> Rollout:
    return Rollout(
        success=True,
        num_steps=num_decisions,
        record={name: np.repeat(array, num_decisions, axis=0) for name, array in decision.record.items()},
        log_probs_TU=np.repeat(decision.log_probs_TU, num_decisions, axis=0),
        valid_TU=np.repeat(decision.valid_TU, num_decisions, axis=0),
    )


def _available(device: str) -> str:
    """The device of a process, or the CPU where this machine has none."""
    return device if device == "cpu" or torch.cuda.is_available() else "cpu"


def _duration(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
