"""Where every random stream comes from: the experiment's seed, a purpose and a position, nothing else.

No stream depends on which process draws from it or on what was drawn before, so the cluster, a lost
actor or a resumed run cannot change a result.
"""

import zlib
from enum import IntEnum

from ript_ray.types import Seed


class Purpose(IntEnum):
    """First part of every seed. Values are part of what makes a run reproducible: add, never renumber."""

    TRAINING_CONTEXTS = 1
    HELD_OUT_CONTEXTS = 2
    DEMONSTRATION_CONTEXTS = 3
    DEMONSTRATION_NOISE = 4
    CONTEXT_ORDER = 5
    TRAINING_ROLLOUTS = 6
    EVALUATION_ROLLOUTS = 7
    MINIBATCHES = 8
    POLICY_WEIGHTS = 9
    AUTOENCODER_STAGE = 10
    PRIOR_STAGE = 11
    CONTEXT_NOISE = 12


def seed_of(seed: int, purpose: Purpose, *position: int) -> Seed:
    """Entropy for `np.random.default_rng`."""
    return (seed, int(purpose), *position)


def text_code(text: str) -> int:
    """A number that stands for a name in a seed."""
    return zlib.crc32(text.encode())


def torch_seed_of(seed: int, purpose: int) -> int:
    """The same for `torch.manual_seed`, which takes one number."""
    return seed * 1_000 + int(purpose)
