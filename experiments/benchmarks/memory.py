"""Does a rollout actor's memory grow with the number of tasks that it has met?

Question: how much resident memory does one actor hold after each of ML45's 45 tasks, with environments bounded as by
    default (`cluster.max-environments`)?
Method: one actor on Ray rolls out a group of 16 from every task in turn, for a few steps, and reports its memory with
    each answer, as in training. Episodes are short because a simulator takes its memory when it is built.
Expected: growth until the bound is reached, after four tasks of 16 environments; less than 10 % from then on.
"""

from dataclasses import dataclass, replace

import tyro
from rich.progress import track

from experiments.benchmarks.timed import local_ray, print_table
from ript_envs.metaworld.benchmark import MetaWorld
from ript_envs.metaworld.tasks import ML45_TRAIN
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import Sampling
from ript_ray.data.contexts import training_stream
from ript_ray.rl.train import group_request
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.factory import open_runtime


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark.

    Attributes:
        tasks: Tasks, in the order in which the actor meets them.
        group_size: Environments of a task.
        num_steps: Environment steps of an episode.
        num_first: Tasks after which the memory should not grow any more.
        cluster: Of one actor.
    """

    tasks: tuple[str, ...] = ML45_TRAIN
    group_size: int = 16
    num_steps: int = 8
    num_first: int = 5
    cluster: Cluster = Cluster(num_actors=1, cpus_per_actor=0.01)  # noqa: RUF009 (frozen)


def measure(options: Options) -> list[int]:
    """Return the actor's resident memory after each task, in bytes."""
    sizes = []
    experiment = Experiment("memory", options.tasks, benchmark=MetaWorld(), max_steps=options.num_steps)
    parts = SavedPolicy.initial(experiment).components()
    with open_runtime(parts, options.cluster, with_learner=False) as runtime:
        for task in track(options.tasks, "tasks"):
            stream = training_stream(replace(experiment, tasks=(task,)))
            sampling = Sampling(options.group_size, options.group_size)
            request = group_request(stream, 0, sampling=sampling, seed=0)
            runtime.roll_out([replace(request, keep_record=False)])
            sizes.append(runtime.usage.processes["actor"][0].rss_bytes)
    return sizes


def main(options: Options) -> None:
    """Run the benchmark and print the table."""
    sizes = measure(options)
    rows = [
        (str(number), task, f"{size / 1e6:,.0f}")
        for number, (task, size) in enumerate(zip(options.tasks, sizes, strict=True), start=1)
    ]
    print_table("Resident memory of an actor after each task", ("tasks", "last task", "MB"), rows)
    first, last = sizes[min(options.num_first, len(sizes)) - 1], max(sizes)
    print(f"highest after task {options.num_first}: {100 * (last / first - 1):+.1f} % of what it was then")


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    with local_ray():
        main(chosen)
