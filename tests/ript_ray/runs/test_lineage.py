"""Scripted demonstrations mark all that comes of them, through runs and their checkpoints."""

from dataclasses import replace
from pathlib import Path

import pytest

from ript_ray.cli.runs import Runs
from ript_ray.config.experiment import Experiment
from ript_ray.runs.lineage import demonstrations_behind, demonstrations_of, marked
from ript_ray.runs.run_dir import RunDir
from ript_ray.types import RIPT
from tests.ript_ray.data.test_hdf5 import as_the_authors_write

EXPERIMENT = Experiment("small", ("reach-v3",))
POST_TRAINING = replace(EXPERIMENT, stages=(RIPT,))


def run_with(demonstrations: str, folder: Path) -> Path:
    return RunDir.create(folder, EXPERIMENT, demonstrations=demonstrations).path


def from_files(folder: Path) -> Experiment:
    as_the_authors_write(folder / "reach-v3.hdf5")
    return replace(EXPERIMENT, demos=replace(EXPERIMENT.demos, folder=folder))


def test_who_performs_the_demonstrations_is_told_by_their_files_and_without_files_it_is_the_expert(
    tmp_path: Path,
) -> None:
    assert demonstrations_behind(EXPERIMENT) == "scripted"
    assert demonstrations_behind(from_files(tmp_path)) == "by others"


@pytest.mark.parametrize("first", ["scripted", "by others", "unknown"])
def test_post_training_takes_over_who_performed_the_demonstrations_of_the_run_it_starts_from(
    first: str, tmp_path: Path
) -> None:
    start = run_with(first, tmp_path)
    for place in (start, start / "checkpoints" / "prior-00020"):
        assert demonstrations_of(place) == first
        assert demonstrations_behind(replace(POST_TRAINING, start_from=place)) == first
    assert demonstrations_behind(replace(POST_TRAINING, start_from=tmp_path)) == "unknown"  # a model folder


def test_one_scripted_stage_is_not_forgotten(tmp_path: Path) -> None:
    start = run_with("scripted", tmp_path / "runs")
    assert demonstrations_behind(replace(from_files(tmp_path), stages=("prior", RIPT), start_from=start)) == "scripted"


def test_the_list_of_runs_and_titles_mark_what_learned_from_scripts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted, others = run_with("scripted", tmp_path), run_with("by others", tmp_path)
    Runs(tmp_path).run()
    printed = capsys.readouterr().out
    assert f"{scripted.name} * " in printed
    assert f"{others.name} * " not in printed
    assert "* learned from scripted demonstrations" in printed
    assert (marked(scripted), marked(others)) == (f"{scripted}, scripted demonstrations", str(others))
