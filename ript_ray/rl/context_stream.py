"""Seeded, endless stream of training contexts.

Source: RIPT-VLA Algorithm 1, line 6.
"""

from collections.abc import Sequence

import numpy as np

from ript_ray.seeding import Purpose, seed_of
from ript_ray.types import Context


class ContextStream:
    """Endless stream over a set of contexts, reshuffled every epoch.

    Stateless: the caller keeps the position, and `at(i)` returns the same context in every process and run.
    Resumed runs and retried groups therefore see exactly the same contexts.
    """

    def __init__(self, contexts: Sequence[Context], seed: int):
        """Create the stream.

        Raises:
            ValueError: `contexts` is empty.
        """
        if not contexts:
            raise ValueError("a context stream needs at least one context")
        self._contexts = tuple(contexts)
        self._seed = seed

    def at(self, index: int) -> Context:
        """Return the context of group `index`, from 0 (Algorithm 1, line 6)."""
        return self._contexts[self.dataset_index(index)]

    def dataset_index(self, index: int) -> int:
        """Return the position of that context in `contexts`."""
        epoch, position = divmod(index, len(self._contexts))
        generator = np.random.default_rng(seed_of(self._seed, Purpose.CONTEXT_ORDER, epoch))
        return int(generator.permutation(len(self._contexts))[position])
