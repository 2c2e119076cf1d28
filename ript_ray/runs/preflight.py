"""Everything that can be checked before a run begins: before its folder, its MLflow run, and hours of training."""

import logging
import shutil
from pathlib import Path

from ript_envs.gl import require_renderer
from ript_ray.config.experiment import Experiment
from ript_ray.data.contexts import held_out_contexts, require_movable, require_untrained, training_contexts
from ript_ray.data.dataset import require_demonstrations
from ript_ray.errors import ConfigError
from ript_ray.runs.model_dir import initial_policy
from ript_ray.runs.retention import expected_bytes
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import require_fit
from ript_ray.runtime.host import num_cpus
from ript_ray.seeding import Split
from ript_ray.types import RIPT

logger = logging.getLogger(__name__)


def require_start(experiment: Experiment, cluster: Cluster, runs: Path) -> SavedPolicy:
    """Check that an experiment can begin, and warn where it may not end well; return the policy that it starts from.

    Raises:
        RiptError: A policy, demonstrations or contexts that it needs are missing, damaged, too few, do not fit or are
            among those that it will be evaluated on; or it cannot run where it is to. Nothing is written.
        MissingPackageError: The benchmark's simulator or a library of the policy is not installed.
        RenderingError: The policy has cameras, and this machine cannot render.
    """
    experiment.benchmark.require_installed()
    require_fit(cluster, experiment.num_learners, experiment.policy)
    if experiment.policy.cameras and "mujoco" in experiment.benchmark.packages:
        require_renderer()
    start = initial_policy(experiment)
    if experiment.supervised_tasks or (experiment.takes_demonstrated_contexts and experiment.demos.folder is None):
        require_demonstrations(experiment)
    if experiment.evaluation.context_source == "benchmark":
        held_out_contexts(experiment)  # read from files, which must have enough of them
    _require_fresh_contexts(experiment)
    if RIPT in experiment.stages:
        require_movable(experiment)
    _warn_of_few_cores(experiment, cluster)
    _warn_of_a_small_disk(experiment, start, runs)
    return start


def _require_fresh_contexts(experiment: Experiment) -> None:
    """Check that contexts from files can be used, and that none of them is held out; those from seeds always can."""
    source = experiment.sampling.context_source
    if source is None and experiment.demos.folder is None:
        return
    if RIPT in experiment.stages and isinstance(source, Path) and source.is_dir():
        raise ConfigError(
            f"sampling.context-source must be demos or a JSON file, not the folder {source}: for the initial states of "
            f"the demonstrations in it, use --demos.folder {source} --sampling.context-source demos"
        )
    if RIPT in experiment.stages and (isinstance(source, Path) or (source and experiment.demos.folder)):
        training_contexts(experiment)
    splits = (Split.TEST,) if experiment.evaluation.every is None else Split
    for split in splits:  # contexts that are drawn may need a simulator of each task
        require_untrained(held_out_contexts(experiment, split), experiment)


def _warn_of_few_cores(experiment: Experiment, cluster: Cluster) -> None:
    num_learners, num_threads = experiment.num_learners, experiment.learner_threads
    if cluster.joined_address is None and num_learners * num_threads > num_cpus():
        logger.warning(
            "learners of %d threads: %d, on %d cores: they will wait for each other; lower num-learners or "
            "learner-threads",
            num_threads,
            num_learners,
            num_cpus(),
        )


def _warn_of_a_small_disk(experiment: Experiment, start: SavedPolicy, runs: Path) -> None:
    """Compare what the run may take with what is free; how much it will take is not known exactly."""
    there = next(folder for folder in (runs.absolute(), *runs.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    needed = expected_bytes(experiment, sum(array.nbytes for array in start.arrays.values()))
    if needed > free:
        logger.warning(
            "%s has %.0f MB of free space, and the run may take up to %.0f MB: free some, or lower keep-versions (%s) "
            "or keep-checkpoints (%s)",
            runs,
            free / 1e6,
            needed / 1e6,
            experiment.keep_versions,
            experiment.keep_checkpoints,
        )
