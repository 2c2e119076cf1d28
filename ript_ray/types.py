"""The carriers: small frozen values that flow Context -> Rollout -> Group -> Batch -> Weights. No logic.

Shape suffixes, here and everywhere: G groups, K rollouts of a group, B rows of a policy call,
N decisions (policy queries) of a batch, U scored units of a decision (tokens or chunk steps),
C actions of a chunk, A entries of an action, V vocabulary, D width of a hidden vector.
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
"""Counts the learner's updates, skipped ones included: version 0 is the policy that RIPT starts from."""


RIPT = "ript"
"""Name of the last stage of training: post-training. The stages before it are the policy's own."""


@dataclass(frozen=True)
class Context:
    """What an episode starts from.

    Attributes:
        task: Name of the task in its benchmark.
        instruction: The task in words, as the policy reads it.
        initial_state: The simulator's initial state in the benchmark's own form.
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
        record: What the learner needs to score the T policy queries again, T rows per array.
        log_probs_TU: Log-probability of each unit under the policy that acted, float32.
        valid_TU: Which units the learner may count, bool.
            All three are empty where nobody trains on the rollout (evaluation).
    """

    success: bool
    num_steps: int
    record: Arrays = field(default_factory=dict)
    log_probs_TU: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    valid_TU: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), np.bool_))


@dataclass(frozen=True)
class RolloutRequest:
    """Work for one rollout actor: the rollouts of one group, or a few evaluation episodes.

    Attributes:
        index: Position in the stream of requests; the answer carries it back.
        contexts: One per rollout; a training group repeats one context K times.
        seeds: One per rollout: all of its randomness.
        keep_record: Whether to record what the learner needs.
    """

    index: int
    contexts: tuple[Context, ...]
    seeds: tuple[Seed, ...]
    keep_record: bool = True


@dataclass(frozen=True)
class Group:
    """The rollouts that answer one request, and the version of the policy that acted."""

    index: int
    version: Version
    rollouts: tuple[Rollout, ...]


Layout = tuple[tuple[str, tuple[int, ...], str], ...]
"""Name, shape and dtype of several arrays."""


@dataclass(frozen=True)
class GroupSummary:
    """A group without its record: all that the training loop reads, a few hundred bytes.

    Attributes:
        successes: Reward of each rollout, 1.0 or 0.0.
        num_steps: Environment steps of each rollout.
        num_bytes: Size of the group's record.
        layout: What one decision of the record looks like; groups of one batch agree in it.
        error: Why nobody may train on the group, or none.
    """

    index: int
    version: Version
    successes: tuple[float, ...]
    num_steps: tuple[int, ...]
    num_bytes: int
    layout: Layout = ()
    error: str | None = None


@dataclass(frozen=True)
class Batch:
    """Everything one update learns from, as tensors over the decisions of all rollouts (no padding).

    Attributes:
        record: The policy's own record, (N, ...) per tensor.
        old_log_probs_NU: Log-probabilities under the sampling policy, float32.
        valid_NU: Which units count, bool.
        advantages_N: Leave-one-out advantage of the rollout that made the decision, float32.
        rollout_N: Index of that rollout in the batch, int64.
        num_rollouts: Rollouts in the batch.
    """

    record: "dict[str, torch.Tensor]"
    old_log_probs_NU: "torch.Tensor"
    valid_NU: "torch.Tensor"
    advantages_N: "torch.Tensor"
    rollout_N: "torch.Tensor"
    num_rollouts: int


@dataclass(frozen=True)
class Progress:
    """Where training stands between two updates: with the learner's state, all that the next one depends on.

    Attributes:
        update: Updates done.
        next_index: First index behind the groups trained so far: the position in the context stream.
        skipped_streak: Updates in a row, up to now, that were skipped because something was not finite.
    """

    update: int = 0
    next_index: int = 0
    skipped_streak: int = 0


@dataclass(frozen=True)
class Weights:
    """One version of the trainable parameters, as one flat buffer.

    Attributes:
        version: Number of updates behind these weights.
        checksum: SHA-256 of `buffer`, hexadecimal.
        layout: Name, shape and dtype of each parameter, in the order they lie in the buffer.
        buffer: uint8, read-only for receivers (readers on one node share its memory).
    """

    version: Version
    checksum: str
    layout: Layout
    buffer: NDArray[np.uint8]
