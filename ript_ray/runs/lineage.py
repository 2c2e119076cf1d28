"""Who performs the demonstrations that a policy learned from, through all runs that it comes from."""

from ript_ray.config.experiment import Experiment
from ript_ray.data.dataset import origin_of_demonstrations
from ript_ray.runs.run_dir import run_of

RANKING = ("scripted", "files of others", "unknown", "none")
"""What a policy learned from as a whole is the first of these that it learned from at all."""


def demonstrations_behind(experiment: Experiment) -> str:
    """Return who performs the demonstrations that an experiment's policy will have learned from, one of `RANKING`.

    Raises:
        RiptError: Files of demonstrations are missing or corrupt.
    """
    found: set[str] = {origin_of_demonstrations(experiment)}
    if experiment.start_from is not None:
        run = run_of(experiment.start_from)
        found.add("unknown" if run is None else run.demonstrations)
    return next((origin for origin in RANKING if origin in found), "unknown")
