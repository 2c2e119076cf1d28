"""Forward and backward passes over parts of a minibatch at the same time, each in a thread of its own.

An operation of a small policy is too short to be shared by threads, which would wait for each other after each. Whole
passes are not: their threads meet once.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

Pass = Callable[[], tuple[torch.Tensor, torch.Tensor]]
"""Returns the loss of a part, with gradients, and metrics of it."""


class ParallelPasses:
    """Threads that stay for the passes to come."""

    def __init__(self, number: int, *, num_threads: int):
        """Start the threads when they are first needed.

        Args:
            number: Passes at a time.
            num_threads: Torch threads of each.
        """
        self._pool = ThreadPoolExecutor(
            number, "learner-pass", initializer=torch.set_num_threads, initargs=(num_threads,)
        )

    def run(self, passes: Sequence[Pass], parameters: Sequence[nn.Parameter]) -> torch.Tensor:
        """Compute the losses, and add their gradients to those of the parameters, in the order of the passes.

        So the bits do not depend on which pass is done first.

        Returns:
            The sum of the passes' metrics.
        """

        def gradients(each: Pass) -> tuple[Sequence[torch.Tensor | None], torch.Tensor]:
            loss, metrics = each()
            return torch.autograd.grad(loss, parameters, allow_unused=True), metrics

        total = torch.zeros(())
        for gradient_of_part, metrics in self._pool.map(gradients, passes):
            for parameter, gradient in zip(parameters, gradient_of_part, strict=True):
                if gradient is not None:  # copied, as parameters may share a gradient
                    parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient
            total = total + metrics
        return total
