import logging

import pytest

from ript_ray.runtime.heartbeat import Heartbeat, in_minutes, with_heartbeat


def test_a_long_phase_tells_how_far_it_is_and_how_long_it_will_take(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    heartbeat = Heartbeat("evaluating, rollouts", 150, interval_s=0.0)
    heartbeat.beat(0)
    heartbeat.beat(75)
    first, second = caplog.messages
    assert first == "evaluating, rollouts: 0 of 150 done, unknown time left"
    assert second.startswith("evaluating, rollouts: 75 of 150 done, 0 min 0")


def test_a_short_phase_is_silent_and_no_item_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert list(with_heartbeat("abc", "drawing contexts, tasks", 3)) == ["a", "b", "c"]
    assert not caplog.messages


def test_durations_are_given_in_minutes_or_hours() -> None:
    assert [in_minutes(seconds) for seconds in (0.4, 61, 7199, 7260)] == [
        "0 min 00 s",
        "1 min 01 s",
        "119 min 59 s",
        "2 h 01 min",
    ]
