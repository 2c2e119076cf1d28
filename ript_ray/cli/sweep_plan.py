"""What a sweep's command line means: which settings, which seeds, and the trials that these make."""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from ript_ray.checks import require, require_between
from ript_ray.cli.entrypoint import WithClusterFile
from ript_ray.cli.launch import base_of, parse_options
from ript_ray.cli.plan import find_experiments
from ript_ray.cli.seeds import with_seeds
from ript_ray.config.changes import require_effect
from ript_ray.config.experiment import Experiment, register
from ript_ray.config.serialization import flatten
from ript_ray.errors import ConfigError
from ript_ray.runs.run_dir import may_lead_elsewhere
from ript_ray.runs.sweep import Trial
from ript_ray.runtime.cluster import Cluster
from ript_ray.tracking.store import TrackerName

NOT_SWEPT = {
    "seed": "--seeds names the seeds",
    "name": "all trials are of one experiment",
    "evaluation.seed": "all trials are evaluated on the same contexts",
}

OF_ACTORS_ALONE = (
    *("start_timeout_s", "group_timeout_s", "update_timeout_s", "node_timeout_s"),
    *("straggler_factor", "max_replacements", "run_ahead"),
)
"""Settings of a cluster, as its file may have them, that mean nothing to a trial which is one process, and cost it
nothing."""


@dataclass(frozen=True)
class SweepOptions(WithClusterFile):
    """Many runs of one experiment, side by side.

    Attributes:
        experiment: What is learned. Its options apply to all trials.
        over: An option of the experiment and its values, as NAME=VALUE,VALUE (--over ppo.learning-rate=1e-4,3e-4);
            repeated, all combinations are tried. A value with several words is written with spaces between them.
        seeds: Seeds of each setting, such as 0-4, or 0,2,5. All trials are evaluated on the same contexts: those of
            evaluation.seed, or of the first seed.
        label: The sweep's name, a word: of its folder, runs/<experiment>-sweep/<label>, and in the names of its runs.
            Unless given, the names of the options that it is over.
        stop_early: Stop trials that do worse than others on the validation contexts (asynchronous successive halving,
            ASHA); needs evaluation.every. A trial that is stopped keeps its checkpoints, and `ript-ray resume` goes on.
        grace_updates: Updates before which no trial is stopped, at least evaluation.every, which it is unless given,
            and below num-updates.
        keep_one_in: At grace-updates, this many times as many, and so on, a trial goes on if it is among the best of
            this fraction of those that got so far; from 2 to 100. Source: ASHA (Li et al. 2020), 4.
        cluster: What each trial needs, and the cluster that the sweep runs on. With num-actors, a trial has that many
            rollout actors of its own; without, it is one process on one core, which wastes nothing where there are as
            many trials as cores.
        runs: Folder of the runs of all experiments, on a file system that all machines of the cluster share.
        trackers: Where metrics go besides metrics.jsonl in each run's folder: mlflow, tensorboard, both, or none.
        plugin: Policies and benchmarks of your own, as MODULE:NAME.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    over: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    seeds: str = "0"
    label: str = ""
    stop_early: bool = False
    grace_updates: int | None = None
    keep_one_in: int = 4
    cluster: Cluster = field(default_factory=Cluster)
    runs: Path = Path("runs")
    trackers: tuple[TrackerName, ...] = ("mlflow",)
    plugin: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_between("keep-one-in", self.keep_one_in, 2, 100)
        require(self.stop_early or self.grace_updates is None, "grace-updates has no effect without stop-early")

    @property
    def first_rung(self) -> int:
        """Updates before which no trial is stopped.

        Raises:
            ConfigError: Trials cannot be compared, or have ended by then.
        """
        every, num_updates = self.experiment.evaluation.every, self.experiment.num_updates
        require(
            every is not None,
            "stop-early compares trials on the validation contexts, but evaluation.every is not set: set it to the "
            "number of updates between two comparisons",
        )
        assert every is not None
        grace = every if self.grace_updates is None else self.grace_updates
        require(
            every <= grace < num_updates,
            f"grace-updates must be from evaluation.every {every} to below num-updates {num_updates}, not {grace}",
        )
        return grace

    @property
    def cluster_of_trial(self) -> Cluster:
        """Where a trial runs, inside what the sweep has reserved for it."""
        if self.cluster.num_actors is not None:
            return replace(self.cluster, address=None)
        unused: dict[str, Any] = {
            each.name: each.default for each in dataclasses.fields(Cluster) if each.name in OF_ACTORS_ALONE
        }
        try:
            return replace(self.cluster, address=None, in_process=True, **unused)
        except ConfigError as error:
            raise ConfigError(f"{error}: without cluster.num-actors, a trial is one process") from None


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, as its command line has it.

    Attributes:
        options: The options.
        trials: The trials, in the order in which they start: the first seed of each setting, then the second, ...
        base: The experiment as its file states it.
        description: Its question, in words.
    """

    options: SweepOptions
    trials: tuple[Trial, ...]
    base: Experiment
    description: str


