"""A policy under test: built from its configuration, and asked on made-up observations."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ript_envs.conformance.checklist import difference, expect
from ript_envs.contract import EnvironmentSpec
from ript_ray.policies.base import Decisions, Policy, PolicyConfig
from ript_ray.types import Arrays

NUM_ROWS = 3
"""Rollouts that are decided for at once, B."""

ATOL = 1e-4
"""Absolute tolerance of activations and log-probabilities: the size of a batch changes the last bits."""


class Probe:
    """Builds a policy and queries it with inputs that are the same every time."""

    def __init__(self, config: PolicyConfig, spec: EnvironmentSpec, instructions: Sequence[str]):
        self.config = config
        self.spec = spec
        self.instructions = [*itertools.islice(itertools.cycle(instructions), NUM_ROWS)]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sensors and cameras that the policy reads."""
        return self.config.cameras + self.config.sensors

    def build(self, seed: int = 0) -> Policy:
        """Build the policy with weights drawn from this seed."""
        torch.manual_seed(seed)
        return self.config.build(self.spec)

    def observations(self, num_rows: int = NUM_ROWS) -> Arrays:
        """Make up observations: every sensor of the spec and the policy's cameras, as environments give them."""
        rng = np.random.default_rng(num_rows)
        made_up: Arrays = {}
        for name, dim in self.spec.state_dims.items():
            made_up[name] = rng.standard_normal((num_rows, dim)).astype(np.float32)
        for camera in self.config.cameras:
            made_up[camera] = rng.integers(256, size=(num_rows, *self.spec.image_shapes[camera]), dtype=np.uint8)
        return made_up

    def generators(self, seed: int = 0) -> list[np.random.Generator]:
        """Return a generator per row."""
        return [np.random.default_rng((seed, row)) for row in range(NUM_ROWS)]

    def act(self, policy: Policy, observations: Arrays | None = None, seed: int = 0) -> Decisions:
        """Let the policy decide."""
        return policy.act(observations or self.observations(), self.instructions, self.generators(seed))


def decided(decisions: Decisions, rows: slice = slice(None)) -> Arrays:
    """Return all arrays of some rows of decisions, by name; log-probabilities of units that are not valid are 0."""
    log_probs_BU, valid_BU = decisions.log_probs_BU[rows], decisions.valid_BU[rows]
    if log_probs_BU.shape == valid_BU.shape:
        log_probs_BU = np.where(valid_BU, log_probs_BU, log_probs_BU.dtype.type(0))
    return {
        "actions": decisions.actions_BCA[rows],
        "log_probs": log_probs_BU,
        "valid": valid_BU,
        **{f"record {name}": array[rows] for name, array in decisions.record.items()},
    }


def expect_same(
    expected: Mapping[str, NDArray[np.generic]], actual: Mapping[str, NDArray[np.generic]], what: str, atol: float = 0.0
) -> None:
    """Expect the same arrays: in every bit, or floating-point entries within `atol`."""
    problem = difference(expected, actual, atol=atol)
    expect(problem is None, f"{what}: {problem}")


def expect_gradients(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Expect finite gradients, at least one of which is not zero."""
    gradients = {name: value.grad for name, value in parameters.items() if value.grad is not None}
    wrong = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    expect(not wrong, f"the gradient of {', '.join(wrong)} is not finite")
    reached = any(bool(gradient.count_nonzero()) for gradient in gradients.values())
    expect(reached, f"no gradient reaches any of the {len(parameters)} parameters")


def clear_gradients(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Forget earlier gradients."""
    for parameter in parameters.values():
        parameter.grad = None


def copied(arrays: Mapping[str, NDArray[np.generic]]) -> Arrays:
    """Return writable copies."""
    return {name: np.array(array) for name, array in arrays.items()}


def overwrite(arrays: Arrays) -> None:
    """Change every entry of every array that can be written, in place."""
    for array in arrays.values():
        if array.flags.writeable:
            array[...] = np.logical_not(array) if array.dtype == np.bool_ else np.add(array, array.dtype.type(1))


def perturb(policy: Policy) -> None:
    """Change every trainable parameter in place, as training does."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator).to(parameter))
