"""Central learner: buffers accepted groups, runs PPO over them and provides the new weights.

Source: RIPT-VLA Algorithm 1, lines 9, 10 and 16 to 18.
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
from ript_ray.optim import cosine, decay_groups, moments_of, put_moments
from ript_ray.policies.base import Policy
from ript_ray.rl.batch import assemble, minibatches, select_rows
from ript_ray.rl.data_parallel import GradientSync, NoSync, ProcessGroup
from ript_ray.rl.loss import clipped_surrogate
from ript_ray.rl.weights import snapshot
from ript_ray.seeding import Purpose, seed_of
from ript_ray.types import Arrays, Batch, Group, Version, Weights


@dataclass(frozen=True)
class UpdateReport:
    """Metrics of one update, as means over its optimizer steps.

    Attributes:
        loss: Clipped surrogate.
        grad_norm: Gradient norm before clipping.
        clip_fraction: Fraction of units outside the clip range.
        approx_kl: Estimated KL from the sampling policy, in nats per unit.
        mean_ratio: Mean probability ratio.
        num_optimizer_steps: Optimizer steps taken.
        num_decisions: Policy queries in the batch.
        learn_s: Wall time.
        error: Why the update was skipped and rolled back, or None. The means of a skipped update are over the
            steps before the failure, NaN if there were none.
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
    """Owns the policy being trained and its optimizer. A plain class; the Ray runtime wraps it in a remote actor."""

    def __init__(
        self,
        build_policy: Callable[[], Policy],
        ppo: PPO,
        *,
        seed: int,
        num_threads: int,
        keep_group: Callable[[Group], None] | None = None,
    ):
        """Build the policy and its optimizer.

        Args:
            build_policy: Builds the policy with its initial weights.
            ppo: Hyperparameters.
            seed: The experiment's seed.
            num_threads: Torch threads. Part of the experiment, not of the cluster, because it determines the order
                of floating-point sums.
            keep_group: Called with every group that is received.
        """
        self._policy = build_policy()
        self._ppo = ppo
        self._seed = seed
        self._num_threads = num_threads
        self._keep_group = keep_group
        self._version = Version(0)
        self._groups: dict[int, Group] = {}
        self._store: TCPStore | None = None
        self._sync: GradientSync = NoSync()
        self._optimizer = torch.optim.AdamW(
            decay_groups(self._policy.trainable().items(), ppo.weight_decay), lr=ppo.learning_rate
        )

    def receive(self, group: Group) -> None:
        """Buffer a group until an update uses it."""
        self._groups[group.index] = group
        if self._keep_group is not None:
            self._keep_group(group)

    def update(self, indices: Sequence[int]) -> UpdateReport:
        """Run PPO over the received groups `indices`, in that order, and increment the version.

        If a loss, a gradient norm or a weight is not finite, weights and moments are rolled back to their values
        before the update, and the report carries the error.
        """
        torch.set_num_threads(self._num_threads)
        started = time.perf_counter()
        batch = assemble([self._groups.pop(index) for index in indices])  # lines 9 and 10
        steps: list[tuple[float, ...]] = []
        before = self._snapshot()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate_of(self._ppo, self._version + 1)
        try:
            for iteration in range(self._ppo.num_iterations):  # line 16
                order = np.random.default_rng(seed_of(self._seed, Purpose.MINIBATCHES, self._version, iteration))
                for minibatch in minibatches(batch, self._ppo.minibatch_rollouts, order):
                    steps.append(self._step(minibatch))  # line 17
            self._require_finite("the weights are not finite", *self._policy.trainable().values())
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
        """Return a snapshot of the current weights."""
        return snapshot(self._policy, self._version)

    def state(self) -> Arrays:
        """Return a copy of the optimizer's moments: with the weights, all that the next update depends on."""
        return moments_of(self._optimizer, self._policy.trainable())

    def restore(self, version: Version, state: Arrays) -> None:
        """Restore the optimizer's moments; the policy must already hold the matching weights.

        Raises:
            CheckpointError: A name is unknown or missing, or a shape differs.
        """
        put_moments(self._optimizer, self._policy.trainable(), state)
        self._version = version

    def open_store(self, host: str) -> tuple[str, int]:
        """Open the rendezvous store of the learners at this node's address; returns host and port."""
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        return host, self._store.port

    def join(self, address: tuple[str, int], *, rank: int, size: int, timeout_s: float) -> None:
        """Share every update with `size` - 1 other learners; blocks until all have joined."""
        host, port = address
        store = self._store or TCPStore(host, port, timeout=timedelta(seconds=timeout_s))
        on_gpu = any(parameter.is_cuda for parameter in self._policy.trainable().values())
        self._sync = ProcessGroup(store, rank=rank, size=size, on_gpu=on_gpu, timeout_s=timeout_s)

    def _step(self, minibatch: Batch) -> tuple[float, ...]:
        ppo = self._ppo
        rows = select_rows(minibatch, self._sync.rows)
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
        metrics = torch.stack([loss.detach(), stats.clip_fraction, stats.approx_kl, stats.mean_ratio])
        self._sync.all_reduce([metrics, *(parameter.grad for parameter in parameters if parameter.grad is not None)])
        grad_norm = nn.utils.clip_grad_norm_(parameters, ppo.max_grad_norm)
        problem = f"the loss is {metrics[0]:g}, the gradient norm is {grad_norm:g}: not finite"
        self._require_finite(problem, metrics[0], grad_norm)
        self._optimizer.step()
        return (*metrics.tolist(), float(grad_norm))

    def _require_finite(self, problem: str, *tensors: torch.Tensor) -> None:
        if not all(tensor.isfinite().all() for tensor in tensors):
            raise DivergenceError(f"update {self._version + 1}: {problem}")

    def _snapshot(self) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """Copy the value and the moments of every parameter, for a rollback."""
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


def learning_rate_of(ppo: PPO, update: int) -> float:
    """Return the learning rate of an update, counted from 1. Source: authors' code (torch's CosineAnnealingLR)."""
    if ppo.final_learning_rate is None:
        return ppo.learning_rate
    moved = (update - 1) // ppo.schedule_every * ppo.schedule_every
    return cosine(ppo.learning_rate, ppo.final_learning_rate, min(1.0, moved / ppo.schedule_updates))


def _means(steps: Sequence[tuple[float, ...]]) -> dict[str, float]:
    """Return the mean of each metric over optimizer steps; NaN if there were none."""
    names = ("loss", "clip_fraction", "approx_kl", "mean_ratio", "grad_norm")
    means = torch.tensor(steps).mean(0).tolist() if steps else [math.nan] * len(names)
    return dict(zip(names, means, strict=True))