def make_plan(reference: str, arguments: Sequence[str], *, prog: str) -> SweepPlan:
    """Read a command line: an experiment as `ript-ray plan` takes it, and the options that follow.

    Raises:
        RiptError: The experiment, an option or a value is unknown, impossible or without effect.
        SystemExit: The same, told by the parser.
    """
    experiments, description = find_experiments(reference)
    parse = partial(parse_options, SweepOptions, experiments, prog=prog, description=description)
    options = parse(arguments)
    base = base_of(experiments, arguments)
    experiment = options.experiment
    register(type(experiment.policy), type(experiment.benchmark))
    if (start := experiment.start_from) and may_lead_elsewhere(start):
        advice = f"name where it leads now, {start.resolve()}"
        raise ConfigError(f"--start-from {start} is a link: not all trials may start from the same run; {advice}")
    require(experiment.seed == base.seed, f"--seeds names all seeds: --seed {experiment.seed} is too many")
    swept = [_parse_over(each, experiment) for each in options.over]
    names = [name for name, _ in swept]
    require(len(set(names)) == len(names), f"--over must name different options, not {' '.join(names)}")
    options = replace(options, label=options.label or _slug("-".join(map(_last, names))) or "seeds")
    require(re.fullmatch(r"\w[\w.+-]*", options.label) is not None, f"label must be one word, not {options.label!r}")
    settings: dict[str, Experiment] = {}
    for values in itertools.product(*(values for _, values in swept)):
        chosen = list(zip(names, values, strict=True))
        words = [word for name, value in chosen for word in _as_typed(name, value, experiment)]
        setting = " ".join(f"{_last(name)}={value}" for name, value in chosen)
        settings[setting] = parse([*arguments, *words]).experiment
        require_effect(base, settings[setting])
    trials = _trials(settings, parse_seeds(options.seeds), options.label)
    if options.stop_early:
        assert options.first_rung
    return SweepPlan(options, trials, base, description)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds that a text names: "0-4", "0,2,5", "0-2,7".

    Raises:
        ConfigError: It is of another form.
    """
    require(
        re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text) is not None, f"seeds must be such as 0-4 or 0,2,5, not {text!r}"
    )
    parts = [tuple(map(int, part.split("-"))) for part in text.split(",")]
    for part in parts:
        require(part[0] <= part[-1], f"seeds must count up, not {part[0]}-{part[-1]}")
    return tuple(seed for part in parts for seed in range(part[0], part[-1] + 1))


def _parse_over(text: str, experiment: Experiment) -> tuple[str, list[str]]:
    """Return the name of an option and its values; values are checked when they are used."""
    name, _, values_text = text.partition("=")
    name = name.removeprefix("--").replace("_", "-")
    values = values_text.split(",")
    require(
        bool(name) and all(value.strip() for value in values),
        f"--over must be NAME=VALUE,VALUE, such as ppo.learning-rate=1e-4,3e-4, not {text!r}",
    )
    require(
        len(set(values)) == len(values), f"--over {name}: the values must differ from each other, not {values_text}"
    )
    require(name not in NOT_SWEPT, f"--over {name}: {NOT_SWEPT.get(name)}")
    sections = [each.name.replace("_", "-") for each in dataclasses.fields(experiment)]
    require(
        name.split(".")[0] in sections,
        f"--over {name}: an experiment has no such option; its options, or what they begin with: {', '.join(sections)}",
    )
    return name, values


def _as_typed(name: str, value: str, experiment: Experiment) -> list[str]:
    """Return an option and its value as words of a command line."""
    if isinstance(flatten(asdict(experiment)).get(name.replace("-", "_")), bool):
        switches = {"yes": "", "true": "", "no": "no-", "false": "no-"}
        require(value.lower() in switches, f"--over {name} must be yes or no, not {value}")
        section, dot, last = name.rpartition(".")
        return [f"--{section}{dot}{switches[value.lower()]}{last}"]
    words = value.split()
    return [f"--{name}={words[0]}"] if len(words) == 1 else [f"--{name}", *words]


def _trials(settings: dict[str, Experiment], seeds: Sequence[int], label: str) -> tuple[Trial, ...]:
    known: dict[Experiment | str, str] = {}
    samples: dict[str, list[Trial]] = {}
    for setting, experiment in settings.items():
        slug = _slug(setting)
        own = slug if slug.startswith(label) else "-".join(filter(None, [label, slug]))
        for key in (repr(experiment), own):
            require(key not in known, f"--over has the same setting twice: {known.get(key)} and {setting}")
            known[key] = setting
        samples[setting] = [Trial(setting, own, sample) for sample in with_seeds(experiment, seeds)]
    return tuple(trial for of_seed in zip(*samples.values(), strict=True) for trial in of_seed)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _slug(text: str) -> str:
    """Return a text as a word that can be part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", text)
