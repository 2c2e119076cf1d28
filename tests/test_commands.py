"""Every command that a document shows is executed on a tiny run, or read with all its options."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pytest
from numpy.typing import NDArray

import ript_ray
from experiments.extending import EXPERIMENT, Line, PointOnLine
from ript_envs.contract import Environment, Rendering
from tests.commands import ROOT, ript_ray_here
from tests.documents import check, documented, words_of

pytestmark = pytest.mark.cli

RUN = "runs/quickstart/latest"
EVALUATION = ("--contexts-per-task", "2", "--cluster.in-process")
CHEAP = {
    "runs": (),
    "evaluate": EVALUATION,
    "compare": EVALUATION,
    "replay": ("--group", "0", "--member", "0", "--size", "16"),
    "sync-tracking": (),
    "check-benchmark": (),
    "check-policy": (),
}
"""Commands of `ript-ray` that are executed, and the options that make them cheap; the last one of an option counts."""

COMMANDS = documented()


@dataclass(frozen=True)
class FilmedLine(Line):
    """The line with a camera, for videos."""

    kind: Literal["filmed-line"] = field(default="filmed-line", kw_only=True)  # type: ignore[assignment]
    spec = replace(Line.spec, image_shapes={"side": (16, 16, 3)})

    def make(self, task: str) -> Environment:
        return FilmedPoint()

    def with_rendering(self, *, image_size: int | None = None, rendering: Rendering | None = None) -> Self:
        return self


class FilmedPoint(PointOnLine):
    def render(self, camera: str) -> NDArray[np.uint8]:
        return np.full((16, 16, 3), int(100 + 50 * self.position), np.uint8)


def is_executed(line: str) -> bool:
    """Whether a command takes little time, and reads nothing but the tiny run; others are only parsed."""
    program, arguments = words_of(line)
    is_here = all(RUN in word for word in arguments if word.startswith(("runs/", "RUN", "WORD", "models/")))
    return program == "ript-ray" and arguments[0] in CHEAP and is_here


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Path]:
    """The folder above `runs/quickstart/latest`, which is not the quickstart but takes two seconds."""
    folder = tmp_path_factory.mktemp("documented")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_store, folder)}")
        patch.setenv("COLUMNS", "120")
        experiment = replace(
            EXPERIMENT,
            name="quickstart",
            benchmark=FilmedLine(),
            num_updates=2,
            checkpoint_every=1,
            evaluation=replace(EXPERIMENT.evaluation, every=1, contexts_per_task=2, validation_contexts_per_task=2),
        )
        ript_ray.run(experiment, ript_ray.Cluster(in_process=True), view="quiet")
        yield folder


@pytest.mark.parametrize("line", [line for line in COMMANDS if is_executed(line)])
def test_a_documented_command_succeeds_on_a_tiny_run(line: str, tiny_run: Path) -> None:
    _, (name, *arguments) = words_of(line)
    result = ript_ray_here(name, *arguments, *CHEAP[name], cwd=tiny_run)
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize("line", [line for line in COMMANDS if not is_executed(line)])
def test_a_documented_command_is_read_with_all_its_options(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check(*words_of(line))


@pytest.mark.parametrize(
    "line", ["make nothing", "ript-ray evaluate RUN --tasl reach-v3", "python -m experiments.quickstart --ppo.clip 1"]
)
def test_a_mistyped_command_of_a_document_is_noticed(line: str) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        check(*words_of(line))
    with pytest.raises(AssertionError, match="neither executed nor parsed"):
        check("quickstart", [])
