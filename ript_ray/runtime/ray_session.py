"""The connection to Ray: a cluster that is joined, or Ray on this machine, watched as long as it is used."""

import contextlib
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private import grpc_utils, ray_constants
from ray._private import worker as ray_worker
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import AuthenticationError

from ript_ray.errors import RayTokenError, WorkerError
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.host import let_threads_sleep, num_cpus
from ript_ray.runtime.nodes import live_nodes
from ript_ray.runtime.patient_start import patient_start, replaced

ANSWER_TIMEOUT_S = 6.0
"""Within this time something listens at the address of a Ray cluster, and within as much again it speaks as Ray."""

BUSY_TIMEOUT_S = 60.0
"""Within this time a head that speaks as Ray, and may be busy, says whether it takes the token."""

REMOVAL_TIMEOUT_S = 5.0
"""Longest time that the end of a session waits for the last of Ray's processes to leave its folder, in seconds."""

CHECK_S = 0.2

WATCH_S = 0.5
"""How often the watch looks whether Ray's processes are alive; Ray ends this process some seconds after them."""

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def ray_session(cluster: Cluster) -> Iterator[None]:
    """Start Ray on this machine or join a running cluster, and disconnect at the end.

    Raises:
        WorkerError: There is no Ray cluster at the address, Ray does not start, or one of its processes on this
            machine dies.
        ConfigError: The requested actors do not fit on this machine. (Not checked for a joined cluster: it may grow.)
    """
    let_threads_sleep()
    address = cluster.joined_address
    on_terminate = signal.getsignal(signal.SIGTERM)
    with replaced(ray_worker, "print_to_stdstream", _log_report):
        _connect(address)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # Ray's own handler would exit without saving
        try:
            with _own_ray(cluster) if address is None else contextlib.nullcontext():
                yield
        finally:
            ray.shutdown()


def _connect(address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is not None:
            logger.info("connecting to Ray at %s", address)
            require_ray(address)
            ray.init(address=address, **quiet)
            return
        logger.info("starting Ray on this machine")
        # Ray then listens on this machine's loopback address alone, as it does on macOS; there is no option for it.
        with replaced(ray_constants, "ENABLE_RAY_CLUSTER", False), patient_start():
            ray.init(address="local", num_cpus=num_cpus(), include_dashboard=False, **quiet)
    except WorkerError:
        raise
    except Exception as error:  # boundary: where Ray times out, it raises the plain class
        raise WorkerError(f"cannot use Ray at {address or 'this machine'}: {error}") from error


def _log_report(data: dict[str, Any], **_: object) -> None:
    """Log what Ray's processes report, such as the last lines of a dead one's log; Ray would print it."""
    logger.debug("Ray: %s", "; ".join(data["lines"]))


def require_ray(address: str) -> None:
    """Check that a Ray cluster answers at an address, and takes the token: Ray itself would try for many minutes.

    Behind `ray://` is no head, but a server of clients, whose token is not checked.

    Raises:
        RayTokenError: The head asks for another token, or for one where none is sent.
        WorkerError: None answers within `ANSWER_TIMEOUT_S`, or it gives no answer within `BUSY_TIMEOUT_S`.
    """
    location = address.removeprefix("ray://")
    host, _, port = location.rpartition(":")
    if not (host and port.isdecimal()):
        return  # a word such as auto: Ray finds the cluster, or says why not
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S).close()
        with grpc_utils.init_grpc_channel(location) as channel:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_TIMEOUT_S)
            if location == address:
                head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
                head.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=BUSY_TIMEOUT_S)
    except OSError as error:
        raise _no_cluster(address, str(error)) from error
    except AuthenticationError as error:  # tokens are required, and there is none to send
        raise _refused_token(address) from error
    except (grpc.FutureTimeoutError, grpc.RpcError) as error:
        if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise _refused_token(address) from error
        raise _no_cluster(address, "what listens there does not answer as Ray does") from error


def _refused_token(address: str) -> RayTokenError:
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    in_variable = bool(os.environ.get("RAY_AUTH_TOKEN"))  # Ray then reads no file
    sent = "the token in RAY_AUTH_TOKEN" if in_variable else f"the token in {file}"
    has_sent = os.environ.get("RAY_AUTH_MODE") == "token" and (in_variable or file.exists())
    return RayTokenError(
        f"Ray at {address} takes the token of its head alone, not {sent if has_sent else 'a request without one'}: "
        f"{'unset RAY_AUTH_TOKEN, ' if in_variable else ''}set RAY_AUTH_MODE=token and copy ~/.ray/auth_token of the "
        f"head to {file}, with mode 0600"
    )


def _no_cluster(address: str, why: str) -> WorkerError:
    return WorkerError(
        f"there is no Ray cluster at {address} (cluster.address, or RAY_ADDRESS if that is not given): {why}; "
        "without an address, Ray is started on this machine"
    )


@contextlib.contextmanager
def _own_ray(cluster: Cluster) -> Iterator[None]:
    """Use the Ray of this machine, and remove the folder of its logs at the end unless something has failed."""
    node = ray_worker.global_worker.node
    folder = Path(node.get_session_dir_path())
    has_failed = False
    try:
        with _watched_daemons(node, folder):
            cluster.count_actors(live_nodes())
            yield
    except Exception:
        has_failed = True
        raise
    finally:
        ray.shutdown()  # its processes write there
        if not has_failed:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the folder of a session that has ended; a process that ends late may still put a file there."""
    deadline = time.monotonic() + REMOVAL_TIMEOUT_S
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists() or time.monotonic() > deadline:
            return
        time.sleep(CHECK_S)


@contextlib.contextmanager
def _watched_daemons(node: Any, folder: Path) -> Iterator[None]:
    """Interrupt the block when one of Ray's processes dies: a few seconds later Ray's C++ would end this process.

    Args:
        node: Ray's own object for its processes on this machine.
        folder: Where Ray's logs are.

    Raises:
        WorkerError: One has died.
    """
    has_ended = threading.Event()

    def watch() -> None:
        while not has_ended.wait(WATCH_S):
            if _dead_daemons(node):
                _interrupt_main_thread()
                return

    thread = threading.Thread(target=watch, name="ray-watch", daemon=True)
    if threading.current_thread() is threading.main_thread():
        thread.start()
    try:
        yield
    except BaseException as error:
        if dead := _dead_daemons(node):
            text = f"Ray's {' and '.join(dead)} died on this machine (killed, or out of memory?)"
            raise WorkerError(f"{text}; Ray's logs are in {folder / 'logs'}") from error
        raise
    finally:
        has_ended.set()
        if thread.is_alive():
            thread.join()


def _dead_daemons(node: Any) -> list[str]:
    """Return the processes that Ray cannot do without and that have died."""
    return [
        f"{name} (process {process.pid})"
        for name, process in node.dead_processes()
        if name in (ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER)
    ]


def _interrupt_main_thread() -> None:
    """Interrupt what the main thread does as Ctrl-C would; a process in the background of a script ignores SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if callable(signal.getsignal(number)):
            signal.pthread_kill(threading.main_thread().ident or 0, number)
            return
