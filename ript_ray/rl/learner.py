"""Central learner: buffers accepted groups, runs PPO over them and provides the new weights.

Source: RIPT-VLA Algorithm 1, lines 9, 10 and 16 to 18.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
import torch
from torch import nn
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from ript_ray.checks import require
from ript_ray.config.rl import PPO
from ript_ray.errors import DivergenceError
from ript_ray.optim import cosine, decay_groups, moments_of, partition, put_moments
from ript_ray.policies.base import Policy, ShardablePolicy
from ript_ray.rl.batch import assemble, equal_parts, minibatches, move_batch, parts_of, weigh_rollouts_equally
from ript_ray.rl.data_parallel import GradientSync, NoSync, ProcessGroup, Rendezvous, open_store
from ript_ray.rl.device import move_policy, prepare_device
from ript_ray.rl.encodings import Encodings
from ript_ray.rl.loss import SurrogateStats, clipped_surrogate
from ript_ray.rl.parallel_passes import ParallelPasses, Pass
from ript_ray.rl.parts import join_groups
from ript_ray.rl.row_exchange import SharedGroup, homes_of
from ript_ray.rl.weights import apply, snapshot
from ript_ray.seeding import Purpose, seed_of
from ript_ray.types import Arrays, Batch, Group, Version, Weights

RECOMPUTED_AT_ONCE = 256
"""Decisions whose log-probabilities are recomputed in one pass, unless `ppo.micro_batch_decisions` is given."""


@dataclass(frozen=True)
class UpdateReport:
    """Metrics of one update, as means over its optimizer steps.

    Attributes:
        loss: Clipped surrogate.
        grad_norm: Gradient norm before clipping.
        clip_fraction: Fraction of units outside the clip range.
        approx_kl: Estimated KL from the sampling policy, in nats per unit.
        mean_ratio: Mean probability ratio.
        first_approx_kl: Estimated KL from the recorded log-probabilities before the first step, over its minibatch, or
            over the whole batch if log-probabilities are recomputed. At lag 0 it is 0, up to rounding, where actors
            and learner compute alike.
        first_mean_ratio: Likewise, the mean probability ratio; 1 where they compute alike.
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
    first_approx_kl: float = math.nan
    first_mean_ratio: float = math.nan
    error: str | None = None


@dataclass(frozen=True)
class UpdateProgress:
    """Progress of an update.

    Attributes:
        num_passes: Passes of the policy over decisions finished in this update; it grows as long as it goes on.
        num_steps: Optimizer steps taken.
        total_steps: Optimizer steps of the whole update; 0 before its first.
        is_waiting: Whether the learner waits for the gradients of others.
    """

    num_passes: int = 0
    num_steps: int = 0
    total_steps: int = 0
    is_waiting: bool = False


