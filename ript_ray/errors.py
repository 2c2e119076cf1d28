"""Every error a user can meet, in one tree; all of them survive pickling between processes."""


class RiptError(Exception):
    """Base of the project's own errors: the command line prints the message and no traceback."""

    exit_code = 1


class ConfigError(RiptError, ValueError):
    """A setting, or a combination of settings, is impossible."""

    exit_code = 2


class CheckpointError(RiptError):
    """A checkpoint is missing, damaged, foreign, or does not fit the policy."""


class StorageError(RiptError):
    """A file of a run cannot be written: the disk is full, or writing there is not allowed."""


class RunInUseError(RiptError):
    """Another process is working in the run's folder."""


class SearchExhaustedError(RiptError):
    """No batch of mixed groups was found within the limit; the message says which case it is.

    Attributes:
        is_success: Whether that is because every context is solved.
    """

    def __init__(self, message: str, is_success: bool):
        super().__init__(message, is_success)
        self.is_success = is_success

    def __str__(self) -> str:
        return str(self.args[0])


class DivergenceError(RiptError):
    """Losses, gradients or weights keep turning out not to be finite; the weights are the last good ones."""


class TrackingError(RiptError):
    """The tracking store does not take what it is sent; the journal keeps it."""


class WorkerError(RiptError):
    """A rollout actor or the learner failed, or did not answer in time."""


class WeightsError(RiptError):
    """Weights arrived damaged, or do not fit the policy."""


class ReplayError(RiptError):
    """A rollout cannot be replayed, or does not come out as it was recorded."""
