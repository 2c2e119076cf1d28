"""`--resume` of a launcher: which run a command that is repeated goes on with."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.extending import EXPERIMENT
from ript_ray.cli.launch import report_ended
from ript_ray.errors import ConfigError
from ript_ray.pipeline import begun_run
from ript_ray.runs.run_dir import RunDir


def test_the_run_with_the_label_and_the_seed_is_found_whatever_stands_beside_it(tmp_path: Path) -> None:
    assert begun_run(tmp_path, EXPERIMENT, "long") is None, "nothing has begun"
    begun = RunDir.create(tmp_path, EXPERIMENT, "long")
    RunDir.create(tmp_path, EXPERIMENT, "very-long")
    RunDir.create(tmp_path, EXPERIMENT, "other-seed0-long")
    RunDir.create(tmp_path, EXPERIMENT)
    RunDir.create(tmp_path, replace(EXPERIMENT, seed=1), "long")
    (begun.path.parent / "99991231-235959-seed0-long").mkdir()  # of a process that was killed as it began
    found = begun_run(tmp_path, EXPERIMENT, "long")
    assert found is not None
    assert found.path == begun.path


def test_a_run_goes_on_from_where_a_link_led_when_it_began(tmp_path: Path) -> None:
    first, second = (RunDir.create(tmp_path, replace(EXPERIMENT, name="before", seed=seed)) for seed in (0, 1))
    experiment = replace(EXPERIMENT, stages=("ript",), start_from=first.path)
    begun = RunDir.create(tmp_path, experiment, "long")
    latest = tmp_path / "before" / "latest"  # it leads to the second one by now
    found = begun_run(tmp_path, replace(experiment, start_from=latest), "long")
    assert found is not None
    assert found.path == begun.path
    with pytest.raises(ConfigError, match="was begun with other settings than start-from="):
        begun_run(tmp_path, replace(experiment, start_from=second.path), "long")


def test_a_run_that_has_ended_without_success_fails_each_time_that_its_command_is_repeated(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, EXPERIMENT, "long")
    run.results.write_text("{}")
    run.write_status("FINISHED")
    assert report_ended(run.path, Console()) == 0
    run.write_status("FAILED")
    assert report_ended(run.path, Console()) == 1


def test_a_run_with_other_settings_and_a_missing_label_are_refused(tmp_path: Path) -> None:
    RunDir.create(tmp_path, EXPERIMENT, "long")
    with pytest.raises(ConfigError, match=r"-seed0-long was begun with other settings than num-updates=31: repeat"):
        begun_run(tmp_path, replace(EXPERIMENT, num_updates=31), "long")
    with pytest.raises(ConfigError, match="--resume needs --label WORD"):
        begun_run(tmp_path, EXPERIMENT, "")