class Learner:
    """Owns the policy being trained and its optimizer. A plain class; the Ray runtime wraps it in a remote actor."""

    def __init__(
        self,
        build_policy: Callable[[], Policy],
        ppo: PPO,
        *,
        seed: int,
        num_threads: int,
        parameter_groups: Mapping[str, str] | None = None,
        keep_group: Callable[[Group], None] | None = None,
        device: str = "cpu",
    ):
        """Build the policy and its optimizer.

        Args:
            build_policy: Builds the policy with its initial weights.
            ppo: Hyperparameters.
            seed: The experiment's seed.
            num_threads: Torch threads. Part of the experiment, not of the cluster, because it determines the order
                of floating-point sums.
            parameter_groups: Prefixes of the policy's parameter groups; see `PolicyConfig`.
            keep_group: Called with every group that is received.
            device: Where weights, gradients and moments are; groups stay in main memory until a step needs them.

        Raises:
            ConfigError: `ppo` names a group that has no parameter, or there is no such device.
        """
        self._policy = move_policy(build_policy(), device)
        self._device = device
        self._ppo = ppo
        self._seed = seed
        self._num_threads = num_threads
        self._keep_group = keep_group
        self._version = Version(0)
        self._groups: dict[int, SharedGroup] = {}
        self._store: Store | None = None
        self._progress = UpdateProgress()
        self._sync: GradientSync = NoSync()
        self._encodings = Encodings(self._policy, ppo.encoding_cache_bytes if ppo.num_passes > 1 else 0)
        self._parallel: ParallelPasses | None = None
        if ppo.parallel_passes > 1 and device == "cpu":
            self._parallel = ParallelPasses(ppo.parallel_passes, num_threads=num_threads)
        trainable, prefixes = self._policy.trainable(), parameter_groups or {}
        self._optimizer = torch.optim.AdamW(
            [
                {**part, "group": group}
                for group, parameters in partition(trainable, ppo.learning_rates, prefixes).items()
                for part in decay_groups(parameters.items(), ppo.weight_decay)
            ]
        )
        self._clipped_together = [
            ([*parameters.values()], ppo.max_grad_norms.get(group, ppo.max_grad_norm))
            for group, parameters in partition(trainable, ppo.max_grad_norms, prefixes).items()
        ]

    def receive(self, *parts: Group) -> SharedGroup:
        """Buffer the parts of a group until an update uses it; returns what other learners need of it."""
        group = join_groups(parts)
        if self._keep_group is not None:
            self._keep_group(group)
        shared = self._groups[group.index] = SharedGroup(group, self._sync.rank)
        return shared.outline

    def receive_outline(self, outline: SharedGroup) -> None:
        """Buffer what another learner has returned of a group that it has received."""
        self._groups[outline.group.index] = outline

    def update(self, indices: Sequence[int]) -> UpdateReport:
        """Run PPO over the received groups `indices`, in that order, and increment the version.

        If a loss, a gradient norm or a weight is not finite, weights and moments are rolled back to their values
        before the update, and the report carries the error.
        """
        torch.set_num_threads(self._num_threads)
        started = time.perf_counter()
        batch = self._take(indices)  # lines 9 and 10
        num_minibatches = -(-batch.num_rollouts // self._ppo.minibatch_rollouts)
        self._progress = UpdateProgress(total_steps=self._ppo.num_iterations * num_minibatches)
        steps: list[tuple[float, ...]] = []
        before = self._snapshot()
        for part in self._optimizer.param_groups:
            part["lr"] = learning_rate_of(self._ppo, self._version + 1, part["group"])
        first: tuple[float, float] | None = None
        try:
            if self._ppo.recompute_log_probs:
                batch, first = self._recompute(batch)
            for iteration in range(self._ppo.num_iterations):  # line 16
                order = np.random.default_rng(seed_of(self._seed, Purpose.MINIBATCHES, self._version, iteration))
                for minibatch in minibatches(batch, self._ppo.minibatch_rollouts, order):
                    steps.append(self._step(minibatch))  # line 17
                    self._progress = replace(self._progress, num_steps=len(steps))
            self._require_finite("the weights are not finite", *self._policy.trainable().values())
            error_message = None
        except DivergenceError as error:
            self._rollback(before)
            error_message = str(error)
        finally:
            self._encodings.clear()
        self._version = Version(self._version + 1)
        return UpdateReport(
            **_means(steps, first),
            num_optimizer_steps=len(steps),
            num_decisions=len(batch.rollout_N),
            learn_s=time.perf_counter() - started,
            error=error_message,
        )

    def progress(self) -> UpdateProgress:
        """Progress of the running or the last update; may be read from another thread."""
        return replace(self._progress, is_waiting=self._sync.is_waiting)

    def weights(self) -> Weights:
        """Return a snapshot of the current weights."""
        return snapshot(self._policy, self._version)

    def checksum(self) -> str:
        """Return the checksum of the current weights."""
        return self.weights().checksum

    def state(self) -> Arrays:
        """Return a copy of the optimizer's moments: with the weights, all that the next update depends on."""
        return moments_of(self._optimizer, self._policy.trainable())

    def restore(self, version: Version, state: Arrays, weights: Weights | None = None) -> None:
        """Restore the optimizer's moments and, if given, the weights; otherwise the policy must hold the matching ones.

        Raises:
            CheckpointError: A name is unknown or missing, or a shape differs.
            WeightsError: The weights are corrupt, or do not fit the policy.
        """
        if weights is not None:
            apply(weights, self._policy)
        put_moments(self._optimizer, self._policy.trainable(), state)
        self._version = version

    def open_store(self, host: str) -> Rendezvous:
        """Open the rendezvous store of the learners at this node's address."""
        meeting, self._store = open_store(host)
        return meeting

    def join(
        self, meeting: Rendezvous, *, host: str, rank: int, size: int, timeout_s: float, shard_on: str | None = None
    ) -> None:
        """Share every update with `size` - 1 other learners; blocks until all have joined; see `ProcessGroup`.

        With `shard_on`, share the frozen weights of the policy as well, on that device. The learner must have been
        built on the CPU: a whole policy may not fit there.
        """
        if shard_on is not None:
            prepare_device(shard_on)
            self._device = shard_on
        store = self._store or TCPStore(meeting.host, meeting.port, timeout=timedelta(seconds=timeout_s))
        sync = self._sync = ProcessGroup(
            store, meeting, host=host, rank=rank, size=size, timeout_s=timeout_s, device=self._device
        )
        if shard_on is not None:
            require(isinstance(self._policy, ShardablePolicy), f"{type(self._policy).__name__} has no shard_units")
            assert isinstance(self._policy, ShardablePolicy)
            sync.shard(self._policy)
            self._encodings = Encodings(self._policy, 0)  # all learners run the same units: none may skip what it knows
            self._parallel = None  # and in the same order
            move_policy(self._policy, shard_on)  # what is not sharded

    def _take(self, indices: Sequence[int]) -> Batch:
        groups = [self._groups.pop(index) for index in indices]
        return self._sync.spread(assemble([each.group for each in groups]), homes_of(groups))

    def _recompute(self, batch: Batch) -> tuple[Batch, tuple[float, float]]:
        """Replace the recorded log-probabilities by the learner's own; return KL and mean ratio between both, too."""
        limit = self._ppo.micro_batch_decisions or RECOMPUTED_AT_ONCE
        log_probs_NU = torch.zeros_like(batch.old_log_probs_NU)
        own = log_probs_NU[self._sync.rows]
        scored = [own[:0]]
        with torch.no_grad():
            for part in parts_of(self._sync.own(batch), limit, num_parts=self._sync.num_parts(batch, limit)):
                record = self._encodings.record_of(move_batch(part, self._device))
                scored.append(self._policy.log_probs(record).to(log_probs_NU))
                self._count_pass()
        own.copy_(torch.cat(scored)[: len(own)])
        self._sync.all_reduce([log_probs_NU])
        _, stats = self._surrogate(batch, log_probs_NU)
        return replace(batch, old_log_probs_NU=log_probs_NU), (stats.approx_kl.item(), stats.mean_ratio.item())

    def _step(self, minibatch: Batch) -> tuple[float, ...]:
        if self._ppo.loss_average == "rollout":
            minibatch = weigh_rollouts_equally(minibatch)
        count = minibatch.valid_NU.sum().clamp(min=1).to(self._device)
        self._optimizer.zero_grad(set_to_none=True)
        metrics = torch.zeros(4, device=self._device)
        parameters = [*self._policy.trainable().values()]
        own = move_batch(self._sync.own(minibatch), self._device)
        limit = self._ppo.micro_batch_decisions
        parts = [*parts_of(own, limit, num_parts=self._sync.num_parts(minibatch, limit))]
        for part in parts:
            if self._parallel is not None:
                shares = equal_parts(part, self._ppo.parallel_passes)
                metrics += self._parallel.run([self._pass_over(share, count) for share in shares], parameters)
            else:
                loss, of_part = self._pass_over(part, count)()
                if part is parts[-1]:
                    self._sync.begin_last_pass(parameters)
                loss.backward()
                metrics += of_part
            self._count_pass()
        self._sync.sum_gradients(parameters, metrics)
        norms = [nn.utils.clip_grad_norm_(parameters, limit) for parameters, limit in self._clipped_together]
        grad_norm = torch.stack(norms).norm()
        problem = f"the loss is {metrics[0]:g}, the gradient norm is {grad_norm:g}: not finite"
        self._require_finite(problem, metrics[0], grad_norm)
        self._optimizer.step()
        return (*metrics.tolist(), float(grad_norm))

    def _pass_over(self, part: Batch, count: torch.Tensor) -> Pass:
        """Return the forward pass over a part, whose encodings are looked up already: that has an order."""
        return functools.partial(self._loss, part, self._encodings.record_of(part), count)

    def _loss(
        self, part: Batch, record: Mapping[str, torch.Tensor], count: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss, stats = self._surrogate(part, self._policy.log_probs(record), count)
        return loss, torch.stack([loss.detach(), stats.clip_fraction, stats.approx_kl, stats.mean_ratio])

    def _surrogate(
        self, batch: Batch, log_probs_NU: torch.Tensor, count: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, SurrogateStats]:
        return clipped_surrogate(
            log_probs_NU,
            batch.old_log_probs_NU,
            advantages_N=batch.advantages_N,
            valid_NU=batch.valid_NU,
            clip_low=self._ppo.clip_low,
            clip_high=self._ppo.clip_high,
            count=count,
        )

    def _count_pass(self) -> None:
        self._progress = replace(self._progress, num_passes=self._progress.num_passes + 1)

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


def learning_rate_of(ppo: PPO, update: int, group: str = "") -> float:
    """Return the learning rate of an update, counted from 1. Source: authors' code (torch's CosineAnnealingLR).

    Args:
        ppo: Hyperparameters.
        update: Number of the update.
        group: One of the parameter groups with a learning rate of their own.
    """
    if group:
        return ppo.learning_rates[group] * (learning_rate_of(ppo, update) / ppo.learning_rate)
    if ppo.final_learning_rate is None:
        return ppo.learning_rate
    moved = (update - 1) // ppo.schedule_every * ppo.schedule_every
    return cosine(ppo.learning_rate, ppo.final_learning_rate, min(1.0, moved / ppo.schedule_updates))


def _means(steps: Sequence[tuple[float, ...]], first: tuple[float, float] | None) -> dict[str, float]:
    """Return the mean of each metric over optimizer steps, NaN if there were none, and KL and ratio before them."""
    names = ("loss", "clip_fraction", "approx_kl", "mean_ratio", "grad_norm")
    means = torch.tensor(steps).mean(0).tolist() if steps else [math.nan] * len(names)
    before = first or (steps[0][2:4] if steps else (math.nan, math.nan))
    return dict(zip((*names, "first_approx_kl", "first_mean_ratio"), (*means, *before), strict=True))
