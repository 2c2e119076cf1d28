"""Data types without logic: small frozen values that flow Context -> Rollout -> Group -> Batch -> Weights.

Shape suffixes, used throughout: G groups, K rollouts of a group, B rows of a policy call,
N decisions (policy queries) of a batch, U scored units of a decision (tokens or chunk steps),
C actions of a chunk, A dimensions of an action, V vocabulary size, D hidden size.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NewType

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch  # most of these are needed where nothing is computed

Arrays = dict[str, NDArray[np.generic]]
"""Named arrays that share their first dimension."""

Seed = tuple[int, ...]
"""Entropy of one random stream, e.g. (experiment seed, purpose, update, group, member)."""

Version = NewType("Version", int)
"""Number of learner updates, including skipped ones; version 0 is the initial policy of post-training."""


RIPT = "ript"
"""Name of the last stage of training: post-training. The stages before it are the policy's own."""


@dataclass(frozen=True)
class Context:
    """Initial condition of an episode.

    Attributes:
        task: Name of the task in its benchmark.
        instruction: Language instruction for the policy.
        initial_state: Initial simulator state, in the benchmark's own format.
    """

    task: str
    instruction: str
    initial_state: tuple[float, ...]


@dataclass(frozen=True)
class Rollout:
    """One episode.

    Attributes:
        success: Whether the task was solved; the reward is 1.0 or 0.0.
        num_steps: Environment steps taken.
        record: What the learner needs to rescore the T policy queries, T rows per array.
        log_probs_TU: Log-probability of each unit under the sampling policy, float32.
        valid_TU: Mask of the units that count in the loss, bool.
            All three are empty if the rollout is not for training (evaluation).
    """

    success: bool
    num_steps: int
    record: Arrays = field(default_factory=dict)
    log_probs_TU: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    valid_TU: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), np.bool_))


@dataclass(frozen=True)
class RolloutRequest:
    """Work item for one rollout actor: the rollouts of one group, or several evaluation episodes.

    Attributes:
        index: Position in the stream of requests; the resulting group has the same index.
        contexts: One per rollout; a training group repeats one context K times, up to the noise on rollouts.
        seeds: One per rollout, the source of all its randomness.
        keep_record: Whether to record what the learner needs.
        num_parts: Parts of equal size that the group is rolled out in, each as one batch.
        part: Number of this part, from 0.
        deterministic: Whether the policy acts without chance; then nothing can be recorded.
    """

    index: int
    contexts: tuple[Context, ...]
    seeds: tuple[Seed, ...]
    keep_record: bool = True
    num_parts: int = 1
    part: int = 0
    deterministic: bool = False


@dataclass(frozen=True)
class Group:
    """The rollouts of one request, and the version of the sampling policy."""

    index: int
    version: Version
    rollouts: tuple[Rollout, ...]


Layout = tuple[tuple[str, tuple[int, ...], str], ...]
"""Name, shape and dtype of each array."""


@dataclass(frozen=True)
class GroupSummary:
    """A group without its record: all that the training loop needs, a few hundred bytes.

    Attributes:
        successes: Reward of each rollout, 1.0 or 0.0.
        num_steps: Environment steps of each rollout.
        num_bytes: Size of the group's record.
        layout: Layout of the record per decision; all groups of a batch share it.
        error: Why the group is invalid, or None.
        num_parts: Parts that the group was rolled out in.
        part: Number of the part that this summary is of, if it is not of the whole group.
    """

    index: int
    version: Version
    successes: tuple[float, ...]
    num_steps: tuple[int, ...]
    num_bytes: int
    layout: Layout = ()
    error: str | None = None
    num_parts: int = 1
    part: int = 0


@dataclass(frozen=True)
class ProcessUsage:
    """What a process uses, and for a rollout actor also the processes that its environments step in.

    Attributes:
        pid: Its number on its machine.
        rss_bytes: Resident memory, shared pages included.
        cpu_s: Processor time since it began, in seconds.
        busy_s: Wall time in which a rollout actor rolled out groups, one or several at a time, in seconds.
    """

    pid: int
    rss_bytes: int
    cpu_s: float
    busy_s: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Training data of one update, as tensors over the decisions of all rollouts (no padding).

    Attributes:
        record: The policy's own record, (N, ...) per tensor.
        old_log_probs_NU: Log-probabilities under the sampling policy, float32.
        valid_NU: Mask of the units that count, bool.
        advantages_N: Leave-one-out advantage of the rollout that made the decision, float32.
        rollout_N: Index of that rollout in the batch, int64.
        decision_N: Index of the decision in the batch of the whole update, int64; always in main memory.
        num_rollouts: Rollouts in the batch.
    """

    record: "dict[str, torch.Tensor]"
    old_log_probs_NU: "torch.Tensor"
    valid_NU: "torch.Tensor"
    advantages_N: "torch.Tensor"
    rollout_N: "torch.Tensor"
    decision_N: "torch.Tensor"
    num_rollouts: int


@dataclass(frozen=True)
class Progress:
    """Training progress between two updates: with the learner's state, all that the next update depends on.

    Attributes:
        update: Updates finished.
        next_index: First index after the groups trained so far: the position in the context stream.
        skipped_streak: Current number of consecutive updates skipped for non-finite values.
    """

    update: int = 0
    next_index: int = 0
    skipped_streak: int = 0


@dataclass(frozen=True)
class Weights:
    """One version of the trainable parameters, as one flat buffer.

    Attributes:
        version: Number of updates that led to these weights.
        checksum: SHA-256 of `buffer`, hexadecimal.
        layout: Name, shape and dtype of each parameter, in buffer order.
        buffer: uint8; receivers must not write to it (readers on one node share its memory).
    """

    version: Version
    checksum: str
    layout: Layout
    buffer: NDArray[np.uint8]
