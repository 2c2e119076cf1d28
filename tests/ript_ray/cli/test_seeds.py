"""Several seeds in one command: the order, what a failure costs, what is printed, the exit code."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from experiments.quickstart import EXPERIMENT
from ript_ray.cli.seeds import run_seeds, with_seeds
from ript_ray.config.experiment import Experiment
from ript_ray.errors import ConfigError, WorkerError
from tests.commands import quickstart_here, run
from tests.ript_ray.cli.test_main import text_of

Outcome = int | BaseException


class Fake:
    """Ends the run of each seed as it is told."""

    def __init__(self, **outcomes: Outcome):
        self.outcomes = {int(name.removeprefix("seed")): outcome for name, outcome in outcomes.items()}
        self.ran: list[int] = []
        self.console = Console(file=io.StringIO(), width=200)

    def __call__(self, experiment: Experiment) -> tuple[Path, int]:
        self.ran.append(experiment.seed)
        outcome = self.outcomes[experiment.seed]
        if isinstance(outcome, BaseException):
            raise outcome
        return Path(f"runs/of-seed{experiment.seed}"), outcome

    def run(self) -> int:
        return run_seeds(with_seeds(EXPERIMENT, sorted(self.outcomes)), self, self.console)

    @property
    def printed(self) -> str:
        assert isinstance(self.console.file, io.StringIO)
        return self.console.file.getvalue()


def test_all_seeds_are_evaluated_on_the_contexts_of_the_first_unless_a_seed_for_them_is_given() -> None:
    experiments = with_seeds(EXPERIMENT, (3, 1))
    assert [(each.seed, each.evaluation_seed) for each in experiments] == [(3, 3), (1, 3)]
    (other,) = with_seeds(experiments[1], (5,))  # as typed to go on with a set
    assert (other.seed, other.evaluation_seed) == (5, 3)
    for seeds, message in {(1, 1): "seeds must differ", (-1,): "seed must be from 0"}.items():
        with pytest.raises(ConfigError, match=message):
            with_seeds(EXPERIMENT, seeds)


def test_a_seed_that_fails_is_told_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    fake = Fake(seed0=WorkerError("the learner died"), seed1=ZeroDivisionError("a bug"), seed2=0)
    assert fake.run() == 1
    assert fake.ran == [0, 1, 2]
    assert "error: seed 0: the learner died" in fake.printed
    assert "not finished: seed 0, 1" in fake.printed
    assert "ript-ray summarize runs/of-seed2 RUN RUN" in fake.printed
    assert "not begun" not in fake.printed
    assert "seed 1 has failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_the_exit_code_is_that_of_the_first_seed_that_has_not_succeeded() -> None:
    assert Fake(seed0=0, seed1=3, seed2=1).run() == 3
    assert Fake(seed0=0).run() == 0


def test_one_interrupt_ends_all_seeds_and_says_what_to_type() -> None:
    fake = Fake(seed0=0, seed1=KeyboardInterrupt(), seed2=0, seed4=0)
    with pytest.raises(KeyboardInterrupt):
        fake.run()
    assert fake.ran == [0, 1]
    for part in (
        "not finished: seed 1",
        "not begun: seed 2, 4; begin with the same command and --seeds 2 4 --evaluation.seed 0",
        "ript-ray summarize runs/of-seed0 RUN RUN RUN",
    ):
        assert part in fake.printed


def test_an_impossible_setting_ends_all_seeds_at_once() -> None:
    fake = Fake(seed0=ConfigError("no"), seed1=0)
    with pytest.raises(ConfigError):
        fake.run()
    assert fake.ran == [0]
    assert "not begun" not in fake.printed


@pytest.mark.cli
def test_a_seed_beside_several_is_refused(tmp_path: Path) -> None:
    result = quickstart_here("--seeds", "0", "1", "--seed", "3", cwd=tmp_path)
    assert (result.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "--seeds names all seeds: --seed 3 is too many" in text_of(result)


@pytest.mark.cli
def test_two_seeds_run_one_after_another_and_are_summarized(tmp_path: Path) -> None:
    small = ("--num-updates", "1", "--sampling.batch-rollouts", "8", "--evaluation.contexts-per-task", "4")
    command = (sys.executable, "-m", "experiments.extending", *small, "--seeds", "1", "0", "--cluster.in-process")
    result = run(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    runs = sorted(path for path in (tmp_path / "runs" / "extending").iterdir() if not path.is_symlink())
    assert [path.name.rpartition("-")[2] for path in runs] == ["seed1", "seed0"]
    seeds = [json.loads((path / "config.json").read_text())["evaluation"]["seed"] for path in runs]
    assert seeds == [1, 1]
    assert "contexts per task, the same for each seed; worst: seed" in text_of(result)
    sizes = re.findall(r"curve: (\S+) \((\d+) MB\)", result.stdout)
    assert [Path(path).name for path, _ in sizes] == [path.name for path in runs]
