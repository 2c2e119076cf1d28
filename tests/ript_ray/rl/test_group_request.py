from dataclasses import replace

import numpy as np

from ript_ray.config.rl import Sampling
from ript_ray.rl.context_stream import ContextStream
from ript_ray.rl.train import group_request
from ript_ray.seeding import Purpose, seed_of
from ript_ray.types import Context, Seed

CONTEXTS = tuple(Context("left", "go left", (0.0, float(index))) for index in range(7))


def sampling(group_size: int) -> Sampling:
    return Sampling(group_size=group_size, batch_rollouts=group_size)


def nudge(context: Context, seed: Seed) -> Context:
    noise = 0.1 * np.random.default_rng(seed).standard_normal()
    return replace(context, initial_state=(context.initial_state[0] + noise, context.initial_state[1]))


def test_without_noise_a_group_repeats_one_context_exactly() -> None:
    request = group_request(ContextStream(CONTEXTS, seed=3), 9, sampling=sampling(4), seed=3)
    assert request.contexts == (ContextStream(CONTEXTS, seed=3).at(9),) * 4
    assert request.seeds == tuple(seed_of(3, Purpose.TRAINING_ROLLOUTS, 9, member) for member in range(4))


def test_with_noise_the_members_of_a_group_start_from_different_states_of_one_context() -> None:
    stream = ContextStream(CONTEXTS, seed=3, perturb=nudge)
    request = group_request(stream, 9, sampling=sampling(4), seed=3)
    assert len({context.initial_state for context in request.contexts}) == 4
    assert {context.initial_state[1] for context in request.contexts} == {stream.at(9).initial_state[1]}
    assert request.seeds == group_request(ContextStream(CONTEXTS, seed=3), 9, sampling=sampling(4), seed=3).seeds
    assert stream.at(9) in CONTEXTS, "the dataset itself has no noise"


def test_noise_depends_on_seed_group_and_member_only() -> None:
    def contexts(index: int, group_size: int, seed: int = 3) -> tuple[Context, ...]:
        stream = ContextStream(CONTEXTS[:1], seed, perturb=nudge)
        return group_request(stream, index, sampling=sampling(group_size), seed=seed).contexts

    assert contexts(9, 4) == contexts(9, 4) == contexts(9, 6)[:4]
    groups = [contexts(9, 4), contexts(10, 4), contexts(9, 4, seed=4)]
    assert len(set().union(*groups)) == 12
