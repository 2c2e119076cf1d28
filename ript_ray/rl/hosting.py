"""How a rollout worker hosts environments."""

from dataclasses import dataclass

MAX_ENVIRONMENTS = 64
"""Default bound on the environments that are kept open."""


@dataclass(frozen=True)
class Hosting:
    """How many environments a rollout worker keeps, and where they step.

    Attributes:
        max_environments: Environments that it keeps open, at least 1.
        max_tasks: Tasks whose environments it keeps open, or None for any number.
        num_processes: Processes per group that its environments step in; 0 if they step in the worker itself.
        num_groups: Groups that it works on in turns, at least 1. Each has environments and processes of its own, and
            an equal share of the bounds, but at least one task.
    """

    max_environments: int = MAX_ENVIRONMENTS
    max_tasks: int | None = None
    num_processes: int = 0
    num_groups: int = 1
