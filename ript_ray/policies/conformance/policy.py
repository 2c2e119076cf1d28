"""Conformance tests of the policy contract (`ript_ray.policies.base`), for policies of your own.

Every check is a claim in plain English; its error says what was found instead. In the tests of a policy:

    @pytest.mark.parametrize("result", check_policy(MyConfig(), spec), ids=lambda result: result.name)
    def test_my_policy_conforms_to_the_contract(result):
        assert result.error is None, result.error

`ript-ray check-policy MODULE:NAME` prints the same results.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ript_envs.conformance.checklist import (
    Checklist,
    CheckResult,
    Violation,
    difference,
    expect,
    expect_array,
    expect_equal_json,
    expect_equal_pickle,
    expect_tagged_value,
    global_seed,
)
from ript_envs.contract import EnvironmentSpec
from ript_ray.errors import CheckpointError
from ript_ray.policies.base import Decisions, DeterministicPolicy, EncodingPolicy, PolicyConfig
from ript_ray.policies.conformance.probe import (
    ATOL,
    NUM_ROWS,
    Probe,
    clear_gradients,
    copied,
    decided,
    expect_gradients,
    expect_same,
    overwrite,
    perturb,
)
from ript_ray.policies.conformance.stages import check_stages
from ript_ray.types import Arrays

INSTRUCTIONS = ("open the drawer", "press the button", "close the window")
"""The instructions that a policy is checked on unless others are given."""

NUM_REDRAWS = 8
"""Other generators that are tried until a decision differs."""

UNKNOWN = "no_such_array"


def made_up_spec(config: PolicyConfig) -> EnvironmentSpec:
    """Return a spec that has the sensors and cameras a policy reads: 3 numbers or 128 x 128 pixels each, 4 actions."""
    return EnvironmentSpec(
        name="a made-up benchmark",
        action_dim=4,
        state_dims=dict.fromkeys(getattr(config, "sensors", ()), 3),  # a check reports that they are missing
        image_shapes=dict.fromkeys(getattr(config, "cameras", ()), (128, 128, 3)),
    )


def check_policy(
    config: PolicyConfig, spec: EnvironmentSpec, instructions: Sequence[str] = INSTRUCTIONS
) -> list[CheckResult]:
    """Check a policy against the contract, on made-up observations.

    Args:
        config: The policy's configuration.
        spec: The environments that it is built for; see `made_up_spec`.
        instructions: Instructions that the policy understands, at least one.

    Returns:
        One result per claim. Claims about supervised stages and overridden methods are left out where there are none.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        return _run(Probe(config, spec, instructions))


def _run(probe: Probe) -> list[CheckResult]:
    config, checks, checklist = probe.config, _PolicyChecks(probe), Checklist()
    check = checklist.run
    check("it is a frozen dataclass with a field `kind`", lambda: expect_tagged_value(config, PolicyConfig))
    check("it equals its pickled copy", lambda: expect_equal_pickle(config))
    check("it equals what is read from its JSON", lambda: expect_equal_json(config))
    check("its chunk length and semantic fields are valid", checks.fields_are_valid)
    fits = check("the spec offers the sensors and cameras that it reads", checks.spec_fits)
    built = check("build returns a policy", checks.builds, fits)
    check("build is repeatable under torch.manual_seed", checks.build_is_repeatable, built)
    check("its card and base_sha256 are text", checks.card_is_text, built)
    acts = check("act returns decisions", checks.acts, built)
    check("actions are float32, finite, within [-1, 1] and at most a chunk", checks.actions_are_valid, acts)
    scored = check("log-probabilities are float32 and finite where valid", checks.log_probs_are_valid, acts)
    recorded = check("the record has a finite row per decision in each array", checks.record_is_valid, acts)
    check("act changes no observation", checks.observations_are_unchanged, acts)
    check("act builds no autograd graph", checks.act_builds_no_graph, acts)
    same = check("decisions are repeatable and use no global random state", checks.decisions_are_repeatable, acts)
    check("act reads only the sensors and cameras that it names", checks.unnamed_inputs_are_unread, same)
    check("other generators give other decisions", checks.decisions_are_random, same)
    own = check("a row draws from its own generator alone", checks.row_has_its_own_generator, same, recorded)
    check("rows decided together equal rows decided alone", checks.batch_equals_rows, own, scored)
    trainable = check("trainable parameters are in state_arrays", checks.trainable_is_saved, built)
    rescored = check("log_probs gives the log-probabilities of act", checks.log_probs_equal, scored, recorded)
    check("log_probs has gradients for the trainable parameters", checks.gradients_reach, rescored, trainable)
    copied = check("state_arrays returns copies", checks.state_arrays_are_copies, trainable)
    loads = check("a freshly built policy decides the same with its state", checks.state_is_complete, same, copied)
    check("load_state_arrays copies what it is given", checks.loaded_arrays_are_copied, loads)
    for what, change in _BAD_STATES.items():
        name = f"load_state_arrays refuses {what} with CheckpointError and copies nothing"
        check(name, functools.partial(checks.bad_state_is_refused, change), loads)
    for method in ("initial_arrays", "check_arrays"):
        if getattr(type(config), method) is not getattr(PolicyConfig, method):
            check(f"{method} agrees with the built policy", getattr(checks, f"{method}_agrees"), loads)
    if config.is_deterministic:
        check("act_deterministically returns valid actions without chance", checks.acts_deterministically, acts)
    if built.error is None and checks.has_encodings:
        check("encode returns what training does not change and log_probs reads", checks.encodes, rescored)
    check_stages(checklist, probe, built)
    return checklist.results


