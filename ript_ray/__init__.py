"""RIPT: reinforcement interactive post-training of vision-language-action policies on Ray."""

import os

__version__ = "0.1.0"

# Before torch is imported anywhere: OpenMP's threads spin while they wait for each other, which makes two learner
# threads up to twenty times slower wherever something else needs a core. Asleep they cost nothing measurable.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
