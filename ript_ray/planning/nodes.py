"""The machines of a cluster, which need not be there."""

import math
from dataclasses import dataclass

from ript_ray.checks import require_at_least, require_positive
from ript_ray.errors import ConfigError
from ript_ray.runtime.cluster import Cluster, Node
from ript_ray.runtime.host import memory_bytes, num_cpus

GIB = 2**30


@dataclass(frozen=True)
class Nodes:
    """The machines of a cluster, all alike; what is not given is as on this machine.

    Attributes:
        num_nodes: Machines, at least 1.
        cpus: Cores of each, at least 1.
        gpus: GPUs of each, at least 0; where this machine has none, as many as are asked for.
        gpu_memory_gib: Memory of each GPU, in GiB, above 0.
        memory_gib: Main memory of each machine, in GiB, above 0.
    """

    num_nodes: int = 1
    cpus: float | None = None
    gpus: int | None = None
    gpu_memory_gib: float | None = None
    memory_gib: float | None = None

    def __post_init__(self) -> None:
        for name, low in (("num_nodes", 1), ("cpus", 1), ("gpus", 0)):
            if (value := getattr(self, name)) is not None:
                require_at_least(name.replace("_", "-"), value, low)
        for name in ("gpu_memory_gib", "memory_gib"):
            if (value := getattr(self, name)) is not None:
                require_positive(name.replace("_", "-"), value)

    @property
    def all_cpus(self) -> float:
        """Cores of all nodes."""
        return self.num_nodes * (self.cpus or num_cpus())

    @property
    def gpu_bytes(self) -> int | None:
        """Memory of a GPU, or none where it is not known."""
        if self.gpu_memory_gib is not None:
            return round(self.gpu_memory_gib * GIB)
        import torch  # options are read without it

        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None

    @property
    def memory_bytes(self) -> int:
        """Main memory of a node."""
        return memory_bytes() if self.memory_gib is None else round(self.memory_gib * GIB)

    def num_actors(self, cluster: Cluster, num_learners: int) -> int:
        """Return how many rollout actors a run has here.

        Raises:
            ConfigError: Those that the cluster asks for do not fit.
        """
        if cluster.in_process:
            return 1
        import torch

        asked = num_learners * cluster.learner_gpus + (cluster.num_actors or 1) * cluster.gpus_per_actor
        found = torch.cuda.device_count() or math.ceil(asked / self.num_nodes)
        node = Node(self.cpus or num_cpus(), found if self.gpus is None else self.gpus)
        try:
            return cluster.count_actors([node] * self.num_nodes, num_learners)
        except ConfigError as error:
            raise ConfigError(f"{error}; for other machines than this one, give --num-nodes, --cpus, --gpus") from None
