"""Runtimes with faulty environments, in exactly one process or in all."""

import contextlib
import functools
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ript_envs.contract import Environment
from ript_ray.policies.base import Policy
from ript_ray.runtime.ray_runtime import RayRuntime
from tests.conftest import line_parts
from tests.fakes import TinyChunkPolicy
from tests.ript_ray.runtime.test_runtimes import on_ray

POLICY = functools.partial(TinyChunkPolicy, "laplace")


def runtime_with(
    make_environment: Callable[[str], Environment],
    num_actors: int = 2,
    build_policy: Callable[[], Policy] = POLICY,
    **limits: Any,
) -> RayRuntime:
    parts = replace(line_parts(build_policy), make_environment=make_environment)
    return on_ray(parts, num_actors, **{"straggler_factor": math.inf, **limits})


def is_first(mark: Path) -> bool:
    """Return whether this process was the first to ask for `mark`: exactly one is, even if several ask at once."""
    own = mark.with_name(f"{mark.name} of {os.getpid()}")
    own.write_text(str(os.getpid()))
    with contextlib.suppress(FileExistsError):
        os.link(own, mark)  # never empty, unlike a file that is opened and then written
    return mark.read_text() == str(os.getpid())


class HeavyPolicy(TinyChunkPolicy):
    """Its groups are large enough to stay on the node that produced them."""

    def act(self, *arguments):
        decisions = super().act(*arguments)
        ballast = np.zeros((len(decisions.log_probs_BU), 20_000), np.float32)
        return replace(decisions, record={**decisions.record, "ballast": ballast})
