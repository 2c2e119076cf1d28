"""What an experiment changes of the one that its file states, as options, and whether it matters."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from enum import Enum
from typing import Any, cast

import pydantic

from ript_envs.contract import Benchmark
from ript_ray.checks import require
from ript_ray.config.experiment import BENCHMARKS, POLICIES, Experiment
from ript_ray.config.serialization import flatten, problems_in
from ript_ray.errors import ConfigError
from ript_ray.types import RIPT

POST_TRAINING = (
    *("sampling", "ppo", "evaluation.every", "num_updates", "num_learners"),
    *("checkpoint_every", "keep_checkpoints", "keep_weights", "keep_versions"),
)
"""Options of the last stage alone."""


def changed_options(base: Experiment, experiment: Experiment) -> dict[str, str]:
    """Return the options in which an experiment differs from `base`, by their shortest unique names, and their values.

    A name is as short as it can be without meaning two options: `clip-high`, but `sampling.contexts-per-task`. Where
    the policy or the benchmark is of another kind, the options that differ from the defaults of that kind are named
    beside it. The seed is left out: it makes another sample of the same experiment, and every run's name has it.
    """
    names = flatten(asdict(experiment)) | flatten(asdict(_reference(base, experiment)))
    suffixes = Counter(suffix for name in names for suffix in _suffixes(name))
    sections = ("policy", "benchmark")
    kinds = {
        f"{section}.kind": (getattr(base, section).kind, getattr(experiment, section).kind) for section in sections
    }
    changes: dict[str, Any] = {name: new for name, (old, new) in kinds.items() if old != new}
    changes |= {name: value for name, value in _differences(base, experiment).items() if name != "seed"}
    return {_short(name, suffixes).replace("_", "-"): _as_typed(value) for name, value in changes.items()}


def require_effect(base: Experiment, experiment: Experiment) -> None:
    """Check that what was changed of `base` changes anything.

    Raises:
        ConfigError: An option has no effect, because of the others.
    """
    unused = unused_options(experiment)
    for name in _differences(base, experiment):
        for option, reason in unused.items():
            if name == option or name.startswith(f"{option}."):
                raise ConfigError(f"--{name.replace('_', '-')} has no effect: {reason}")


def unused_options(experiment: Experiment) -> dict[str, str]:
    """Return the options, or groups of options, that an experiment does not use, and why."""
    policy, demos, stages = experiment.policy, experiment.demos, experiment.stages
    unused = {"benchmark.cameras": "policy.cameras names the cameras that are rendered"}
    unused |= {f"policy.{name}": reason for name, reason in policy.unused_fields().items()}
    if not policy.cameras:
        unused |= {f"benchmark.{name}": "the policy reads no camera" for name in experiment.benchmark.render_settings}
    unused |= {f"sft.{name}": f"{name} is not among the stages" for name in experiment.sft.stages if name not in stages}
    if stages == (RIPT,):
        unused["sft"] = "there is no supervised stage"
        if experiment.sampling.context_source != "demos":
            unused["demos"] = "there is no supervised stage, and contexts are not those of demonstrations"
    if demos.folder is None:
        without = "without demos.folder, demonstrations are recorded"
        unused |= {"demos.selection": without, "demos.max_memory_bytes": without}
    else:
        unused |= dict.fromkeys(("demos.action_noise", "demos.max_attempts"), "demos.folder names recorded ones")
    if RIPT not in stages:
        unused |= dict.fromkeys(POST_TRAINING, "ript is not among the stages")
    if experiment.ppo.final_learning_rate is None:
        constant = "without ppo.final-learning-rate, the learning rate is constant"
        unused |= {"ppo.schedule_updates": constant, "ppo.schedule_every": constant}
    if experiment.ppo.num_passes == 1:
        unused["ppo.encoding_cache_bytes"] = "with one iteration, a decision is scored once in an update"
    if not experiment.keep_weights:
        unused["keep_versions"] = "no-keep-weights keeps none"
    return unused


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


def with_fields(benchmark: Benchmark, values: Mapping[str, Any]) -> Benchmark:
    """Return a benchmark with other values of some fields, as the command line gives them.

    Raises:
        ConfigError: There is no such field, or a value is not allowed.
    """
    if not values:
        return benchmark  # which may be anything, where it is yet to be checked
    content = asdict(cast(Any, benchmark))
    for name in values:
        require(
            name in content and name != "kind",
            f"--benchmark.{name.replace('_', '-')}: {benchmark.spec.name} has no such field; it has "
            f"{', '.join(sorted(content.keys() - {'kind'})).replace('_', '-')}",
        )
    try:
        return pydantic.TypeAdapter(type(benchmark)).validate_python(content | dict(values))
    except pydantic.ValidationError as error:
        raise ConfigError(f"--benchmark: {'; '.join(problems_in(error))}") from None


def for_evaluation(benchmark: Benchmark, values: Mapping[str, Any]) -> Benchmark:
    """Return a benchmark with other values of fields that an evaluation may change.

    Raises:
        ConfigError: A field is none of these, or a value is not allowed.
    """
    changed = with_fields(benchmark, values)
    for name in values:
        require(
            name in benchmark.evaluation_fields,
            f"--benchmark.{name.replace('_', '-')} decides what the policy reads, which an evaluation must not change; "
            f"it may change {', '.join(benchmark.evaluation_fields).replace('_', '-') or 'nothing'}",
        )
    return changed


def _reference(base: Experiment, experiment: Experiment) -> Experiment:
    return with_kinds(base, policy=experiment.policy.kind, benchmark=experiment.benchmark.kind)


def _differences(base: Experiment, experiment: Experiment) -> dict[str, Any]:
    """Return the fields in which an experiment differs from `base` with its kinds, by their full names."""
    expected, actual = (flatten(asdict(each)) for each in (_reference(base, experiment), experiment))
    missing = object()
    return {
        name: actual.get(name) for name in expected | actual if expected.get(name, missing) != actual.get(name, missing)
    }


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
