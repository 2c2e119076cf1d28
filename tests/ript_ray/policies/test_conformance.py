"""A conforming policy passes every check; a broken one fails the check that names its fault, and no other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from ript_envs.conformance.checklist import NOT_CHECKED
from ript_envs.contract import EnvironmentSpec
from ript_ray.errors import CheckpointError
from ript_ray.policies.base import Decisions, PolicyConfig
from ript_ray.policies.conformance.policy import check_policy, made_up_spec
from ript_ray.policies.quest.config import QuestConfig
from ript_ray.policies.state_dict import ModulePolicy
from ript_ray.policies.supervised import LossFn, SFTConfig, SupervisedStage, SupervisedTask, Windows
from ript_ray.types import Arrays
from tests.conftest import TINY_QUEST

CHUNK = 2


class GaussianPolicy(ModulePolicy):
    """One linear layer gives the mean of each action; its scale is fixed."""

    def __init__(self, spec: EnvironmentSpec):
        super().__init__()
        self.mean = nn.Linear(spec.state_dims["state"], CHUNK)
        self.action_dim = spec.action_dim

    @torch.no_grad()
    def act(
        self, observations: Arrays, instructions: Sequence[str], generators: Sequence[np.random.Generator]
    ) -> Decisions:
        state = self.inputs(torch.from_numpy(observations["state"]))
        noise_BC = torch.from_numpy(np.stack([rng.standard_normal(CHUNK) for rng in generators])).float()
        chunk_BC = self.mean(state) + noise_BC
        return Decisions(
            actions_BCA=chunk_BC.clamp(-1, 1).unsqueeze(-1).repeat(1, 1, self.action_dim).numpy(),
            record={"state": state.numpy(), "chunk": chunk_BC.numpy()},
            log_probs_BU=self.score(state, chunk_BC).numpy(),
            valid_BU=np.ones(chunk_BC.shape, np.bool_),
        )

    def inputs(self, state: torch.Tensor) -> torch.Tensor:
        return state

    def score(self, state: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(self.mean(state), 1.0).log_prob(chunk)

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.score(record["state"], record["chunk"])

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())


class Regression(SupervisedTask):
    name = "regression"
    title = "regression of actions"
    unit = "squared error"
    purpose = 100
    settings = SupervisedStage(num_steps=1)

    def parameters(self, policy: GaussianPolicy) -> Mapping[str, nn.Parameter]:
        return dict(policy.named_parameters())

    def loss_fn(self, policy: GaussianPolicy, windows: Windows) -> LossFn:
        chunks_WC = torch.from_numpy(windows.chunks_WCA).mean(-1)
        return lambda batch, _: nn.functional.mse_loss(policy.mean(batch.inputs["state"]), chunks_WC[batch.rows])


@dataclass(frozen=True)
class GaussianSFT(SFTConfig):
    stages: ClassVar[tuple[str, ...]] = ("regression",)
    task: ClassVar[type[SupervisedTask]] = Regression
    kind: Literal["gaussian"] = field(default="gaussian", kw_only=True)

    def tasks(self) -> tuple[SupervisedTask, ...]:
        return (self.task(),)


@dataclass(frozen=True)
class Gaussian(PolicyConfig):
    sft_type: ClassVar[type[SFTConfig]] = GaussianSFT
    policy_type: ClassVar[type[GaussianPolicy]] = GaussianPolicy
    kind: Literal["gaussian"] = field(default="gaussian", kw_only=True)
    cameras: tuple[str, ...] = ()
    sensors: tuple[str, ...] = ("state",)
    chunk_length: int = CHUNK

    def build(self, spec: EnvironmentSpec) -> GaussianPolicy:
        return self.policy_type(spec)


SPEC = EnvironmentSpec("a tiny benchmark", action_dim=1, state_dims={"state": 3, "unread": 2})


def failures(config: PolicyConfig, spec: EnvironmentSpec = SPEC) -> dict[str, str]:
    """The checks that failed; those that could not be run for that reason are left out."""
    failed = {result.name: result.error for result in check_policy(config, spec) if result.error is not None}
    return {name: error for name, error in failed.items() if not error.startswith(NOT_CHECKED)}


def changed(base: type, **attributes: object) -> type:
    """A class that differs in some class attributes, and can be pickled."""
    cls = type(f"Changed{base.__name__}", (base,), {"__module__": __name__, **attributes})
    globals()[cls.__name__] = cls
    return cls


@pytest.mark.parametrize(
    "config",
    [
        Gaussian(),
        TINY_QUEST,
        replace(TINY_QUEST, cameras=("wrist_rgb",), image_size=16, image_channels=2, image_width=8),
        replace(TINY_QUEST, top_k=3, temperature=0.7, scored_against="candidates"),
    ],
    ids=["a gaussian policy", "quest", "quest with a camera", "quest scored against candidates"],
)
def test_a_conforming_policy_passes_every_check(config: PolicyConfig) -> None:
    results = check_policy(config, made_up_spec(config))
    assert [result for result in results if result.error is not None] == []
    assert len({result.name for result in results}) == len(results) > 25


@pytest.mark.slow
def test_the_default_quest_policy_passes_every_check() -> None:
    assert failures(QuestConfig(), made_up_spec(QuestConfig())) == {}


def test_checking_leaves_the_global_generators_as_they_were() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    expected = (torch.rand(3).tolist(), np.random.rand(3).tolist())
    torch.manual_seed(5)
    np.random.seed(5)
    check_policy(Gaussian(), SPEC)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist()) == expected


class UnseededPolicy(GaussianPolicy):
    def act(self, observations: Arrays, instructions: Sequence[str], generators: Sequence) -> Decisions:
        return super().act(
            observations, instructions, [np.random.default_rng(int(torch.randint(99, ()))) for _ in generators]
        )


class GreedyPolicy(GaussianPolicy):
    def act(self, observations: Arrays, instructions: Sequence[str], generators: Sequence) -> Decisions:
        return super().act(observations, instructions, [np.random.default_rng(0) for _ in generators])


class SharedGeneratorPolicy(GaussianPolicy):
    def act(self, observations: Arrays, instructions: Sequence[str], generators: Sequence) -> Decisions:
        return super().act(observations, instructions, [generators[0]] * len(generators))


class BatchNormalizedPolicy(GaussianPolicy):
    def inputs(self, state: torch.Tensor) -> torch.Tensor:
        return state - state.mean(0)


class DoublePolicy(GaussianPolicy):
    def act(self, observations: Arrays, instructions: Sequence[str], generators: Sequence) -> Decisions:
        decisions = super().act(observations, instructions, generators)
        return replace(decisions, actions_BCA=decisions.actions_BCA.astype(np.float64))


class UnboundedPolicy(GaussianPolicy):
    def act(self, observations: Arrays, instructions: Sequence[str], generators: Sequence) -> Decisions:
        decisions = super().act(observations, instructions, generators)
        return replace(decisions, actions_BCA=3 * decisions.actions_BCA)


class OverwritingPolicy(GaussianPolicy):
    def inputs(self, state: torch.Tensor) -> torch.Tensor:
        return state.clamp_(-0.5, 0.5)


class GreedySensorPolicy(GaussianPolicy):
    def act(self, observations: Arrays, instructions: Sequence[str], generators: Sequence) -> Decisions:
        assert "unread" in observations
        return super().act(observations, instructions, generators)


class GraphPolicy(GaussianPolicy):
    def act(self, observations: Arrays, instructions: Sequence[str], generators: Sequence) -> Decisions:
        (self.mean(torch.from_numpy(observations["state"])) ** 2).sum()
        return super().act(observations, instructions, generators)


class OffByAConstantPolicy(GaussianPolicy):
    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return super().log_probs(record) + 0.25


class DetachedPolicy(GaussianPolicy):
    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return super().log_probs(record).detach()


class AliasingPolicy(GaussianPolicy):
    def state_arrays(self) -> Arrays:
        return {name: value.detach().numpy() for name, value in self.state_dict().items()}


class ForgetfulPolicy(GaussianPolicy):
    def __init__(self, spec: EnvironmentSpec):
        super().__init__(spec)
        self.offset = torch.randn(CHUNK)  # not a buffer

    def score(self, state: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        return super().score(state, chunk + self.offset)


class LenientPolicy(GaussianPolicy):
    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, strict=False)


class HastyPolicy(GaussianPolicy):
    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        for name, value in self.state_dict().items():
            if name not in arrays or arrays[name].shape != value.shape:
                raise CheckpointError(f"{name} does not fit")
            value.copy_(torch.from_numpy(arrays[name]))
        super().load_state_arrays(arrays)


BROKEN = {
    UnseededPolicy: ("decisions are repeatable and use no global random state", "differs by up to"),
    GreedyPolicy: ("other generators give other decisions", "8 other sets of generators gave the same decisions"),
    SharedGeneratorPolicy: ("a row draws from its own generator alone", "with another generator for row 0: actions"),
    BatchNormalizedPolicy: ("rows decided together equal rows decided alone", "row 0 decided alone: "),
    DoublePolicy: (
        "actions are float32, finite, within [-1, 1] and at most a chunk",
        "actions_BCA is float64 (3, 2, 1), not float32 (3, any, 1)",
    ),
    UnboundedPolicy: (
        "actions are float32, finite, within [-1, 1] and at most a chunk",
        "actions are from -2.65 to 2.65",
    ),
    OverwritingPolicy: ("act changes no observation", "after act: state differs by up to"),
    GreedySensorPolicy: ("act reads only the sensors and cameras that it names", "AssertionError"),
    GraphPolicy: ("act builds no autograd graph", "decide under torch.no_grad()"),
    OffByAConstantPolicy: (
        "log_probs gives the log-probabilities of act",
        "valid units: log_probs differs by up to 0.25",
    ),
    DetachedPolicy: ("log_probs has gradients for the trainable parameters", "they have no gradients"),
    AliasingPolicy: ("state_arrays returns copies", "after the returned arrays were changed: mean.weight differs"),
    ForgetfulPolicy: ("a freshly built policy decides the same with its state", "its decisions: log_probs differs"),
}


@pytest.mark.parametrize("policy", BROKEN, ids=lambda policy: policy.__name__)
def test_a_broken_policy_fails_the_check_that_names_its_fault_and_no_other(policy: type[GaussianPolicy]) -> None:
    name, error = BROKEN[policy]
    failed = failures(changed(Gaussian, policy_type=policy)())
    assert list(failed) == [name]
    assert error in failed[name]


def test_a_lenient_loader_fails_each_refusal_that_it_owes() -> None:
    failed = failures(changed(Gaussian, policy_type=LenientPolicy)())
    ending = "with CheckpointError and copies nothing"
    assert {name.removeprefix("load_state_arrays refuses ").removesuffix(f" {ending}") for name in failed} == {
        "a missing name",
        "an unknown name",
        "a wrong shape",
        "a wrong type",
    }
    assert failed[f"load_state_arrays refuses a missing name {ending}"] == "it accepted mean.bias"
    assert failed[f"load_state_arrays refuses an unknown name {ending}"] == "it accepted no_such_array"
    assert "RuntimeError" in failed[f"load_state_arrays refuses a wrong shape {ending}"]


def test_a_loader_that_copies_before_it_refuses_is_found() -> None:
    failed = failures(changed(Gaussian, policy_type=HastyPolicy)())
    assert len(failed) == 4
    assert all(error == "after the refusal: mean.weight differs by up to 1" for error in failed.values())


def test_a_policy_that_cannot_be_built_fails_once_and_the_rest_is_not_checked() -> None:
    @dataclass(frozen=True)
    class Unbuildable(Gaussian):
        def build(self, spec: EnvironmentSpec) -> GaussianPolicy:
            raise KeyError("weights.bin")

    results = {result.name: result.error for result in check_policy(Unbuildable(), SPEC)}
    assert results["build returns a policy"] == "KeyError: 'weights.bin'"
    assert results["other generators give other decisions"] == f'{NOT_CHECKED}it needs "build returns a policy"'


@dataclass(frozen=True)
class Unserializable(Gaussian):
    scale: object = field(default_factory=lambda: np.float32)


@dataclass(frozen=True)
class Untagged(Gaussian):
    kind: str = "gaussian"  # type: ignore[assignment]  # not a tag: what is broken here
    semantic_fields: ClassVar[tuple[str, ...]] = ("scale",)


def test_faults_of_the_configuration_are_named() -> None:
    assert "its JSON" in " ".join(failures(Unserializable()))
    assert failures(Untagged()) == {
        "its chunk length and semantic fields are valid": "semantic_fields names scale, not a field"
    }
    tagged = "it is a frozen dataclass with a field `kind`"
    assert failures(replace(Untagged(), kind="other")).get(tagged) == (
        "kind is 'other', not 'gaussian': it is a tag, not a setting"
    )
    fits = failures(Gaussian(sensors=("touch",)))
    assert fits["the spec offers the sensors and cameras that it reads"] == (
        "ConfigError: policy.sensors: a tiny benchmark has no sensor 'touch'; it has state, unread"
    )


@dataclass(frozen=True)
class WithoutHead(Gaussian):
    parameter_groups: ClassVar[Mapping[str, str]] = {"mean": "mean.", "head": "head."}


def test_a_parameter_group_without_parameters_is_named() -> None:
    assert failures(WithoutHead())["trainable parameters are in state_arrays"] == (
        "parameter group head: no trainable parameter begins with 'head.'"
    )


class TwiceNamed(Regression):
    purpose = 7


class Infinite(Regression):
    def loss_fn(self, policy: GaussianPolicy, windows: Windows) -> LossFn:
        return lambda batch, _: super(Infinite, self).loss_fn(policy, windows)(batch, _) * float("inf")


class Noisy(Regression):
    def error(self, policy: GaussianPolicy, windows: Windows) -> float:
        return torch.rand(()).item()


@pytest.mark.parametrize(
    ("task", "name", "error"),
    [
        (TwiceNamed, "its supervised tasks have the names of its stages", "must be at least 100, not 7"),
        (Infinite, "the loss of stage regression is finite and has gradients", "the loss is inf"),
        (Noisy, "the error of stage regression is finite and repeatable", "the same windows gave 0."),
    ],
)
def test_a_broken_stage_fails_the_check_that_names_its_fault(task: type, name: str, error: str) -> None:
    failed = failures(changed(Gaussian, sft_type=changed(GaussianSFT, task=task))())
    assert list(failed) == [name]
    assert error in failed[name]
