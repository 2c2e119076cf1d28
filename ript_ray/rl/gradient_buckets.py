"""Gradients summed over learners while the backward pass still computes others."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import nn

BUCKET_BYTES = 25 * 2**20
"""Size at which a bucket is full. Source: torch's DistributedDataParallel."""

Wait = Callable[[], None]
"""Waits for a sum that was begun, and copies it into its tensors."""


def in_buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Split parameters into buckets of about `BUCKET_BYTES`: the last ones first, as their gradients come first.

    Within a bucket they keep their order.
    """
    buckets: list[list[nn.Parameter]] = [[]]
    num_bytes = 0
    for parameter in reversed(parameters):
        if num_bytes >= BUCKET_BYTES:
            buckets.append([])
            num_bytes = 0
        buckets[-1].insert(0, parameter)
        num_bytes += parameter.numel() * torch.float32.itemsize
    return buckets


class GradientBuckets:
    """The gradients of one optimizer step.

    Each bucket but the last is summed as soon as all of its parameters have their gradients, and the buckets before it
    are on their way: all learners sum them in one order. Those that are left over, as not every learner needs every
    parameter, and the last one follow in `finish`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], begin_sum: Callable[[Sequence[torch.Tensor]], Wait]):
        """Watch the backward pass that follows, the last one of the step.

        Args:
            parameters: The parameters; equal in all learners.
            begin_sum: Begins to sum tensors over all learners, in place.
        """
        self._parameters = parameters
        self._begin_sum = begin_sum
        *self._buckets, self._last = in_buckets(parameters)
        self._missing = [set(bucket) for bucket in self._buckets]
        self._gradients: dict[nn.Parameter, torch.Tensor] = {}
        self._begun: list[Wait] = []
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(functools.partial(self._note, number))
            for number, bucket in enumerate(self._buckets)
            for parameter in bucket
        ]

    def finish(self, metrics: torch.Tensor) -> None:
        """Sum what is left, and `metrics`; wait for all. Without a gradient in any learner, a parameter keeps none."""
        for hook in self._hooks:
            hook.remove()
        while len(self._begun) < len(self._buckets):
            self._begin_next()
        has_gradient = torch.tensor([float(parameter.grad is not None) for parameter in self._parameters])
        self._begun.append(self._begin_sum([metrics, has_gradient, *self._gradients_of(self._last)]))
        for wait in self._begun:
            wait()
        for parameter, num_learners in zip(self._parameters, has_gradient.tolist(), strict=True):
            parameter.grad = self._gradients[parameter] if num_learners else None

    def _note(self, number: int, parameter: nn.Parameter) -> None:
        assert number >= len(self._begun), "a gradient has changed after it was sent: it was accumulated twice"
        self._missing[number].discard(parameter)
        while len(self._begun) < len(self._buckets) and not self._missing[len(self._begun)]:
            self._begin_next()

    def _begin_next(self) -> None:
        self._begun.append(self._begin_sum(self._gradients_of(self._buckets[len(self._begun)])))

    def _gradients_of(self, bucket: Sequence[nn.Parameter]) -> list[torch.Tensor]:
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in bucket]
        self._gradients.update(zip(bucket, gradients, strict=True))
        return gradients
