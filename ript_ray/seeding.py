"""Seeds of all random streams, each derived only from the experiment's seed, a purpose and a position.

No stream depends on the process that draws from it or on earlier draws, so neither the cluster nor a lost actor
nor a resume can change a result.
"""

import zlib
from enum import IntEnum, StrEnum, unique

from ript_ray.types import Seed


@unique
class Purpose(IntEnum):
    """Purpose of a random stream, part of its seed. Runs depend on these values: add new ones, never renumber."""

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
    ROLLOUT_NOISE = 13
    VALIDATION_CONTEXTS = 14
    VALIDATION_ROLLOUTS = 15
    REGRESSION_STAGE = 16
    SCALE_STAGE = 17


class Split(StrEnum):
    """Held-out contexts, which training never draws: `validation` to tune and to choose by, `test` to report."""

    VALIDATION = "validation"
    TEST = "test"

    @property
    def contexts(self) -> Purpose:
        """Purpose of the seeds of its contexts."""
        return Purpose.HELD_OUT_CONTEXTS if self is Split.TEST else Purpose.VALIDATION_CONTEXTS

    @property
    def rollouts(self) -> Purpose:
        """Purpose of the seeds of the rollouts from them."""
        return Purpose.EVALUATION_ROLLOUTS if self is Split.TEST else Purpose.VALIDATION_ROLLOUTS


def seed_of(seed: int, purpose: Purpose, *position: int) -> Seed:
    """Return the entropy for `np.random.default_rng`."""
    return (seed, int(purpose), *position)


def text_code(text: str) -> int:
    """Return a number that represents a name in a seed, the same in every process (unlike `hash`)."""
    return zlib.crc32(text.encode())


def torch_seed_of(seed: int, purpose: int) -> int:
    """Return a seed for `torch.manual_seed`, which takes a single number."""
    return seed * 1_000 + int(purpose)
