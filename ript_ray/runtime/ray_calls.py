"""Results and failures of calls to Ray actors."""

import logging
import time
from typing import Any

import ray

from ript_ray.errors import WorkerError
from ript_ray.runtime.heartbeat import HEARTBEAT_S
from ript_ray.runtime.host import processor_kind

NO_TASK_EVENTS = {"enable_task_events": False}
"""Actor option: do not store the actor's calls for Ray's dashboard, where a week of them would fill memory."""

logger = logging.getLogger(__name__)


def is_ready(reference: ray.ObjectRef) -> bool:
    """Return whether a result is available, even if a `ray.wait` for the first of several did not list it."""
    return bool(ray.wait([reference], timeout=0)[0])


def place_of(handle: Any) -> ray.ObjectRef:
    """Ask an actor for the id of its node and the kind of its processor; the answer comes once it has started."""
    reference: ray.ObjectRef = handle.__ray_call__.remote(_place)
    return reference


def _place(actor: object) -> tuple[str, str]:
    return ray.get_runtime_context().get_node_id(), processor_kind()


def live_node_ids() -> set[str]:
    """Return the ids of the nodes that Ray holds to be alive, also of those that are about to leave."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def lost_its_node(error: Exception, node: str | None) -> bool:
    """Return whether an actor failed because its node died.

    Args:
        error: Why it failed.
        node: Id of its node, or none if it never answered.
    """
    # The text is Ray's only sign of it for an actor that was still starting; an error of a constructor has any text.
    died_with_node = "node has died" in str(error)
    if died_with_node and was_killed(error):
        return True
    return node is not None and node not in live_node_ids()


def was_killed(error: Exception) -> bool:
    """Return whether an actor's process died, rather than that its code raised an exception or took too long."""
    return isinstance(error, ray.exceptions.ActorDiedError) and not error.actor_init_failed


def describe(error: Exception) -> str:
    """Return the cause of a failure in one line, without the remote stack trace, which is in Ray's log files."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    in_constructor = "creation task" in lines[0]  # a remote stack trace follows, and its last line is the cause
    return lines[-1] if in_constructor else lines[0]


def get_result(reference: ray.ObjectRef, what: str, timeout_s: float) -> Any:
    """Return the result of a call to an actor that is not replaced when it fails; logs that it waits, if for long.

    Raises:
        WorkerError: The actor died, raised, or did not answer in time; the message states `what` and the cause.
    """
    started = time.monotonic()
    while (left_s := started + timeout_s - time.monotonic()) > HEARTBEAT_S:
        if ray.wait([reference], timeout=HEARTBEAT_S)[0]:
            break
        logger.info("waiting for %s: for %.0f s so far, at most %g s", what, time.monotonic() - started, timeout_s)
    try:
        return ray.get(reference, timeout=max(0.0, left_s))
    except ray.exceptions.GetTimeoutError as error:
        raise WorkerError(f"{what}: no answer within {timeout_s:g} s") from error
    except ray.exceptions.RayError as error:
        raise WorkerError(f"{what}: {describe(error)}") from error
