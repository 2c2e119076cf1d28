"""What Ray's actors answer, and what their failures mean."""

from typing import Any

import ray

from ript_ray.errors import WorkerError

NO_TASK_EVENTS = {"enable_task_events": False}
"""Option of an actor whose calls Ray does not keep for its dashboard: over a week they would only fill its memory."""


def is_ready(reference: ray.ObjectRef) -> bool:
    """Whether an answer is there, even where a `ray.wait` that returns the first did not name it."""
    return bool(ray.wait([reference], timeout=0)[0])


def describe(error: Exception) -> str:
    """The cause of a failure in one line, without its remote stack, which Ray's logs keep."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    in_constructor = "creation task" in lines[0]  # then a remote stack follows, and its last line is the cause
    return lines[-1] if in_constructor else lines[0]


def get_result(reference: ray.ObjectRef, what: str, timeout_s: float) -> Any:
    """What an actor that nobody replaces answered.

    Raises:
        WorkerError: It died, raised, or did not answer in time; the message says what, and the cause.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise WorkerError(f"{what}: no answer within {timeout_s:g} s") from error
    except ray.exceptions.RayError as error:
        raise WorkerError(f"{what}: {describe(error)}") from error
