"""What is asked of Ray's autoscaler, on a cluster that scales by itself."""

import contextlib
import os
import time

from ray.autoscaler.sdk import request_resources

from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.placement import RESERVED

REPEAT_S = 60.0
"""Interval at which the autoscaler is asked again for room that is missing, in seconds."""


class RoomRequest:
    """Lets a joined cluster grow until learners and actors fit, and shrink afterwards.

    These are started only where they fit, so without a request nothing would tell the autoscaler that they are missing.
    It heeds the latest request of all jobs: another job may have replaced or ended this one, so it is repeated. A trial
    of a sweep asks for nothing, because what is reserved for it does so.
    """

    def __init__(self, cluster: Cluster, num_learners: int):
        """Ask for nothing yet."""
        may_grow = cluster.joined_address is not None and not os.environ.get(RESERVED)
        self._bundles = cluster.requested_room(num_learners) if may_grow else []
        self._sent: float | None = None

    def send(self) -> None:
        """Ask for the room, unless that was done a moment ago."""
        now = time.monotonic()
        if self._bundles and (self._sent is None or now - self._sent >= REPEAT_S):
            request_resources(bundles=self._bundles)
            self._sent = now

    def end(self) -> None:
        """Ask for nothing any more."""
        if self._sent is None:
            return
        self._sent = None
        with contextlib.suppress(Exception):  # boundary: the cluster may be gone, and its autoscaler with it
            request_resources(bundles=[])
