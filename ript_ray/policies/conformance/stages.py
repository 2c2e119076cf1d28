"""Conformance tests of the contract of the supervised stages (`ript_ray.policies.supervised`)."""

import functools

import numpy as np
import torch

from ript_envs.conformance.checklist import (
    Checklist,
    CheckResult,
    expect,
    expect_equal_json,
    expect_equal_pickle,
    expect_tagged_value,
)
from ript_ray.policies.base import Policy
from ript_ray.policies.conformance.probe import Probe, clear_gradients, expect_gradients
from ript_ray.policies.supervised import NoSFT, SFTConfig, SupervisedStage, SupervisedTask, Windows
from ript_ray.seeding import Purpose
from ript_ray.types import RIPT

NUM_WINDOWS = 4
FIRST_OWN_PURPOSE = 100


def check_stages(checklist: Checklist, probe: Probe, built: CheckResult) -> None:
    """Check the supervised stages of a policy on a few made-up windows.

    Args:
        checklist: Where the results go.
        probe: The policy.
        built: Result of building the policy; the loss and the error of the stages need it.
    """
    check, checks = checklist.run, _StageChecks(probe)
    settings = check("its supervised settings are a frozen dataclass of its kind", checks.settings_are_valid)
    tasks = check("its supervised tasks have the names of its stages", checks.tasks_are_valid, settings)
    for index, stage in enumerate(probe.config.sft_type.stages):
        claim = f"the loss of stage {stage} is finite and has gradients"
        learns = check(claim, functools.partial(checks.stage_has_loss, index), tasks, built)
        claim = f"the error of stage {stage} is finite and repeatable"
        check(claim, functools.partial(checks.stage_has_error, index), learns)


class _StageChecks:
    """The claims; each method raises where its claim does not hold."""

    def __init__(self, probe: Probe):
        self._probe = probe

    def settings_are_valid(self) -> None:
        settings = self._probe.config.sft_type()
        expect_tagged_value(settings, SFTConfig)
        kinds = {self._probe.config.kind, NoSFT.kind}
        expect(settings.kind in kinds, f"their kind is {settings.kind!r}, not {self._probe.config.kind!r}")
        expect_equal_pickle(settings)
        expect_equal_json(settings)
        self._settings = settings

    def tasks_are_valid(self) -> None:
        tasks, stages = self._settings.tasks(), self._settings.stages
        names = tuple(task.name for task in tasks)
        expect(names == stages, f"tasks() has {', '.join(names) or 'none'}, and stages {', '.join(stages) or 'none'}")
        expect(len({*names, RIPT}) == len(names) + 1, f"the names must differ from each other and from {RIPT}: {names}")
        for task in tasks:
            expect(isinstance(task, SupervisedTask), f"{task.name} is not a SupervisedTask")
            expect(isinstance(task.settings, SupervisedStage), f"the settings of {task.name} are no SupervisedStage")
            is_own = isinstance(task.purpose, Purpose) or task.purpose >= FIRST_OWN_PURPOSE
            expect(is_own, f"the purpose of {task.name} must be at least {FIRST_OWN_PURPOSE}, not {task.purpose}")
        purposes = [int(task.purpose) for task in tasks]
        expect(len({*purposes}) == len(purposes), f"the purposes of the stages must differ, not {purposes}")

    def stage_has_loss(self, index: int) -> None:
        task, windows = self._settings.tasks()[index], self._windows(index)
        task.prepare(self._policy, windows)
        parameters = task.parameters(self._policy)
        expect(bool(parameters), "there is no parameter to train")
        loss_fn = task.loss_fn(self._policy, windows)
        if isinstance(self._policy, torch.nn.Module):
            self._policy.train()
        clear_gradients(parameters)
        loss = loss_fn(task.reader(self._policy, windows).read(torch.arange(NUM_WINDOWS)), np.random.default_rng(0))
        expect(loss.numel() == 1, f"the loss is of shape {tuple(loss.shape)}, not a scalar")
        expect(bool(loss.isfinite()), f"the loss is {loss.item()}")
        loss.backward()
        expect_gradients(parameters)

    def stage_has_error(self, index: int) -> None:
        task, windows = self._settings.tasks()[index], self._windows(index)
        errors = []
        for seed in (1, 2):
            torch.manual_seed(seed)  # dropout and augmentation must be off
            errors.append(float(task.error(self._policy, windows)))
        expect(bool(np.isfinite(errors).all()), f"the error is {errors[0]}")
        expect(errors[0] == errors[1], f"the same windows gave {errors[0]} and {errors[1]}")

    @functools.cached_property
    def _policy(self) -> Policy:
        return self._probe.build()

    def _windows(self, index: int) -> Windows:
        """Make up what the stage reads; its images only if it reads images."""
        probe, task = self._probe, self._settings.tasks()[index]
        observations = probe.observations(NUM_WINDOWS)
        names = probe.names if task.reads_images or not probe.config.sensors else probe.config.sensors
        shape = (NUM_WINDOWS, probe.config.chunk_length, probe.spec.action_dim)
        return Windows(
            instructions=tuple(probe.instructions[row % len(probe.instructions)] for row in range(NUM_WINDOWS)),
            observations={name: observations[name] for name in names},
            chunks_WCA=np.random.default_rng(0).uniform(-1.0, 1.0, shape).astype(np.float32),
        )
