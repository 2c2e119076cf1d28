"""The endless order in which an experiment draws its contexts.

Source: RIPT-VLA Algorithm 1, line 6.
"""

from collections.abc import Sequence

import numpy as np

from ript_ray.seeding import Purpose, seed_of
from ript_ray.types import Context


class ContextStream:
    """An endless, seeded order over a set of contexts: each pass visits all of them in a fresh order.

    Position is the only state, and it belongs to the caller: `at(i)` gives the same context whenever
    and wherever it is asked, so a resumed run or a lost group continues exactly.
    """

    def __init__(self, contexts: Sequence[Context], seed: int):
        """Order `contexts` by `seed`.

        Raises:
            ValueError: There is no context.
        """
        if not contexts:
            raise ValueError("a context stream needs at least one context")
        self._contexts = tuple(contexts)
        self._seed = seed

    def at(self, index: int) -> Context:
        """The context of group `index`, from 0."""
        return self._contexts[self.dataset_index(index)]

    def dataset_index(self, index: int) -> int:
        """Where that context lies among the contexts given."""
        epoch, position = divmod(index, len(self._contexts))
        generator = np.random.default_rng(seed_of(self._seed, Purpose.CONTEXT_ORDER, epoch))
        return int(generator.permutation(len(self._contexts))[position])
