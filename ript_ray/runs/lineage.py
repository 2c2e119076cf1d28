"""Who performs the demonstrations that a policy learned from, through all runs that it comes from."""

from pathlib import Path

from ript_ray.config.experiment import Experiment
from ript_ray.data.dataset import origin_of_demonstrations
from ript_ray.runs.run_dir import SCRIPTED, run_of

RANKING = (SCRIPTED, "by others", "unknown", "none")
"""What a policy learned from as a whole is the first of these that it learned from at all."""


def demonstrations_behind(experiment: Experiment) -> str:
    """Return who performs the demonstrations that an experiment's policy will have learned from, one of `RANKING`.

    Raises:
        RiptError: Files of demonstrations are missing or corrupt.
    """
    found: set[str] = {origin_of_demonstrations(experiment)}
    if experiment.start_from is not None:
        found.add(demonstrations_of(experiment.start_from))
    return next((origin for origin in RANKING if origin in found), "unknown")


def demonstrations_of(policy: Path) -> str:
    """Return who performs the demonstrations behind a run or a checkpoint of one; of a model folder, it is unknown."""
    run = run_of(policy.absolute())
    return "unknown" if run is None else run.demonstrations


def marked(policy: Path) -> str:
    """Return a policy's path for a title, with a mark if scripted demonstrations are behind it."""
    return f"{policy}, scripted demonstrations" if demonstrations_of(policy) == SCRIPTED else str(policy)
