"""Groups that several actors roll out in parts: splitting a request, and joining what comes back.

The rollouts of a part act as one batch, so the last bits of a group depend on the number of parts. They do not depend
on which actors run the parts, or on the order in which these finish.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from ript_ray.types import Group, GroupSummary, RolloutRequest

Payload = TypeVar("Payload")


def split(request: RolloutRequest) -> list[RolloutRequest]:
    """Return the `num_parts` parts of a request, in the order of its rollouts; they are of one size."""
    size = len(request.contexts) // request.num_parts
    return [
        replace(
            request,
            part=part,
            contexts=request.contexts[part * size : (part + 1) * size],
            seeds=request.seeds[part * size : (part + 1) * size],
        )
        for part in range(request.num_parts)
    ]


def join_groups(parts: Sequence[Group]) -> Group:
    """Join the parts of a group, in order; its version is the oldest of theirs."""
    rollouts = tuple(rollout for part in parts for rollout in part.rollouts)
    return Group(parts[0].index, min(part.version for part in parts), rollouts)


def join_summaries(parts: Sequence[GroupSummary]) -> GroupSummary:
    """Join the summaries of the parts of a group, in order; the group is invalid if a part is, or if they differ."""
    first, *others = parts
    error = next((part.error for part in parts if part.error), None)
    if error is None and any(part.layout != first.layout for part in others):
        error = f"its parts differ in layout: {sorted({part.layout for part in parts})}"
    return replace(
        first,
        part=0,
        version=min(part.version for part in parts),
        successes=tuple(success for part in parts for success in part.successes),
        num_steps=tuple(steps for part in parts for steps in part.num_steps),
        num_bytes=sum(part.num_bytes for part in parts),
        error=error,
    )


class PartialGroups(Generic[Payload]):
    """Finished parts of groups that are not complete yet."""

    def __init__(self) -> None:
        self._parts: dict[int, dict[int, tuple[GroupSummary, Payload]]] = {}

    def __len__(self) -> int:
        """Return the number of parts."""
        return sum(len(parts) for parts in self._parts.values())

    def add(self, summary: GroupSummary, payload: Payload) -> tuple[GroupSummary, tuple[Payload, ...]] | None:
        """Add a part; returns the joined summary and the payloads, in order, once its group is complete."""
        parts = self._parts.setdefault(summary.index, {})
        parts[summary.part] = (summary, payload)
        if len(parts) < summary.num_parts:
            return None
        del self._parts[summary.index]
        in_order = [parts[part] for part in sorted(parts)]
        return join_summaries([part for part, _ in in_order]), tuple(payload for _, payload in in_order)

    def drop(self, index: int) -> int:
        """Forget the parts of group `index`; returns their number."""
        return len(self._parts.pop(index, ()))