def _without(arrays: Arrays, name: str) -> Arrays:
    return {other: array for other, array in arrays.items() if other != name}


_BAD_STATES: dict[str, Callable[[Arrays, str], Arrays]] = {
    "a missing name": _without,
    "an unknown name": lambda arrays, name: {**arrays, UNKNOWN: arrays[name]},
    "a wrong shape": lambda arrays, name: {**arrays, name: arrays[name][np.newaxis]},
    "a wrong type": lambda arrays, name: {**arrays, name: arrays[name].astype(np.int8)},
}
"""By what is wrong: a change of one array, given its name."""


class _PolicyChecks:
    """The claims; each method raises where its claim does not hold."""

    def __init__(self, probe: Probe):
        self._probe = probe
        self._config = probe.config
        self._spec = probe.spec

    def fields_are_valid(self) -> None:
        config = self._config
        is_length = isinstance(config.chunk_length, int) and config.chunk_length >= 1
        expect(is_length, f"chunk_length must be an integer from 1, not {config.chunk_length!r}")
        unknown = set(config.semantic_fields) - {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
        expect(not unknown, f"semantic_fields names {', '.join(sorted(unknown))}, not a field")

    def spec_fits(self) -> None:
        names = [*self._config.sensors, *self._config.cameras]
        expect(len(set(names)) == len(names), f"it reads one twice: {', '.join(names)}")
        self._config.require_fit(self._spec)

    def builds(self) -> None:
        self._policy = self._probe.build()
        for method in ("act", "log_probs", "trainable", "state_arrays", "load_state_arrays"):
            expect(callable(getattr(self._policy, method, None)), f"{type(self._policy).__name__} has no {method}")

    def build_is_repeatable(self) -> None:
        expect_same(self._policy.state_arrays(), self._probe.build().state_arrays(), "with the same seed")

    def card_is_text(self) -> None:
        card = self._config.card(self._spec, self._policy.state_arrays())
        for heading, text in card.items():
            expect(isinstance(heading, str) and isinstance(text, str), f"the card has {heading!r}: {text!r}")
        sha256 = self._config.base_sha256()
        is_hash = sha256 is None or (isinstance(sha256, str) and len(sha256) == 64)
        expect(is_hash, f"base_sha256 must be 64 hexadecimal digits or None, not {sha256!r}")

    def acts(self) -> None:
        decisions = self._probe.act(self._policy)
        expect(isinstance(decisions, Decisions), f"it returned {type(decisions).__name__}, not Decisions")
        expect(isinstance(decisions.record, dict) and bool(decisions.record), "the record must be a dict of arrays")
        arrays: Arrays = {"actions_BCA": decisions.actions_BCA, "log_probs_BU": decisions.log_probs_BU}
        arrays |= {"valid_BU": decisions.valid_BU, **decisions.record}
        for name, array in arrays.items():
            expect(isinstance(array, np.ndarray) and array.ndim > 0, f"{name} is {type(array).__name__}, not an array")
        self._decisions = decisions

    def actions_are_valid(self) -> None:
        self._expect_actions(self._decisions.actions_BCA)

    def acts_deterministically(self) -> None:
        policy, observations = self._policy, self._probe.observations()
        expect(isinstance(policy, DeterministicPolicy), f"{type(policy).__name__} has no act_deterministically")
        assert isinstance(policy, DeterministicPolicy)
        actions_BCA = policy.act_deterministically(observations, self._probe.instructions)
        self._expect_actions(actions_BCA)
        for seed in (1, 2):
            torch.manual_seed(seed)
            with global_seed(seed):
                again = policy.act_deterministically(observations, self._probe.instructions)
            expect_same({"actions": actions_BCA}, {"actions": again}, "with other global seeds")
        for row in range(NUM_ROWS):
            inputs = {name: array[row : row + 1] for name, array in observations.items()}
            alone = policy.act_deterministically(inputs, [self._probe.instructions[row]])
            expect_same({"actions": actions_BCA[row : row + 1]}, {"actions": alone}, f"row {row} decided alone", ATOL)

    def _expect_actions(self, actions_BCA: NDArray[np.float32]) -> None:
        expect_array(actions_BCA, np.float32, (NUM_ROWS, None, self._spec.action_dim), "actions_BCA")
        num_actions, chunk_length = actions_BCA.shape[1], self._config.chunk_length
        expect(1 <= num_actions <= chunk_length, f"it gave {num_actions} actions; chunk_length is {chunk_length}")
        expect(bool(np.isfinite(actions_BCA).all()), "an action is not finite")
        low, high = actions_BCA.min(), actions_BCA.max()
        expect(bool(low >= -1 and high <= 1), f"actions are from {low:.3g} to {high:.3g}")

    def log_probs_are_valid(self) -> None:
        log_probs_BU, valid_BU = self._decisions.log_probs_BU, self._decisions.valid_BU
        expect_array(log_probs_BU, np.float32, (NUM_ROWS, None), "log_probs_BU")
        expect_array(valid_BU, np.bool_, log_probs_BU.shape, "valid_BU")
        expect(bool(valid_BU.any()), "no unit is valid")
        expect(bool(np.isfinite(log_probs_BU[valid_BU]).all()), "the log-probability of a valid unit is not finite")

    def record_is_valid(self) -> None:
        for name, array in self._decisions.record.items():
            expect(len(array) == NUM_ROWS, f"{name} has {len(array)} rows for {NUM_ROWS} decisions")
            is_finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
            expect(is_finite, f"{name} is not finite")
            torch.from_numpy(array.copy())  # raises for types that torch lacks

    def observations_are_unchanged(self) -> None:
        observations = self._probe.observations()
        self._probe.act(self._policy, observations)
        expect_same(self._probe.observations(), observations, "after act")

    def act_builds_no_graph(self) -> None:
        saved: list[tuple[int, ...]] = []

        def note(tensor: torch.Tensor) -> torch.Tensor:
            saved.append(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self._probe.act(self._policy)
        expect(not saved, f"autograd kept {len(saved)} tensors for gradients; decide under torch.no_grad()")

    def decisions_are_repeatable(self) -> None:
        for seed in (1, 2):
            torch.manual_seed(seed)
            with global_seed(seed):
                self._expect_decisions(self._probe.act(self._policy), "with other global seeds")

    def unnamed_inputs_are_unread(self) -> None:
        observations = self._probe.observations()
        named = {name: observations[name] for name in self._probe.names}
        self._expect_decisions(self._probe.act(self._policy, named), "without the other sensors")

    def decisions_are_random(self) -> None:
        first = decided(self._decisions)
        others = (self._probe.act(self._policy, seed=seed) for seed in range(1, NUM_REDRAWS + 1))
        is_random = any(difference(first, decided(decisions)) for decisions in others)
        expect(is_random, f"{NUM_REDRAWS} other sets of generators gave the same decisions")

    def row_has_its_own_generator(self) -> None:
        expected = decided(self._decisions, slice(1, None))
        generators = [np.random.default_rng(99), *self._probe.generators()[1:]]
        actual = decided(
            self._policy.act(self._probe.observations(), self._probe.instructions, generators), slice(1, None)
        )
        expect_same(expected, actual, "with another generator for row 0", ATOL)

    def batch_equals_rows(self) -> None:
        observations, generators = self._probe.observations(), self._probe.generators()
        for row in range(NUM_ROWS):
            alone = self._policy.act(
                {name: array[row : row + 1] for name, array in observations.items()},
                [self._probe.instructions[row]],
                [generators[row]],
            )
            expected = decided(self._decisions, slice(row, row + 1))
            expect_same(expected, decided(alone), f"row {row} decided alone", ATOL)

    def trainable_is_saved(self) -> None:
        trainable, arrays = self._policy.trainable(), self._policy.state_arrays()
        expect(bool(trainable), "there is no trainable parameter")
        for group, prefix in self._config.parameter_groups.items():
            is_used = any(name.startswith(prefix) for name in trainable)
            expect(is_used, f"parameter group {group}: no trainable parameter begins with {prefix!r}")
        expect([*trainable] == [*self._policy.trainable()], "their order changes from call to call")
        for name, parameter in trainable.items():
            is_parameter = isinstance(parameter, torch.nn.Parameter) and parameter.requires_grad
            expect(is_parameter, f"{name} is not a parameter that takes gradients")
            expect(name in arrays, f"{name} is not in state_arrays")
            shape = tuple(parameter.shape)
            expect(arrays[name].shape == shape, f"{name} is {shape}, but in state_arrays {arrays[name].shape}")

    def log_probs_equal(self) -> None:
        for rows in (slice(None), slice(0, 1)):
            torch.manual_seed(3)  # scoring must be as free of chance as deciding
            expected, valid_NU = self._decisions.log_probs_BU[rows], self._decisions.valid_BU[rows]
            log_probs_NU = self._policy.log_probs(self._record(rows))
            shape = tuple(log_probs_NU.shape)
            expect(shape == expected.shape, f"they are of shape {shape}, not {expected.shape}")
            actual = log_probs_NU.detach().float().cpu().numpy()
            expect_same({"log_probs": expected[valid_NU]}, {"log_probs": actual[valid_NU]}, "valid units", ATOL)

    def gradients_reach(self) -> None:
        parameters = self._policy.trainable()
        clear_gradients(parameters)
        log_probs_NU = self._policy.log_probs(self._record(slice(None)))
        expect(log_probs_NU.requires_grad, "they have no gradients")
        log_probs_NU[torch.from_numpy(self._decisions.valid_BU).to(log_probs_NU.device)].sum().backward()
        expect_gradients(parameters)

    def state_arrays_are_copies(self) -> None:
        policy = self._probe.build()
        arrays = policy.state_arrays()
        before = copied(arrays)
        overwrite(arrays)
        expect_same(before, policy.state_arrays(), "after the returned arrays were changed")
        arrays = policy.state_arrays()
        perturb(policy)
        expect_same(before, arrays, "after the parameters were changed")

    def state_is_complete(self) -> None:
        trained, self._fresh = self._probe.build(1), self._probe.build(2)
        perturb(trained)
        self._state = copied(trained.state_arrays())
        self._fresh.load_state_arrays(copied(self._state))
        expected, actual = decided(self._probe.act(trained)), decided(self._probe.act(self._fresh))
        expect_same(expected, actual, "its decisions")
        expect_same(self._state, self._fresh.state_arrays(), "its state")

    def loaded_arrays_are_copied(self) -> None:
        given = copied(self._state)
        self._fresh.load_state_arrays(given)
        expect_same(self._state, given, "the given arrays")
        overwrite(given)
        expect_same(self._state, self._fresh.state_arrays(), "after the given arrays were changed")

    def bad_state_is_refused(self, change: Callable[[Arrays, str], Arrays]) -> None:
        self._fresh.load_state_arrays(copied(self._state))
        name, others = [*self._policy.trainable()][-1], copied(self._state)
        overwrite(others)
        arrays = change(others, name)
        changed = UNKNOWN if UNKNOWN in arrays else name
        try:
            self._fresh.load_state_arrays(arrays)
        except CheckpointError as error:
            expect(changed in str(error), f"the message does not name {changed}: {error}")
        except Exception as error:
            raise Violation(f"it raised {type(error).__name__}: {error}, not CheckpointError") from error
        else:
            raise Violation(f"it accepted {changed}")
        expect_same(self._state, self._fresh.state_arrays(), "after the refusal")

    def initial_arrays_agrees(self) -> None:
        torch.manual_seed(0)
        expect_same(self._policy.state_arrays(), self._config.initial_arrays(self._spec), "the arrays")

    def check_arrays_agrees(self) -> None:
        self._config.check_arrays(self._spec, copied(self._state))
        name = [*self._policy.trainable()][-1]
        try:
            self._config.check_arrays(self._spec, _without(self._state, name))
        except CheckpointError:
            return
        raise Violation(f"it accepted arrays without {name}")

    @property
    def has_encodings(self) -> bool:
        return isinstance(self._policy, EncodingPolicy)

    def encodes(self) -> None:
        policy, record = self._policy, self._record(slice(None))
        assert isinstance(policy, EncodingPolicy)
        encoded = policy.encode(record)
        wrong = [name for name, tensor in encoded.items() if len(tensor) != NUM_ROWS or tensor.requires_grad]
        expect(not wrong, f"{', '.join(wrong)} must have a row per decision and no gradients")
        expected, actual = (policy.log_probs(inputs).detach() for inputs in (record, {**record, **encoded}))
        expect_same({"log_probs": expected.numpy()}, {"log_probs": actual.numpy()}, "with its encodings", ATOL)
        fresh = self._probe.build()
        perturb(fresh)
        assert isinstance(fresh, EncodingPolicy)
        again = fresh.encode(record)
        are_same = all(torch.equal(tensor, again[name]) for name, tensor in encoded.items())
        expect(are_same, "it depends on trained parameters")

    def _expect_decisions(self, decisions: Decisions, what: str) -> None:
        expect_same(decided(self._decisions), decided(decisions), what)

    def _record(self, rows: slice) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array[rows].copy()) for name, array in self._decisions.record.items()}
