"""`ript-ray demos`: the benchmark that is meant, and how often its scripted expert succeeded."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from ript_envs.contract import Benchmark
from ript_ray.checks import require
from ript_ray.config.experiment import BENCHMARKS
from ript_ray.data.hdf5 import expert_counts
from ript_ray.errors import ConfigError
from ript_ray.evaluation.evaluate import EvaluationResult
from ript_ray.evaluation.tables import results_table


def benchmark_with_suite(kind: str, suite: str | None) -> Benchmark:
    """Return a benchmark by its kind, and its suite if one is named.

    Raises:
        ConfigError: There is no such kind or suite, or the benchmark has no suites.
    """
    benchmark = BENCHMARKS.find(kind)()
    if suite is None:
        return benchmark
    require("suite" in {field.name for field in fields(cast(Any, benchmark))}, f"suite: {kind} has no suites")
    try:
        return replace(cast(Any, benchmark), suite=suite)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def print_success(files: Mapping[str, Path]) -> None:
    """Print how many attempts of the expert solved each task, with 95 % intervals, as far as the files tell.

    Raises:
        RiptError: A file is corrupt.
    """
    counts = {task: expert_counts(path) for task, path in files.items()}
    outcomes = {
        task: (True,) * each.num_successes + (False,) * (each.num_attempts - each.num_successes)
        for task, each in counts.items()
        if each is not None
    }
    if outcomes:
        Console().print(results_table({"success": EvaluationResult(outcomes, 0)}, "attempts of the scripted expert"))
