"""RIPT: reinforcement interactive post-training of vision-language-action policies on Ray.

The Python API is offered here and imported on first use, so that `import ript_ray` is quick and has no side effects.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ript_ray.api import EvaluationOverrides, compare, evaluate, load_policy, resume, roll_out, run, summarize
    from ript_ray.config.data import Demonstrations
    from ript_ray.config.experiment import Experiment, register
    from ript_ray.config.rl import PPO, Evaluation, Sampling
    from ript_ray.runtime.cluster import Cluster
    from ript_ray.runtime.cluster_file import read_cluster

__version__ = "0.1.0"

__all__ = [
    "PPO",
    "Cluster",
    "Demonstrations",
    "Evaluation",
    "EvaluationOverrides",
    "Experiment",
    "Sampling",
    "compare",
    "evaluate",
    "load_policy",
    "read_cluster",
    "register",
    "resume",
    "roll_out",
    "run",
    "summarize",
]

_MODULES = {
    "ript_ray.api": (
        "EvaluationOverrides",
        "compare",
        "evaluate",
        "load_policy",
        "resume",
        "roll_out",
        "run",
        "summarize",
    ),
    "ript_ray.config.data": ("Demonstrations",),
    "ript_ray.config.experiment": ("Experiment", "register"),
    "ript_ray.config.rl": ("PPO", "Evaluation", "Sampling"),
    "ript_ray.runtime.cluster": ("Cluster",),
    "ript_ray.runtime.cluster_file": ("read_cluster",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'ript_ray' has no attribute {name!r}")
