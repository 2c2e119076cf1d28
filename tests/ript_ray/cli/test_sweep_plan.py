"""A sweep's command line: its settings, seeds and trials, and what is refused before anything starts."""

import json
from pathlib import Path

import pytest

from ript_ray.cli.sweep import read_plan
from ript_ray.cli.sweep_plan import SweepPlan, make_plan, parse_seeds
from ript_ray.errors import ConfigError
from ript_ray.runs.sweep import SweepDir
from tests.commands import ROOT


def plan(*arguments: str) -> SweepPlan:
    return make_plan("experiments.quickstart", arguments, prog="sweep")


def test_trials_are_all_combinations_with_each_seed_on_the_same_contexts() -> None:
    found = plan(
        *("--over", "ppo.learning-rate=1e-4,3e-4", "--over", "sampling.dynamic=yes,no"),
        *("--over", "tasks=faucet-open-v3 window-open-v3", "--seeds", "3,0", "--num-updates", "7", "--label", "lr"),
    )
    assert len(found.trials) == 8
    first, last = found.trials[0], found.trials[-1]
    assert first.setting == "learning-rate=1e-4 dynamic=yes tasks=faucet-open-v3 window-open-v3"
    assert first.name == "lr-learning-rate-1e-4-dynamic-yes-tasks-faucet-open-v3-window-open-v3-seed3"
    assert [trial.experiment.seed for trial in found.trials] == [3] * 4 + [0] * 4
    assert {trial.experiment.evaluation_seed for trial in found.trials} == {3}
    assert {trial.experiment.num_updates for trial in found.trials} == {7}
    assert (first.experiment.ppo.learning_rate, last.experiment.ppo.learning_rate) == (1e-4, 3e-4)
    assert (first.experiment.sampling.dynamic, last.experiment.sampling.dynamic) == (True, False)
    assert last.experiment.tasks == ("faucet-open-v3", "window-open-v3")


def test_a_sweep_is_named_by_what_it_is_over_and_a_trial_is_one_process_unless_it_has_actors() -> None:
    alone = plan("--over", "ppo.learning-rate=1e-4")
    assert (alone.options.label, alone.trials[0].label) == ("learning-rate", "learning-rate-1e-4")
    assert alone.options.cluster_of_trial.in_process
    seeds = plan("--seeds", "0-2", "--cluster.num-actors", "2", "--cluster.address", "head:6379")
    assert [trial.name for trial in seeds.trials] == ["seeds-seed0", "seeds-seed1", "seeds-seed2"]
    cluster = seeds.options.cluster_of_trial
    assert (cluster.in_process, cluster.num_actors, cluster.address) == (False, 2, None)


@pytest.mark.parametrize("name", ["local/cluster.toml", "slurm/cluster.toml", "local/eight-gpus.toml"])
def test_a_cluster_file_that_says_nothing_of_actors_does_for_trials_of_one_process(name: str) -> None:
    cluster = plan("--seeds", "0-2", "--cluster-file", str(ROOT / "clusters" / name)).options.cluster_of_trial
    assert cluster.in_process == (cluster.num_actors is None)


def test_trials_start_from_a_run_and_not_from_a_link_that_moves(tmp_path: Path) -> None:
    begin = tmp_path / "20260101-000000-seed0"
    begin.mkdir()
    (tmp_path / "latest").symlink_to(begin.name)
    only_ript = ("--stages", "ript", "--start-from")
    with pytest.raises(ConfigError, match=f"latest is a link: .* name where it leads now, {begin}"):
        plan(*only_ript, str(tmp_path / "latest"))
    assert plan(*only_ript, str(begin)).trials[0].experiment.start_from == begin


def test_the_paths_of_a_sweep_are_relative_to_where_its_command_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = SweepDir(tmp_path / "runs" / "quickstart-sweep" / "learning-rate")
    sweep.path.mkdir(parents=True)
    (tmp_path / "few.toml").write_text("num-actors = 3\n")
    command = ["experiments.quickstart", "--over", "ppo.learning-rate=1e-4", "--cluster-file", "few.toml"]
    sweep.config.write_text(json.dumps({"command": command, "directory": str(tmp_path)}))
    monkeypatch.chdir(ROOT)
    found = read_plan(sweep)
    assert (found.options.cluster.num_actors, found.options.runs, Path.cwd()) == (3, tmp_path / "runs", ROOT)


def test_seeds_are_ranges_and_lists() -> None:
    assert parse_seeds("0-2,7") == (0, 1, 2, 7)
    for text in ("", "0-", "3-1", "a", "0 1", "-1"):
        with pytest.raises(ConfigError, match="seeds must"):
            parse_seeds(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--over", "ppo.learning-rate"), "--over must be NAME=VALUE,VALUE"),
        (("--over", "ppo.learning-rate=1,"), "--over must be NAME=VALUE,VALUE"),
        (("--over", "cluster.num-actors=1,2"), "an experiment has no such option"),
        (("--over", "seed=1,2"), "--seeds names the seeds"),
        (("--over", "sampling.dynamic=maybe"), "must be yes or no, not maybe"),
        (("--over", "ppo.learning-rate=1e-4,3e-4,1e-4"), "must differ from each other, not 1e-4,3e-4,1e-4"),
        (("--over", "ppo.learning-rate=1e-4,0.0001"), "the same setting twice"),
        (("--over", "ppo.clip-low=0.1", "--over", "ppo.clip-low=0.2"), "must name different options"),
        (("--over", "ppo.learning-rate=-1"), "ppo.learning-rate must be above 0"),
        (("--over", "ppo.schedule-updates=5"), "without ppo.final-learning-rate"),
        (("--seed", "3"), "--seed 3 is too many"),
        (("--seeds", "0,0"), "seeds must differ"),
        (("--label", "two words"), "label must be one word"),
        (("--stop-early",), "evaluation.every is not set"),
        (("--stop-early", "--evaluation.every", "5", "--grace-updates", "60"), "grace-updates must be from"),
        (("--grace-updates", "5"), "has no effect without stop-early"),
    ],
)
def test_what_cannot_be_run_is_refused_with_a_reason(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((ConfigError, SystemExit)) as caught:
        plan(*arguments)
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in f"{caught.value} {told}"


def test_an_unknown_option_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plan("--over", "ppo.learning-rat=1e-4")
    assert "--ppo.learning-rate" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"without cluster\.num-actors, a trial is one process"):
        assert plan("--cluster.cpus-per-actor", "2").options.cluster_of_trial
