"""This machine, whatever it is: one rollout actor per core, the learner shares them."""

from ript_ray.runtime.cluster import Cluster

CLUSTER = Cluster()
