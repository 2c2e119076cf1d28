"""What a supervised stage reads ahead in threads: the same bits as without, also resumed, and what errors become."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from ript_envs.contract import EnvironmentSpec
from ript_ray.errors import RiptError
from ript_ray.pipeline import resume_experiment, run_experiment
from ript_ray.policies import supervised
from ript_ray.policies.base import PolicyConfig
from ript_ray.policies.openvla_oft.config import OpenVLAOFTSFT
from ript_ray.policies.quest.config import QuestSFT
from ript_ray.policies.supervised import SFTConfig, SupervisedStage, Windows
from ript_ray.runs import checkpoint
from ript_ray.runtime.cluster import Cluster
from ript_ray.sft.trainer import SupervisedTrainer
from ript_ray.tracking.console import View
from ript_ray.tracking.logs import ViewMode
from tests.commands import only_folder
from tests.ript_ray.policies.openvla_oft.test_stages import NEW
from tests.ript_ray.policies.test_read_ahead import readers
from tests.stored import SEEING, SeenLine, corrupt_images, stored_experiment, stored_windows, write_files

pytestmark = [pytest.mark.cli, pytest.mark.usefixtures("store")]
STAGE = SupervisedStage(num_steps=6, batch_size=8, learning_rate=1e-2)
BY_EPOCHS = SupervisedStage(num_epochs=2, batch_size=16, learning_rate=1e-2)
POLICIES: dict[str, tuple[PolicyConfig, SFTConfig]] = {
    "quest": (SEEING, QuestSFT(autoencoder=STAGE, prior=BY_EPOCHS)),
    "openvla-oft": (NEW, OpenVLAOFTSFT(regression=STAGE, scale=STAGE)),
}
SPEC: EnvironmentSpec = SeenLine().spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("demonstrations"))


class Stage:
    """A stage in its middle: its policy and its trainer."""

    def __init__(self, kind: str, index: int, windows: Windows):
        config, sft = POLICIES[kind]
        torch.manual_seed(0)
        self.policy: Any = cast(Any, config.build(SPEC))
        self.task = sft.tasks()[index]
        self.windows = windows
        sft.tasks()[0].prepare(self.policy, windows)
        cast(torch.nn.Module, self.policy).train()
        self.trainer = SupervisedTrainer(
            self.task.parameters(self.policy),
            self.task.loss_fn(self.policy, windows),
            self.task.reader(self.policy, windows),
            settings=self.task.settings,
            seed=3,
        )

    def error(self) -> float:
        return self.task.error(self.policy, self.windows)


def in_turn(work: Callable[[Any], Any], requests: Iterable[Any]) -> Iterable[Any]:
    """Nothing is read ahead."""
    yield from map(work, requests)


@pytest.mark.parametrize(("kind", "index"), [("quest", 1), ("openvla-oft", 0), ("openvla-oft", 1)])
def test_losses_and_weights_are_those_of_reading_in_turn_also_after_a_resume(
    kind: str, index: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = stored_windows(folder, POLICIES[kind][0])
    with monkeypatch.context() as patch:
        patch.setattr(supervised, "map_ahead", in_turn)
        expected = Stage(kind, index, windows)
        losses, error = list(expected.trainer.steps()), expected.error()
    undisturbed = Stage(kind, index, windows)
    assert list(undisturbed.trainer.steps()) == losses
    stopped = Stage(kind, index, windows)
    steps = stopped.trainer.steps()
    first_losses = [next(steps) for _ in range(2)]
    assert readers()
    steps.close()
    assert not readers()
    arrays, state = stopped.policy.state_arrays(), stopped.trainer.state()
    resumed = Stage(kind, index, windows)
    resumed.policy.load_state_arrays(arrays)
    resumed.trainer.restore(2, state)
    assert first_losses + list(resumed.trainer.steps()) == losses
    assert resumed.error() == error
    for found in (undisturbed, resumed):
        for name, array in expected.policy.state_arrays().items():
            np.testing.assert_array_equal(found.policy.state_arrays()[name], array, err_msg=name)


def test_a_stage_that_reads_nothing_and_one_that_looks_up_what_is_in_memory_start_no_thread(folder: Path) -> None:
    stored = stored_windows(folder, SEEING)
    rows = torch.arange(len(stored)).numpy()
    in_memory = replace(stored, observations={name: values[rows] for name, values in stored.observations.items()})
    for windows, index in ((stored, 0), (in_memory, 1)):
        for _ in Stage("quest", index, windows).trainer.steps():
            assert not readers()


def test_a_run_that_is_stopped_while_it_reads_ahead_resumes_to_the_same_bits(folder: Path, tmp_path: Path) -> None:
    class Stop(View):
        def on_step(self, name: str, num_steps: int, step: int, loss: float) -> None:
            if (name, step) == ("prior", 3):
                raise KeyboardInterrupt

    here, quiet = Cluster(in_process=True), View(ViewMode.QUIET, 1)
    run_experiment(stored_experiment(folder), here, runs=tmp_path / "undisturbed", view=quiet)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(stored_experiment(folder), here, runs=tmp_path / "stopped", view=Stop(ViewMode.QUIET, 1))
    assert not readers()
    undisturbed, stopped = (only_folder(tmp_path / name / "stored") for name in ("undisturbed", "stopped"))
    assert checkpoint.latest_valid(stopped).state.step == 3
    resume_experiment(stopped, here, view_of=lambda _: quiet)
    weights = [(checkpoint.find(run) / "policy.safetensors").read_bytes() for run in (undisturbed, stopped)]
    assert weights[0] == weights[1]
    assert (stopped / "prior.json").read_bytes() == (undisturbed / "prior.json").read_bytes()


def test_a_corrupt_file_is_named_at_the_step_that_would_have_learned_from_it(tmp_path: Path) -> None:
    folder = write_files(tmp_path)
    windows = stored_windows(folder, SEEING)
    path = corrupt_images(folder)
    with pytest.raises(RiptError) as caught:
        list(Stage("quest", 1, windows).trainer.steps())
    assert type(caught.value) is RiptError
    assert str(caught.value).startswith(f"{path} is corrupt or not an HDF5 file: ")
    assert not readers()
