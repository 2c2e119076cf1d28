"""`--seeds` of a launcher: runs of one experiment with several seeds, one after another, and their summary."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ript_ray.checks import require
from ript_ray.cli.entrypoint import print_line
from ript_ray.config.experiment import Experiment
from ript_ray.errors import ConfigError, RiptError

logger = logging.getLogger(__name__)

RunOne = Callable[[Experiment], tuple[Path, int]]
"""Runs an experiment; returns the run's folder and the exit code."""


def with_seeds(experiment: Experiment, seeds: Sequence[int]) -> list[Experiment]:
    """Return the experiment with each seed; all are evaluated on the same contexts, so their figures can be paired.

    These are the contexts of `evaluation.seed`, or of the first seed if that is not given.

    Raises:
        ConfigError: A seed is named twice, or out of range.
    """
    require(len(set(seeds)) == len(seeds), f"seeds must differ from each other, not {' '.join(map(str, seeds))}")
    shared = seeds[0] if experiment.evaluation.seed is None else experiment.evaluation.seed
    evaluation = replace(experiment.evaluation, seed=shared)
    return [replace(experiment, seed=seed, evaluation=evaluation) for seed in seeds]


def run_seeds(experiments: Sequence[Experiment], run: RunOne, console: Console) -> int:
    """Run experiments that differ in their seeds; a seed that fails is told, and the others go on.

    Returns:
        0 if all have succeeded, else the exit code of the first that has not.

    Raises:
        ConfigError: A setting is impossible: it is the same for every seed.
    """
    seeds = [experiment.seed for experiment in experiments]
    logger.info("all seeds are evaluated on the contexts of evaluation.seed %d", experiments[0].evaluation_seed)
    folders: dict[int, Path] = {}
    codes: dict[int, int] = {}
    try:
        for number, experiment in enumerate(experiments, start=1):
            print_line(console, f"seed {experiment.seed}: run {number} of {len(experiments)}")
            codes[experiment.seed] = 1
            try:
                folders[experiment.seed], codes[experiment.seed] = run(experiment)
            except ConfigError:  # of this seed as of all others
                del codes[experiment.seed]
                raise
            except RiptError as error:
                codes[experiment.seed] = error.exit_code
                print_line(console, f"error: seed {experiment.seed}: {error}")
            except Exception:  # boundary: the other seeds are worth their runs
                logger.exception("seed %d has failed", experiment.seed)
    finally:
        if codes:
            _say_what_is_left(seeds, codes, folders, experiments[0].evaluation_seed, console)
    _summarize(folders, console)
    return next((code for code in codes.values() if code), 0)


def _say_what_is_left(
    seeds: Sequence[int], begun: dict[int, int], folders: dict[int, Path], evaluation_seed: int, console: Console
) -> None:
    unfinished = [str(seed) for seed in begun if seed not in folders]
    waiting = [str(seed) for seed in seeds if seed not in begun]
    if unfinished:
        advice = "go on with the line `ript-ray resume` above; without one, begin again"
        print_line(console, f"not finished: seed {', '.join(unfinished)}; {advice}")
    if waiting:
        options = f"--seeds {' '.join(waiting)} --evaluation.seed {evaluation_seed}"
        print_line(console, f"not begun: seed {', '.join(waiting)}; begin with the same command and {options}")
    if unfinished or waiting:
        known = [str(folder) for folder in folders.values()]
        missing = ["RUN"] * (len(seeds) - len(known))
        print_line(console, f"when all have finished: ript-ray summarize {' '.join(known + missing)}")


def _summarize(folders: dict[int, Path], console: Console) -> None:
    from ript_ray.evaluation.tables import summary_table
    from ript_ray.runs.summary import summarize_runs

    if len(folders) > 1:
        try:
            console.print(summary_table(summarize_runs(list(folders.values()))))
        except RiptError as error:  # such as runs without post-training
            print_line(console, f"no summary: {error}")
            return
        print_line(console, f"again: ript-ray summarize {' '.join(map(str, folders.values()))}")
