"""Seeded, endless stream of training contexts.

Source: RIPT-VLA Algorithm 1, line 6.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ript_ray.seeding import Purpose, seed_of
from ript_ray.types import Context, Seed

Perturb = Callable[[Context, Seed], Context]
"""Returns a context with noise on its initial state; the seed is the only source of randomness."""


class ContextStream:
    """Endless stream over a set of contexts, reshuffled every epoch.

    Stateless: the caller keeps the position, and `at(i)` returns the same context in every process and run.
    Resumed runs and retried groups therefore see exactly the same contexts.
    """

    def __init__(self, contexts: Sequence[Context], seed: int, *, perturb: Perturb | None = None):
        """Create the stream.

        Args:
            contexts: The context dataset.
            seed: The experiment's seed.
            perturb: Adds noise to the context of each rollout; without it, a group repeats its context exactly.

        Raises:
            ValueError: `contexts` is empty.
        """
        if not contexts:
            raise ValueError("a context stream needs at least one context")
        self._contexts = tuple(contexts)
        self._seed = seed
        self._perturb = perturb

    def at(self, index: int) -> Context:
        """Return the context of group `index`, from 0 (Algorithm 1, line 6)."""
        return self._contexts[self.dataset_index(index)]

    def members(self, index: int, group_size: int) -> tuple[Context, ...]:
        """Return the contexts of the rollouts of group `index` (K): `at(index)`, with noise of their own if any."""
        context, perturb = self.at(index), self._perturb
        if perturb is None:
            return (context,) * group_size
        seeds = (seed_of(self._seed, Purpose.ROLLOUT_NOISE, index, member) for member in range(group_size))
        return tuple(perturb(context, seed) for seed in seeds)

    def dataset_index(self, index: int) -> int:
        """Return the position of that context in `contexts`."""
        epoch, position = divmod(index, len(self._contexts))
        generator = np.random.default_rng(seed_of(self._seed, Purpose.CONTEXT_ORDER, epoch))
        return int(generator.permutation(len(self._contexts))[position])
