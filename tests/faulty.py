"""Runtimes whose environments misbehave, in one process of all or in each."""

import contextlib
import functools
import math
import os
from dataclasses import replace
from pathlib import Path

from ript_ray.runtime.ray_runtime import RayRuntime
from tests.conftest import line_parts
from tests.fakes import TinyChunkPolicy
from tests.ript_ray.runtime.test_runtimes import on_ray

POLICY = functools.partial(TinyChunkPolicy, "laplace")


def runtime_with(make_environment, num_actors: int = 2, build_policy=POLICY, **limits: float) -> RayRuntime:
    parts = replace(line_parts(build_policy), make_environment=make_environment)
    return on_ray(parts, num_actors, **{"straggler_factor": math.inf, **limits})


def is_first(mark: Path) -> bool:
    """Whether this process was the first to ask after `mark`: one of all is, however close they are."""
    with contextlib.suppress(FileExistsError), mark.open("x") as file:
        file.write(str(os.getpid()))
    return mark.read_text() == str(os.getpid())
