"""Instruction text as a fixed vector, without a language model.

Each word and each pair of neighbouring words adds +1 or -1 to one of the vector's entries, both chosen
by a hash, so any text has a vector and the same text has the same one in every process and version.
Good enough to tell a few instructions apart; it knows no synonyms.

Source: Weinberger et al. 2009 (feature hashing).
"""

import functools
import itertools
import zlib

import numpy as np
from numpy.typing import NDArray


@functools.lru_cache(maxsize=4096)
def hashed_text(text: str, num_features: int) -> NDArray[np.float32]:
    """Unit vector (num_features,) of a text; letter case does not count."""
    words = text.lower().split()
    vector = np.zeros(num_features, dtype=np.float32)
    for term in words + [f"{a} {b}" for a, b in itertools.pairwise(words)]:
        code = zlib.crc32(term.encode())
        vector[(code >> 1) % num_features] += 1.0 if code & 1 else -1.0
    vector /= max(float(np.linalg.norm(vector)), 1e-6)
    vector.setflags(write=False)  # every caller gets the same array
    return vector
