"""Results and failures of calls to Ray actors."""

from typing import Any

import ray

from ript_ray.errors import WorkerError

NO_TASK_EVENTS = {"enable_task_events": False}
"""Actor option: do not store the actor's calls for Ray's dashboard, where a week of them would fill memory."""


def is_ready(reference: ray.ObjectRef) -> bool:
    """Return whether a result is available, even if a `ray.wait` for the first of several did not list it."""
    return bool(ray.wait([reference], timeout=0)[0])


def describe(error: Exception) -> str:
    """Return the cause of a failure in one line, without the remote stack trace, which is in Ray's log files."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    in_constructor = "creation task" in lines[0]  # a remote stack trace follows, and its last line is the cause
    return lines[-1] if in_constructor else lines[0]


def get_result(reference: ray.ObjectRef, what: str, timeout_s: float) -> Any:
    """Return the result of a call to an actor that is not replaced when it fails.

    Raises:
        WorkerError: The actor died, raised, or did not answer in time; the message states `what` and the cause.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise WorkerError(f"{what}: no answer within {timeout_s:g} s") from error
    except ray.exceptions.RayError as error:
        raise WorkerError(f"{what}: {describe(error)}") from error
