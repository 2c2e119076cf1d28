"""The indexes of the pool decide as a scan over all actors would."""

import random
from collections import Counter

import ray

from ript_ray.runtime.actor_slot import ActorSlot, RollingOut
from ript_ray.runtime.schedule import IdleActors, RunningRequests, key_of
from ript_ray.types import Context, RolloutRequest, Version

CONTEXT = Context("left", "go left", (0.0, -0.9))
GROUPS_PER_ACTOR = 2


def slot(number: int, num_failures: int = 0) -> ActorSlot:
    processor = ("new", "old")[number % 2]
    return ActorSlot(number, number, None, num_failures=num_failures, processor=processor)


def call_of(actor: ActorSlot, index: int, started: float = 0.0) -> RollingOut:
    request, nothing = RolloutRequest(index, (CONTEXT,), ((index,),)), ray.ObjectRef.nil()
    return RollingOut(actor, nothing, 1.0, started, group=nothing, request=request)


def test_idle_actors_are_taken_by_failures_and_then_by_age() -> None:
    numbers = random.Random(0).sample(range(40), 40)
    actors = [slot(number, num_failures=number % 3) for number in numbers]
    idle = IdleActors()
    for actor in actors:
        idle.add(actor)
    by_age = sorted(actors, key=lambda actor: actor.order)
    assert [idle.take() for _ in range(len(idle))] == sorted(by_age, key=lambda actor: actor.num_failures)


def test_of_actors_that_work_on_several_groups_the_one_with_the_fewest_takes_the_next() -> None:
    generator = random.Random(2)
    actors, idle = [slot(number) for number in range(5)], IdleActors(GROUPS_PER_ACTOR)
    for actor in actors:
        idle.add(actor)
    for index in range(2000):
        free = [actor for actor in actors if len(actor.calls) < GROUPS_PER_ACTOR]
        assert len(idle) == len(free)
        if free and generator.random() < 0.55:
            assert idle.first is min(free, key=lambda actor: (len(actor.calls), actor.order))
            actor = idle.take()
            actor.calls.append(call_of(actor, index))
        elif busy := [actor for actor in actors if actor.calls]:
            actor = generator.choice(busy)
            if generator.random() < 0.02:  # it dies, and another one fills its slot
                idle.discard(actor)
                actors[actor.slot] = actor = ActorSlot(actor.slot, 5 + index, None)
            else:
                actor.calls.pop(generator.randrange(len(actor.calls)))
            idle.add(actor)
    free = [actor for actor in actors if len(actor.calls) < GROUPS_PER_ACTOR]
    assert (set(idle.take_all()), len(idle)) == (set(free), 0)


def scan(calls: list[RollingOut], actor: ActorSlot, started_before: float) -> RolloutRequest | None:
    """Return the straggler as a scan over all calls finds it."""
    copies = Counter(call.request.index for call in calls if call.request)
    late = [
        (call.started, call.request)
        for call in calls
        if call.request and copies[call.request.index] == 1 and call.started < started_before
        if call.actor is not actor
        if (call.actor.version, call.actor.processor) == (actor.version, actor.processor)
    ]
    return min(late, key=lambda entry: entry[0])[1] if late else None


def test_the_straggler_is_the_one_that_a_scan_over_all_calls_of_other_actors_finds() -> None:
    generator = random.Random(1)
    actors = [slot(number) for number in range(12)]
    running, found, calls = RunningRequests(), 0, list[RollingOut]()
    for now in range(3000):
        actor = generator.choice(actors)
        own = [call for call in calls if call.actor is actor]
        if len(own) < GROUPS_PER_ACTOR:
            if not own:
                actor.version = Version(generator.randrange(2))
            calls.append(call_of(actor, generator.randrange(16), float(now)))
            running.add(calls[-1])
        elif generator.random() < 0.5:
            calls.remove(own[0])
            running.discard(own[0])
        else:
            assert own[0].request
            key = key_of(own[0].request)
            copies = [call for call in calls if call.request and key_of(call.request) == key]
            assert running.finish(key) == copies
            calls = [call for call in calls if call not in copies]
        assert len(running) == len(calls)
        indices = {call.request.index for call in calls if call.request}
        assert all(((index, 0) in running) == (index in indices) for index in range(16))
        for age in (2, 9):
            expected = scan(calls, actor, now - age)
            assert running.oldest_single(actor, now - age) is expected
            found += expected is not None
    assert found > 500, "the example must hold stragglers"
