"""What an experiment changes of the one that its file states, in the options that were typed for it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from enum import Enum
from typing import Any

from ript_ray.config.experiment import BENCHMARKS, POLICIES, Experiment
from ript_ray.config.serialization import flatten
from ript_ray.types import RIPT


def changed_options(base: Experiment, experiment: Experiment) -> dict[str, str]:
    """Return the options in which an experiment differs from `base`, by their shortest unique names, and their values.

    A name is as short as it can be without meaning two options: `clip-high`, but `sampling.contexts-per-task`. Where
    the policy or the benchmark is of another kind, the options that differ from the defaults of that kind are named
    beside it. The seed is left out: it makes another sample of the same experiment, and every run's name has it.
    """
    reference = with_kinds(base, policy=experiment.policy.kind, benchmark=experiment.benchmark.kind)
    expected, actual = (flatten(asdict(each)) for each in (reference, experiment))
    kinds = {f"{section}.kind": getattr(experiment, section).kind for section in ("policy", "benchmark")}
    changes = {name: kind for name, kind in kinds.items() if kind != getattr(base, name.partition(".")[0]).kind}
    missing = object()
    for name in expected | actual:
        if name != "seed" and expected.get(name, missing) != actual.get(name, missing):
            changes[name] = actual.get(name)
    suffixes = Counter(suffix for name in expected | actual for suffix in _suffixes(name))
    return {_short(name, suffixes).replace("_", "-"): _as_typed(value) for name, value in changes.items()}


def in_words(changes: Mapping[str, str]) -> str:
    """Return changes as one line: "clip-high=0.28 batch-rollouts=16"."""
    return " ".join(f"{name}={value}" for name, value in changes.items())


def with_kinds(experiment: Experiment, *, policy: str, benchmark: str) -> Experiment:
    """Return an experiment with a policy and a benchmark of these kinds; those of another kind have its defaults."""
    changes: dict[str, Any] = {}
    if benchmark != experiment.benchmark.kind:
        chosen = BENCHMARKS.find(benchmark)()
        max_steps = min(experiment.max_steps, chosen.spec.max_steps)
        changes |= {"benchmark": chosen, "tasks": chosen.tasks, "max_steps": max_steps}
    if policy != experiment.policy.kind:
        config = POLICIES.find(policy)
        changes |= {"policy": config(), "sft": config.sft_type(), "stages": (*config.sft_type.stages, RIPT)}
    return replace(experiment, **changes)


def _suffixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in reversed(range(len(parts)))]


def _short(name: str, suffixes: Mapping[str, int]) -> str:
    return next((suffix for suffix in _suffixes(name) if suffixes[suffix] == 1), name)


def _as_typed(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, (list, tuple)):
        return ",".join(map(_as_typed, value))
    return str(value.value if isinstance(value, Enum) else value)
