"""Leave-one-out advantages.

Source: RIPT-VLA equation 5 and Algorithm 1, lines 9 and 10 (RLOO, Kool et al. 2019; Ahmadian et al. 2024).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def leave_one_out(rewards_K: Sequence[float]) -> NDArray[np.float32]:
    """Subtract from each reward the mean of the other K - 1 (Algorithm 1, lines 9 and 10).

    Args:
        rewards_K: Rewards of the rollouts of one group, K >= 2.

    Returns:
        float32 (K,), zero-sum up to rounding; not divided by the standard deviation.

    Raises:
        ValueError: K < 2, so there is no baseline.
    """
    rewards = np.asarray(rewards_K, dtype=np.float32)  # float32 throughout, to match the authors' code bit for bit
    if rewards.size < 2:
        raise ValueError(f"leave-one-out needs at least 2 rollouts in a group, not {rewards.size}")
    others_mean = (rewards.sum() - rewards) / np.float32(rewards.size - 1)
    return rewards - others_mean
