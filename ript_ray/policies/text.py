"""Encodings of instructions: hashed words, text features of a language model, or the index in a list.

Hashing needs no language model: each word and each pair of adjacent words adds +1 or -1 to one entry of the vector,
both chosen by a hash. So every text has a vector, and the same one in every process and version. That suffices to
distinguish a few instructions; synonyms are not recognized.

Source: Weinberger et al. 2009 (feature hashing). The published LIBERO policies read CLIP's text features.
"""

import difflib
import functools
import itertools
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ript_ray.errors import CheckpointError, ConfigError, first_few


@functools.lru_cache(maxsize=4096)
def hashed_text(text: str, num_features: int) -> NDArray[np.float32]:
    """Return the unit vector (num_features,) of a text, ignoring case."""
    words = text.lower().split()
    vector = np.zeros(num_features, dtype=np.float32)
    for term in words + [f"{a} {b}" for a, b in itertools.pairwise(words)]:
        code = zlib.crc32(term.encode())
        vector[(code >> 1) % num_features] += 1.0 if code & 1 else -1.0
    vector /= max(float(np.linalg.norm(vector)), 1e-6)
    vector.setflags(write=False)  # cached: every caller gets the same array
    return vector


class TextFeatures:
    """Text features of a language model, one vector per instruction, looked up by its exact words."""

    def __init__(self, num_features: int):
        self._num_features = num_features
        self._vectors: dict[str, NDArray[np.float32]] = {}

    @property
    def vectors(self) -> Mapping[str, NDArray[np.float32]]:
        """Vector of each known instruction; must not be modified."""
        return self._vectors

    def add(self, vectors: Mapping[str, NDArray[np.generic]]) -> None:
        """Add vectors, replacing those of the same instructions.

        Raises:
            CheckpointError: Some are not finite or have another shape or type; none is added.
        """
        problems = [
            f"the vector of {text!r} is {array.dtype} {array.shape}, not float32 ({self._num_features},)"
            for text, array in vectors.items()
            if array.shape != (self._num_features,) or array.dtype != np.float32
        ]
        problems = problems or [
            f"the vector of {text!r} is not finite" for text, array in vectors.items() if not np.isfinite(array).all()
        ]
        if problems:
            raise CheckpointError("\n  ".join(["the text features do not fit the policy:", *first_few(problems)]))
        self._vectors.update({text: np.array(array, dtype=np.float32) for text, array in vectors.items()})

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors (B, num_features) of instructions.

        Raises:
            ConfigError: An instruction has none.
        """
        for text in texts:
            if text not in self._vectors:
                raise ConfigError(f"the policy has no text features of {text!r}{nearest(text, self._vectors)}")
        return np.stack([self._vectors[text] for text in texts])


def index_of(text: str, known: Sequence[str]) -> int:
    """Return the index of an instruction in the list that a policy knows.

    Raises:
        ConfigError: It is not in the list.
    """
    if text not in known:
        raise ConfigError(f"the policy does not know the instruction {text!r}{nearest(text, known)}")
    return known.index(text)


def nearest(text: str, known: Iterable[str]) -> str:
    """Return a hint to the most similar known text, to be appended to a message; empty if none is similar."""
    near = difflib.get_close_matches(text, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
