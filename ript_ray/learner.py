"""The central learner: keeps the groups of the present update, runs PPO over them, hands out weights.

Source: RIPT-VLA Algorithm 1, lines 9 to 18.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ript_ray.batch import assemble, minibatches
from ript_ray.config import PPO
from ript_ray.errors import CheckpointError, DivergenceError
from ript_ray.loss import clipped_surrogate
from ript_ray.optimizer import decay_groups
from ript_ray.policies.contract import Policy
from ript_ray.seeding import Purpose, seed_of
from ript_ray.types import Arrays, Batch, Group, Version, Weights
from ript_ray.weights import snapshot


@dataclass(frozen=True)
class UpdateReport:
    """Figures of one update; means over its optimiser steps.

    Attributes:
        loss: Clipped surrogate.
        grad_norm: Norm of the gradient before clipping.
        clip_fraction: Share of units outside the clip range.
        approx_kl: Estimated KL from the sampling policy, in nats per unit.
        mean_ratio: Mean probability ratio.
        num_optimizer_steps: Optimiser steps taken.
        num_decisions: Policy queries learned from.
        learn_s: Seconds of wall time.
    """

    loss: float
    grad_norm: float
    clip_fraction: float
    approx_kl: float
    mean_ratio: float
    num_optimizer_steps: int
    num_decisions: int
    learn_s: float


class Learner:
    """Owns the policy that trains and its optimiser. A plain class: Ray wraps it where it is started."""

    def __init__(self, build_policy: Callable[[], Policy], ppo: PPO, *, seed: int, num_threads: int):
        """Build the policy to train.

        Args:
            build_policy: Makes the policy with the weights to start from.
            ppo: Hyperparameters.
            seed: The experiment's seed.
            num_threads: Threads torch may use. Part of the experiment, not of the cluster: it decides
                the order of floating-point sums.
        """
        self._policy = build_policy()
        self._ppo = ppo
        self._seed = seed
        self._num_threads = num_threads
        self._version = Version(0)
        self._groups: dict[int, Group] = {}
        self._optimizer = torch.optim.AdamW(
            decay_groups(self._policy.trainable().items(), ppo.weight_decay), lr=ppo.learning_rate
        )

    def receive(self, group: Group) -> None:
        """Keep a group until an update asks for it."""
        self._groups[group.index] = group

    def update(self, indices: Sequence[int]) -> UpdateReport:
        """Run PPO over the received groups named by `indices`, in that order; the version grows by one."""
        torch.set_num_threads(self._num_threads)
        started = time.perf_counter()
        batch = assemble([self._groups.pop(index) for index in indices])
        steps = []
        for iteration in range(self._ppo.num_iterations):
            order = np.random.default_rng(seed_of(self._seed, Purpose.MINIBATCHES, self._version, iteration))
            for minibatch in minibatches(batch, self._ppo.minibatch_rollouts, order):
                steps.append(self._step(minibatch))
        self._version = Version(self._version + 1)
        loss, grad_norm, clip_fraction, approx_kl, mean_ratio = torch.tensor(steps).mean(0).tolist()
        return UpdateReport(
            loss=loss,
            grad_norm=grad_norm,
            clip_fraction=clip_fraction,
            approx_kl=approx_kl,
            mean_ratio=mean_ratio,
            num_optimizer_steps=len(steps),
            num_decisions=len(batch.rollout_N),
            learn_s=time.perf_counter() - started,
        )

    def weights(self) -> Weights:
        """The present weights."""
        return snapshot(self._policy, self._version)

    def state(self) -> Arrays:
        """The optimiser's moments, copied: with the weights, all that the next update depends on."""
        return {
            f"{part}/{name}": value.numpy().copy()
            for name, parameter in self._policy.trainable().items()
            for part, value in self._optimizer.state.get(parameter, {}).items()
        }

    def restore(self, version: Version, state: Arrays) -> None:
        """Take over the moments of `state`; the policy must hold the weights of that moment already.

        Raises:
            CheckpointError: A name is unknown or a shape differs.
        """
        parameters = self._policy.trainable()
        for key, array in state.items():
            part, name = key.split("/", 1)
            if name not in parameters or (array.ndim and array.shape != tuple(parameters[name].shape)):
                raise CheckpointError(f"the optimiser's state does not fit the policy: {key} of shape {array.shape}")
            self._optimizer.state[parameters[name]][part] = torch.from_numpy(array.copy())
        self._version = version

    def _step(self, minibatch: Batch) -> tuple[float, ...]:
        ppo = self._ppo
        loss, stats = clipped_surrogate(
            self._policy.log_probs(minibatch.record),
            minibatch.old_log_probs_NU,
            advantages_N=minibatch.advantages_N,
            valid_NU=minibatch.valid_NU,
            clip_low=ppo.clip_low,
            clip_high=ppo.clip_high,
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(self._policy.trainable().values(), ppo.max_grad_norm)
        if not (loss.isfinite() and grad_norm.isfinite()):
            raise DivergenceError(
                f"update {self._version + 1}: loss {loss.item()} and gradient norm {grad_norm.item()} are not both "
                "finite; lower ppo.learning-rate"
            )
        self._optimizer.step()
        figures = (loss.detach(), grad_norm, stats.clip_fraction, stats.approx_kl, stats.mean_ratio)
        return tuple(float(figure) for figure in figures)
