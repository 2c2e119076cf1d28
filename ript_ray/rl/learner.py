"""The central learner: keeps the groups of the present update, runs PPO over them, hands out weights.

Source: RIPT-VLA Algorithm 1, lines 9 to 18.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ript_ray.config.rl import PPO
from ript_ray.errors import DivergenceError
from ript_ray.optim import decay_groups, moments_of, put_moments
from ript_ray.policies.base import Policy
from ript_ray.rl.batch import assemble, minibatches, take
from ript_ray.rl.data_parallel import GradientSync, NoSync, ProcessGroup
from ript_ray.rl.loss import clipped_surrogate
from ript_ray.rl.weights import snapshot
from ript_ray.seeding import Purpose, seed_of
from ript_ray.types import Arrays, Batch, Group, Version, Weights


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
        error: Why the update was skipped, with weights and moments as they were before it, or none.
            Figures are then means over the steps before the problem, NaN where there was none.
    """

    loss: float
    grad_norm: float
    clip_fraction: float
    approx_kl: float
    mean_ratio: float
    num_optimizer_steps: int
    num_decisions: int
    learn_s: float
    error: str | None = None


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
        self._store: TCPStore | None = None
        self._sync: GradientSync = NoSync()
        self._optimizer = torch.optim.AdamW(
            decay_groups(self._policy.trainable().items(), ppo.weight_decay), lr=ppo.learning_rate
        )

    def receive(self, group: Group) -> None:
        """Keep a group until an update asks for it."""
        self._groups[group.index] = group

    def update(self, indices: Sequence[int]) -> UpdateReport:
        """Run PPO over the received groups named by `indices`, in that order; the version grows by one.

        Where a loss, a gradient or a weight turns out not to be finite, everything is put back to what it was
        before the update, and the report says so.
        """
        torch.set_num_threads(self._num_threads)
        started = time.perf_counter()
        batch = assemble([self._groups.pop(index) for index in indices])
        steps: list[tuple[float, ...]] = []
        before = self._snapshot()
        for group in self._optimizer.param_groups:
            group["lr"] = self._ppo.learning_rate_of(self._version + 1)
        try:
            for iteration in range(self._ppo.num_iterations):
                order = np.random.default_rng(seed_of(self._seed, Purpose.MINIBATCHES, self._version, iteration))
                for minibatch in minibatches(batch, self._ppo.minibatch_rollouts, order):
                    steps.append(self._step(minibatch))
            self._refuse_unless_finite("weights", *self._policy.trainable().values())
            error_message = None
        except DivergenceError as error:
            self._rollback(before)
            error_message = str(error)
        self._version = Version(self._version + 1)
        return UpdateReport(
            **_means(steps),
            num_optimizer_steps=len(steps),
            num_decisions=len(batch.rollout_N),
            learn_s=time.perf_counter() - started,
            error=error_message,
        )

    def weights(self) -> Weights:
        """The present weights."""
        return snapshot(self._policy, self._version)

    def state(self) -> Arrays:
        """The optimiser's moments, copied: with the weights, all that the next update depends on."""
        return moments_of(self._optimizer, self._policy.trainable())

    def restore(self, version: Version, state: Arrays) -> None:
        """Take over the moments of `state`; the policy must hold the weights of that moment already.

        Raises:
            CheckpointError: A name is unknown or missing, or a shape differs.
        """
        put_moments(self._optimizer, self._policy.trainable(), state)
        self._version = version

    def open_store(self, host: str) -> tuple[str, int]:
        """Open the store in which the learners find each other, at this node's address; returns host and port."""
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        return host, self._store.port

    def join(self, address: tuple[str, int], *, rank: int, size: int, timeout_s: float) -> None:
        """Share every update with `size` - 1 other learners; returns once all are there."""
        host, port = address
        store = self._store or TCPStore(host, port, timeout=timedelta(seconds=timeout_s))
        on_gpu = any(parameter.is_cuda for parameter in self._policy.trainable().values())
        self._sync = ProcessGroup(store, rank=rank, size=size, on_gpu=on_gpu, timeout_s=timeout_s)

    def _step(self, minibatch: Batch) -> tuple[float, ...]:
        ppo = self._ppo
        rows = take(minibatch, self._sync.rows)
        loss, stats = clipped_surrogate(
            self._policy.log_probs(rows.record),
            rows.old_log_probs_NU,
            advantages_N=rows.advantages_N,
            valid_NU=rows.valid_NU,
            clip_low=ppo.clip_low,
            clip_high=ppo.clip_high,
            count=minibatch.valid_NU.sum().clamp(min=1),
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = self._policy.trainable().values()
        figures = torch.stack([loss.detach(), stats.clip_fraction, stats.approx_kl, stats.mean_ratio])
        self._sync.all_reduce([figures, *(parameter.grad for parameter in parameters if parameter.grad is not None)])
        grad_norm = nn.utils.clip_grad_norm_(parameters, ppo.max_grad_norm)
        self._refuse_unless_finite("loss and gradient norm", figures[0], grad_norm)
        self._optimizer.step()
        return (*figures.tolist(), float(grad_norm))

    def _refuse_unless_finite(self, what: str, *tensors: torch.Tensor) -> None:
        if not all(tensor.isfinite().all() for tensor in tensors):
            values = ", ".join(f"{tensor.item():g}" for tensor in tensors if tensor.ndim == 0)
            raise DivergenceError(f"update {self._version + 1}: {what} {values or ''} not finite".replace("  ", " "))

    def _snapshot(self) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """Copies of all that an update changes, parameter by parameter."""
        return [
            (
                parameter.detach().clone(),
                {part: value.clone() for part, value in self._optimizer.state.get(parameter, {}).items()},
            )
            for parameter in self._policy.trainable().values()
        ]

    def _rollback(self, saved: list[tuple[torch.Tensor, dict[str, torch.Tensor]]]) -> None:
        with torch.no_grad():
            for parameter, (value, moments) in zip(self._policy.trainable().values(), saved, strict=True):
                parameter.copy_(value)
                self._optimizer.state[parameter] = moments


def _means(steps: Sequence[tuple[float, ...]]) -> dict[str, float]:
    """Means over optimiser steps by name; NaN where there was none."""
    names = ("loss", "clip_fraction", "approx_kl", "mean_ratio", "grad_norm")
    means = torch.tensor(steps).mean(0).tolist() if steps else [math.nan] * len(names)
    return dict(zip(names, means, strict=True))
