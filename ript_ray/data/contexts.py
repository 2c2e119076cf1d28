"""The context dataset of an experiment: drawn from the seed, or read from files.

Source: RIPT-VLA Algorithm 1, lines 1 and 6.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ript_envs.contract import Benchmark
from ript_ray.checks import require
from ript_ray.config.data import Demonstrations
from ript_ray.config.experiment import Experiment
from ript_ray.data.dataset import open_source
from ript_ray.errors import CheckpointError, ConfigError, RiptError
from ript_ray.evaluation.evaluate import evaluation_requests
from ript_ray.rl.context_stream import ContextStream, Perturb
from ript_ray.runtime.heartbeat import with_heartbeat
from ript_ray.seeding import Purpose, Split, seed_of, text_code
from ript_ray.storage.reading import read_json
from ript_ray.types import RIPT, Context, RolloutRequest, Seed

logger = logging.getLogger(__name__)


def draw_contexts(
    benchmark: Benchmark, tasks: Sequence[str], *, num_per_task: int, seed: int, purpose: Purpose
) -> tuple[Context, ...]:
    """Draw contexts of all tasks, task by task.

    Different purposes give disjoint sets; the same arguments give the same set in every process.

    Raises:
        ValueError: The benchmark has no such task.
    """
    return tuple(
        Context(
            task=task,
            instruction=benchmark.instruction(task),
            initial_state=tuple(benchmark.draw_initial_state(task, seed_of(seed, purpose, index)).tolist()),
        )
        for task in with_heartbeat(tasks, "drawing contexts, tasks", len(tasks))
        for index in range(num_per_task)
    )


def with_noise(benchmark: Benchmark, contexts: Sequence[Context], *, std_m: float, seed: int) -> tuple[Context, ...]:
    """Return the contexts with randomly perturbed object positions: another dataset, not noise within groups.

    Args:
        benchmark: The benchmark of the tasks.
        contexts: The contexts to perturb.
        std_m: Standard deviation along each horizontal axis, in metres, at least 0.
        seed: The experiment's seed.

    Raises:
        ConfigError: No valid perturbation of a context was found.
    """
    if std_m == 0.0:
        return tuple(contexts)
    return tuple(
        _moved(benchmark, context, std_m, seed_of(seed, Purpose.CONTEXT_NOISE, text_code(context.task), index))
        for index, context in enumerate(contexts)
    )


def rollout_noise(benchmark: Benchmark, *, std_m: float) -> Perturb | None:
    """Return what perturbs the object positions of each rollout, as when scenes are set up by hand; None at 0.

    Args:
        benchmark: The benchmark of the tasks.
        std_m: Standard deviation along each horizontal axis, in metres, at least 0. Source: RIPT-VLA, appendix A.4
            (up to 0.175; 0.025 is the spread of LIBERO-LONG's own initial states).
    """

    def perturb(context: Context, seed: Seed) -> Context:
        return _moved(benchmark, context, std_m, seed)

    return perturb if std_m > 0.0 else None


def _moved(benchmark: Benchmark, context: Context, std_m: float, seed: Seed) -> Context:
    try:
        state = benchmark.move_objects(context.task, np.array(context.initial_state), std_m=std_m, seed=seed)
    except ValueError as error:
        raise ConfigError(f"noise on contexts: {error}") from None
    return Context(context.task, context.instruction, tuple(state.tolist()))


def read_contexts(path: Path, benchmark: Benchmark, tasks: Sequence[str], *, num_per_task: int) -> tuple[Context, ...]:
    """Read the first contexts of each task from a JSON file: a list of objects with `task` and `initial_state`.

    Raises:
        ConfigError: The file is missing or invalid, or has too few contexts of a task.
    """
    by_task: dict[str, list[Context]] = {task: [] for task in tasks}
    try:
        rows = read_json(path)
    except CheckpointError as error:
        raise ConfigError(f"sampling.context-source: {error}") from None
    try:
        for row in rows:
            state = tuple(float(entry) for entry in row["initial_state"])
            if row["task"] in by_task:
                by_task[row["task"]].append(Context(row["task"], benchmark.instruction(row["task"]), state))
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} is not a valid context file (a list of objects with task and initial_state): {error!r}"
        ) from None
    for task, contexts in by_task.items():
        if len(contexts) < num_per_task:
            raise ConfigError(
                f"{path} contains {len(contexts)} contexts of {task}, fewer than the {num_per_task} needed"
            )
    return tuple(context for contexts in by_task.values() for context in contexts[:num_per_task])


def held_out_contexts(experiment: Experiment, split: Split = Split.TEST) -> tuple[Context, ...]:
    """Return the contexts that an experiment is evaluated on; training never draws them.

    Raises:
        ConfigError: They are to be the benchmark's, and it has none or too few.
    """
    if split is Split.TEST and experiment.evaluation.context_source == "benchmark":
        return _contexts_of_the_benchmark(experiment)
    return draw_contexts(
        experiment.benchmark,
        experiment.tasks,
        num_per_task=experiment.evaluation.num_contexts(split),
        seed=experiment.evaluation_seed,
        purpose=split.contexts,
    )


def _contexts_of_the_benchmark(experiment: Experiment) -> tuple[Context, ...]:
    benchmark, num_wanted = experiment.benchmark, experiment.evaluation.contexts_per_task
    contexts: list[Context] = []
    for task in experiment.tasks:
        states = benchmark.evaluation_states(task)
        if states is None:
            raise ConfigError(
                f"evaluation.context-source must be drawn: {benchmark.spec.name} comes with no initial states of {task}"
            )
        require(
            num_wanted <= len(states),
            f"evaluation.contexts-per-task must be at most {len(states)}, the initial states of {task} that come with "
            f"{benchmark.spec.name}, not {num_wanted}; evaluation.context-source drawn has no limit",
        )
        instruction = benchmark.instruction(task)
        contexts += [Context(task, instruction, tuple(state.tolist())) for state in states[:num_wanted]]
    return tuple(contexts)


def held_out_requests(experiment: Experiment, split: Split = Split.TEST) -> list[RolloutRequest]:
    """Return the requests that evaluate a policy of an experiment on its held-out contexts."""
    settings = experiment.evaluation
    return evaluation_requests(
        held_out_contexts(experiment, split),
        batch_size=settings.batch_size,
        seed=experiment.evaluation_seed,
        split=split,
        deterministic=settings.deterministic,
    )


def training_contexts(experiment: Experiment) -> tuple[Context, ...]:
    """Return the context dataset of RIPT, task by task.

    Raises:
        RiptError: The source of contexts is missing, corrupt, or has too few, or no valid perturbation was found.
    """
    sampling = experiment.sampling
    return with_noise(
        experiment.benchmark, _without_noise(experiment), std_m=sampling.context_noise_m, seed=experiment.seed
    )


def _without_noise(experiment: Experiment) -> tuple[Context, ...]:
    sampling, benchmark, tasks = experiment.sampling, experiment.benchmark, experiment.tasks
    source, num_per_task = sampling.context_source, sampling.contexts_per_task
    if source is None:
        return draw_contexts(
            benchmark, tasks, num_per_task=num_per_task, seed=experiment.seed, purpose=Purpose.TRAINING_CONTEXTS
        )
    if source == "demos":
        return _demonstrated_contexts(experiment, experiment.demos, num_per_task)
    if source.is_dir():  # older runs only: the first demonstrations of each file, whatever `demos` selects
        demos = Demonstrations(folder=source, num_per_task=num_per_task)
        return _demonstrated_contexts(experiment, demos, num_per_task)
    return read_contexts(source, benchmark, tasks, num_per_task=num_per_task)


def _demonstrated_contexts(
    experiment: Experiment, settings: Demonstrations, num_per_task: int | None
) -> tuple[Context, ...]:
    """Return the initial states of the demonstrations that are trained on, from files or recorded; None for all."""
    benchmark = experiment.benchmark
    source = open_source(
        benchmark,
        experiment.tasks,
        settings=settings,
        sensors=(),
        cameras=(),
        max_steps=experiment.max_steps,
        seed=experiment.seed,
    )
    contexts = []
    for task in experiment.tasks:
        trained, _ = source.read(task)
        for demonstration in trained[:num_per_task]:
            if demonstration.initial_state is None:
                raise RiptError(f"the demonstrations of {task} have no initial states to draw contexts from")
            state = tuple(demonstration.initial_state.tolist())
            contexts.append(Context(task, demonstration.instruction, state))
    return tuple(contexts)


def require_untrained(contexts: Sequence[Context], experiment: Experiment) -> None:
    """Check that an experiment trains on none of these held-out contexts.

    Contexts drawn from seeds are others by construction. Those of files are compared as the files have them, before any
    noise, and in single precision, which a file may have stored.

    Raises:
        ConfigError: It trains on some.
    """
    source, demos = experiment.sampling.context_source, experiment.demos
    trained: dict[str, Callable[[], tuple[Context, ...]]] = {}
    if RIPT in experiment.stages and isinstance(source, Path):
        trained["sampling.context-source"] = lambda: _without_noise(experiment)
    if demos.folder is not None and (experiment.supervised_tasks or source == "demos"):
        trained["demos.folder"] = lambda: _demonstrated_contexts(experiment, demos, None)
    held_out = {_rounded(context) for context in contexts}
    for option, read in trained.items():
        try:
            shared = len(held_out & {_rounded(context) for context in read()})
        except (RiptError, OSError) as error:
            logger.warning("whether %s holds contexts of the evaluation is not known: %s", option, error)
            continue
        require(
            not shared,
            f"{option}: {shared} of its contexts are among the held-out ones of the evaluation: a policy must not be "
            "evaluated on contexts that it was trained on",
        )


def _rounded(context: Context) -> tuple[str, bytes]:
    return context.task, np.array(context.initial_state, np.float32).tobytes()


def training_stream(experiment: Experiment) -> ContextStream:
    """Return the stream of training contexts of RIPT, with the noise on rollouts.

    Raises:
        RiptError: The source of contexts is missing, corrupt, or has too few.
    """
    perturb = rollout_noise(experiment.benchmark, std_m=experiment.sampling.rollout_noise_m)
    return ContextStream(training_contexts(experiment), experiment.seed, perturb=perturb)


def require_movable(experiment: Experiment) -> None:
    """Check that the objects of every task can be moved, if contexts or rollouts are to be perturbed.

    Raises:
        ConfigError: The benchmark cannot move them.
    """
    sampling = experiment.sampling
    if perturb := rollout_noise(experiment.benchmark, std_m=max(sampling.rollout_noise_m, sampling.context_noise_m)):
        one_each = draw_contexts(
            experiment.benchmark,
            experiment.tasks,
            num_per_task=1,
            seed=experiment.seed,
            purpose=Purpose.TRAINING_CONTEXTS,
        )
        for context in one_each:
            perturb(context, seed_of(experiment.seed, Purpose.ROLLOUT_NOISE))
