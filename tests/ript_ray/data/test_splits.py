"""Validation and test contexts: other ones than those of training, whatever the seeds, files and noise."""

import logging
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from experiments.extending import EXPERIMENT
from ript_ray.api import EvaluationOverrides, compare, evaluate
from ript_ray.config.data import Demonstrations
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import Evaluation, Sampling
from ript_ray.data.contexts import held_out_contexts, held_out_requests, require_untrained, training_contexts
from ript_ray.errors import ConfigError
from ript_ray.runs import checkpoint
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.runtime.cluster import Cluster
from ript_ray.seeding import Split
from tests.conftest import TINY_QUEST
from tests.ript_ray.data.test_contexts import write_contexts

FEW = replace(EXPERIMENT, evaluation=Evaluation(contexts_per_task=3, validation_contexts_per_task=2))
HERE = Cluster(in_process=True)
SHARED = r"context-source: {} of its contexts are among the held-out ones of the evaluation"


def test_validation_and_test_rollouts_have_other_contexts_and_other_seeds() -> None:
    rollouts = {
        split: [
            pair
            for request in held_out_requests(FEW, split)
            for pair in zip(request.contexts, request.seeds, strict=True)
        ]
        for split in Split
    }
    assert {split: len(pairs) for split, pairs in rollouts.items()} == {Split.VALIDATION: 4, Split.TEST: 6}
    for column in (0, 1):
        assert len({pair[column] for pairs in rollouts.values() for pair in pairs}) == 10


def test_runs_with_different_seeds_are_paired_by_the_seed_of_the_evaluation() -> None:
    paired = [replace(FEW, seed=seed, evaluation=Evaluation(seed=7)) for seed in (0, 1)]
    assert held_out_requests(paired[0]) == held_out_requests(paired[1])
    assert training_contexts(paired[0]) != training_contexts(paired[1])
    alone = [replace(FEW, seed=seed) for seed in (0, 1, 7)]
    assert len({held_out_contexts(each)[0] for each in alone}) == 3
    assert held_out_contexts(paired[0])[:3] == held_out_contexts(alone[2])[:3]


def test_a_context_trained_on_is_found_behind_noise_and_rounding(tmp_path: Path) -> None:
    held_out = held_out_contexts(FEW)
    rounded = tuple(
        replace(context, initial_state=tuple(np.array(context.initial_state, np.float32).tolist()))
        for context in held_out
    )
    assert set(rounded).isdisjoint(held_out)
    write_contexts(tmp_path / "noisy.json", rounded)
    noisy = replace(
        FEW, sampling=Sampling(context_source=tmp_path / "noisy.json", contexts_per_task=3, context_noise_m=0.01)
    )
    with pytest.raises(ConfigError, match=SHARED.format(6)):
        require_untrained(held_out, noisy)
    require_untrained(held_out_contexts(FEW, Split.VALIDATION), noisy)


def test_demonstrations_on_held_out_contexts_are_found_and_files_that_are_gone_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held_out = held_out_contexts(FEW)
    for task in FEW.tasks:
        with h5py.File(tmp_path / f"{task}.hdf5", "w") as file:
            states = [context.initial_state for context in held_out if context.task == task][:1]
            file["data/demo_0/states"] = np.array(states)
            file["data/demo_0/actions"] = np.zeros((1, 1), np.float32)
    experiment = replace(FEW, demos=Demonstrations(folder=tmp_path, num_per_task=1))
    with pytest.raises(ConfigError, match=r"demos\.folder: 2 of its contexts are among the held-out ones"):
        require_untrained(held_out, experiment)
    require_untrained(held_out, replace(experiment, stages=("ript",), sampling=Sampling()))
    with caplog.at_level(logging.WARNING):
        require_untrained(held_out, replace(FEW, demos=Demonstrations(folder=tmp_path / "gone")))
    assert "whether demos.folder holds contexts of the evaluation is not known" in caplog.text


@pytest.mark.sim
def test_evaluating_on_more_contexts_and_comparing_refuse_those_that_either_policy_was_trained_on(
    tmp_path: Path,
) -> None:
    unseen = Experiment("reach", ("reach-v3",), policy=TINY_QUEST, evaluation=FEW.evaluation, max_steps=2)
    ninth = held_out_contexts(replace(unseen, evaluation=Evaluation(contexts_per_task=9)))[8:]
    write_contexts(tmp_path / "ninth.json", ninth)
    seen = replace(unseen, sampling=Sampling(context_source=tmp_path / "ninth.json", contexts_per_task=1))
    folders = [tmp_path / "unseen", tmp_path / "seen"]
    for folder, experiment in zip(folders, (unseen, seen), strict=True):
        checkpoint.save(folder, SavedPolicy.initial(experiment))
    more = EvaluationOverrides(contexts_per_task=9)
    assert evaluate(folders[1], cluster=HERE).overall.num_rollouts == 3
    assert evaluate(folders[0], more, cluster=HERE).overall.num_rollouts == 9
    with pytest.raises(ConfigError, match=SHARED.format(1)):
        evaluate(folders[1], more, cluster=HERE)
    with pytest.raises(ConfigError, match=SHARED.format(1)):
        compare(folders[0], folders[1], more, cluster=HERE)
    compare(folders[0], folders[1], EvaluationOverrides(contexts_per_task=9, split=Split.VALIDATION), cluster=HERE)
