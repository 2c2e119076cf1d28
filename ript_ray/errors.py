"""Exceptions with messages for the user; all can be pickled between processes."""

from collections.abc import Sequence

NUM_SHOWN = 3
"""Entries of a list that a message shows: a wall of them hides the first."""


def first_few(entries: Sequence[str]) -> list[str]:
    """Return the first entries of a list for a message, and how many more there are."""
    rest = len(entries) - NUM_SHOWN
    return [*entries[:NUM_SHOWN], *([f"and {rest} more"] if rest > 0 else [])]


class RiptError(Exception):
    """Base class of the project's errors: the command line prints the message without a traceback."""

    exit_code = 1


class ConfigError(RiptError, ValueError):
    """A setting, or a combination of settings, is invalid."""

    exit_code = 2


class CheckpointError(RiptError):
    """A saved file is missing, corrupt, of an unknown format, or does not fit the policy."""


class StorageError(RiptError):
    """A file cannot be written, e.g. it exists, the disk is full or permission is denied."""


class RunInUseError(RiptError):
    """Another process is using the run directory."""


class SearchExhaustedError(RiptError):
    """Dynamic sampling reached its limit before a batch of mixed groups was found.

    Attributes:
        is_success: Whether the reason is that every context is solved.
    """

    def __init__(self, message: str, is_success: bool):
        super().__init__(message, is_success)
        self.is_success = is_success

    def __str__(self) -> str:
        return str(self.args[0])


class DivergenceError(RiptError):
    """Losses, gradients or weights are repeatedly not finite; the policy keeps its last finite weights."""


class TrackingError(RiptError):
    """Uploading to the tracking store failed; the metrics log on disk is complete."""


class WorkerError(RiptError):
    """A rollout actor or the learner failed or timed out."""


class RayTokenError(WorkerError):
    """A Ray cluster does not take the token of this process."""


class PeerError(WorkerError):
    """A learner lost the connection to another one."""


class WeightsError(RiptError):
    """Received weights are corrupt or do not fit the policy."""


class ReplayError(RiptError):
    """A rollout cannot be replayed, or its replay differs from the recording."""
