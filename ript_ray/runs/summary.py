"""Runs of one experiment with several seeds, read from their folders."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ript_ray.checks import require
from ript_ray.config.experiment import Experiment
from ript_ray.config.serialization import flatten
from ript_ray.errors import CheckpointError
from ript_ray.evaluation.evaluate import EvaluationResult
from ript_ray.evaluation.summary import Summary
from ript_ray.runs.run_dir import RunDir
from ript_ray.storage.reading import read_object

FREE = (
    *("name", "seed", "start_from", "evaluation.every"),
    *("checkpoint_every", "keep_checkpoints", "keep_weights", "keep_versions"),
)
"""Settings in which runs may differ: samples of one experiment, and what changes no result."""


def summarize_runs(runs: Sequence[Path]) -> Summary:
    """Summarize finished runs that differ in their seeds alone; a link to one, such as `latest`, does not count.

    Raises:
        CheckpointError: A folder is not that of a run, or the run has not finished or did not post-train.
        ConfigError: There are fewer than two, two have the same seed, or they differ in anything else.
    """
    named = {path.resolve() for path in runs if not path.is_symlink()}
    runs = [path for path in runs if not path.is_symlink() or path.resolve() not in named]
    require(len(runs) > 1, f"an interval over seeds needs at least two runs, not {len(runs)}")
    experiments = {path: RunDir(path).experiment for path in runs}
    first = runs[0]
    results: dict[int, tuple[EvaluationResult, EvaluationResult]] = {}
    for path, experiment in experiments.items():
        _require_same(first, experiments[first], path, experiment)
        require(experiment.seed not in results, f"{path} has seed {experiment.seed}, as another of these runs")
        results[experiment.seed] = _read(path)
    require(len(results) == len(runs), f"{first} is named twice")
    seeds = {experiment.evaluation_seed for experiment in experiments.values()}
    return Summary.of(results, shares_contexts=len(seeds) == 1)


def _require_same(first: Path, expected: Experiment, path: Path, actual: Experiment) -> None:
    settings = [flatten(asdict(experiment)) for experiment in (expected, actual)]
    names = [name for name in settings[0] | settings[1] if name not in FREE]
    differing = [
        f"{name} {settings[1].get(name)}, not {settings[0].get(name)}"
        for name in names
        if settings[0].get(name) != settings[1].get(name)
    ]
    require(not differing, f"{path} cannot be summarized with {first}: it has {'; '.join(differing)}")


def _read(path: Path) -> tuple[EvaluationResult, EvaluationResult]:
    results = RunDir(path).results
    if not results.exists():
        raise CheckpointError(f"{path} has not finished: it has no {results.name}; resume it")
    content = read_object(results)
    try:
        return EvaluationResult.from_json(content["before"]), EvaluationResult.from_json(content["after"])
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{results} has no success before and after post-training: {error!r}") from error
