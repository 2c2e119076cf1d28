"""The indexes of the pool decide as a scan over all actors would."""

import random
from collections import Counter

from ript_ray.runtime.actor_slot import ActorSlot, RollingOut
from ript_ray.runtime.schedule import IdleActors, RunningRequests
from ript_ray.types import Context, RolloutRequest, Version

CONTEXT = Context("left", "go left", (0.0, -0.9))


def slot(number: int, num_failures: int = 0) -> ActorSlot:
    processor = ("new", "old")[number % 2]
    return ActorSlot(number, number, None, None, 0.0, num_failures=num_failures, processor=processor)


def test_idle_actors_are_taken_by_failures_and_then_by_age() -> None:
    numbers = random.Random(0).sample(range(40), 40)
    actors = [slot(number, num_failures=number % 3) for number in numbers]
    idle = IdleActors()
    for actor in actors:
        idle.add(actor)
    by_age = sorted(actors, key=lambda actor: actor.order)
    assert [idle.take() for _ in range(len(idle))] == sorted(by_age, key=lambda actor: actor.num_failures)


def scan(actors: list[ActorSlot], version: Version, processor: str, started_before: float) -> RolloutRequest | None:
    """Return the straggler as a scan over all actors finds it."""
    copies = Counter(actor.request.index for actor in actors if actor.request)
    late = [
        (actor.call.started, actor.request)
        for actor in actors
        if isinstance(actor.call, RollingOut) and actor.request
        if (actor.version, actor.processor) == (version, processor)
        if actor.call.started < started_before and copies[actor.request.index] == 1
    ]
    return min(late, key=lambda entry: entry[0])[1] if late else None


def test_the_straggler_is_the_one_that_a_scan_over_all_actors_finds() -> None:
    generator = random.Random(1)
    actors = [slot(number) for number in range(12)]
    running, found = RunningRequests(), 0
    for now in range(3000):
        actor = generator.choice(actors)
        if actor.request is None:
            index = generator.randrange(8)
            request = RolloutRequest(index, (CONTEXT,), ((index,),))
            actor.version = Version(generator.randrange(2))
            actor.call = RollingOut(None, None, request, float(now))
            running.add(actor, (index, 0))
        elif generator.random() < 0.5:
            running.discard(actor)
            actor.call = None
        else:
            index = actor.request.index
            others = [other for other in actors if other.request and other.request.index == index]
            assert set(running.finish((index, 0))) == set(others)
            for other in others:
                other.call = None
        indices = [other.request.index for other in actors if other.request]
        assert len(running) == len(indices)
        assert all(((index, 0) in running) == (index in indices) for index in range(8))
        for version, processor, age in ((Version(0), "new", 2), (Version(1), "old", 9)):
            expected = scan(actors, version, processor, now - age)
            assert running.oldest_single(version, processor, now - age) is expected
            found += expected is not None
    assert found > 500, "the example must hold stragglers"
