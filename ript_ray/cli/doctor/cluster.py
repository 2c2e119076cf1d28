"""What a cluster needs: the token, ports, an answer, clocks that agree. A run on one machine needs none of it."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from ript_ray.cli.doctor.answers import clock_of
from ript_ray.cli.doctor.finding import Finding
from ript_ray.cli.doctor.machine import skew
from ript_ray.errors import RayTokenError, RiptError

HEAD_PORTS = {"--port": 6379, "--dashboard-port": 8265, "--ray-client-server-port": 10001}
"""What a head listens on, by the option of clusters/local/head.sh that names another one."""


def cluster() -> Iterator[Finding]:
    """Check what a joined cluster or a head on this machine needs, where the environment speaks of one."""
    address = os.environ.get("RAY_ADDRESS", "")
    has_tokens = os.environ.get("RAY_AUTH_MODE", "") == "token"
    if address or has_tokens:
        yield token(needed=bool(address) and has_tokens)
    if address:
        yield from joined(address)
    elif has_tokens:
        yield head_ports(HEAD_PORTS)


def token(*, needed: bool) -> Finding:
    """Check that Ray finds a token, and that it is this user's secret."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("Ray's token", "in RAY_AUTH_TOKEN")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        is_there = bool(file.read_bytes().strip())
    except OSError as error:
        found = f"{file}: {error.strerror}"
    else:
        if is_there:
            private = not mode & 0o077
            return Finding("Ray's token", f"{file}, mode {mode:04o}", good=private, fix=f"chmod 600 {file}")
        found = f"{file} is empty"
    fix = f"start a head with clusters/local/head.sh, which makes a token, or copy the head's to {file}, with mode 0600"
    return Finding("Ray's token", found, good=False, needed=needed, fix=fix)


def head_ports(ports: dict[str, int]) -> Finding:
    """Check that a head can listen on its ports, which Ray's nodes and clients must reach."""
    used = {option: port for option, port in ports.items() if not _is_free(port)}
    if not used:
        return Finding("ports of a head", f"{', '.join(map(str, ports.values()))} are free")
    fix = f"unless this is the head: stop what uses them, or clusters/local/head.sh {' PORT '.join(used)} PORT"
    return Finding("ports of a head", f"in use: {', '.join(map(str, used.values()))}", good=False, fix=fix)


def joined(address: str) -> Iterator[Finding]:
    """Check that Ray answers at an address and takes the token, and the head's clock, which its dashboard tells."""
    from ript_ray.runtime.ray_session import require_ray

    if address.startswith("http"):  # the place of `ray job submit`, not one that a run can join
        fix = "name the head's HOST:6379 instead, except for `ray job submit`"
        yield Finding("RAY_ADDRESS", f"{address} is a dashboard", good=False, needed=True, fix=fix)
        return
    try:
        require_ray(address)
    except RayTokenError as error:
        fix = f"unset RAY_ADDRESS, or: {error}"
        yield Finding("RAY_ADDRESS", f"{address} refuses the token", good=False, needed=True, fix=fix)
        return
    except RiptError as error:
        fix = f"let it listen there and a firewall admit this machine, or unset RAY_ADDRESS: {error}"
        yield Finding("RAY_ADDRESS", f"no Ray at {address}", good=False, needed=True, fix=fix)
        return
    yield Finding("RAY_ADDRESS", address if ":" in address else f"{address}: not checked")
    host, _, _ = address.removeprefix("ray://").rpartition(":")
    ahead_s = clock_of(f"http://{host}:{HEAD_PORTS['--dashboard-port']}/api/version") if host else None
    if ahead_s is not None:
        yield skew("clock of the head", ahead_s)


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("", port)).close()
    except OSError:
        return False
    return True
