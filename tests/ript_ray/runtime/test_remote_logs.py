"""Log records of actors and learners reach the driver's loggers with the actor and the group they belong to."""

import functools
import logging
import os
import platform
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest

from ript_ray.errors import WorkerError
from ript_ray.rl.protocols import Components
from ript_ray.runtime.ray_runtime import RayRuntime
from ript_ray.runtime.remote_logs import MAX_CHARS, MAX_RECORDS, REPEAT_S, LogBuffer, LogEntry, LogRelay
from ript_ray.types import RolloutRequest
from tests.conftest import line_parts, line_stream
from tests.fakes import LineEnvironment, TinyChunkPolicy
from tests.ript_ray.runtime.test_runtimes import on_ray, train_on

POLICY = functools.partial(TinyChunkPolicy, "laplace")


class TalkingEnvironment(LineEnvironment):
    """Logs, warns and reports at the start of each episode."""

    def reset(self, initial_state):
        super().reset(initial_state)
        logging.getLogger("simulator").warning("contact buffer is %d %% full", 95)
        logging.getLogger("simulator").info("below the root logger's level")
        logging.getLogger("ript_ray.rl.rollout").info("episode started")
        warnings.warn("slow renderer", stacklevel=1)


class ChattyEnvironment(LineEnvironment):
    """Logs 10,000 different warnings in its first step."""

    def reset(self, initial_state):
        super().reset(initial_state)
        for number in range(10_000):
            logging.getLogger("simulator").warning("constraint %d is violated", number)


class FailingEnvironment(LineEnvironment):
    """Logs the reason before it raises."""

    def step(self, action):
        logging.getLogger("simulator").error("the solver diverged")
        raise RuntimeError("unstable")


class TalkingLearner(TinyChunkPolicy):
    """Warns during training."""

    def log_probs(self, record):
        logging.getLogger("policy").warning("a large ratio")
        return super().log_probs(record)


def parts_with(make_environment: Callable[[], LineEnvironment]) -> Components:
    return replace(line_parts(POLICY), make_environment=lambda task: make_environment())


def roll_out(parts: Components, *indices: int) -> None:
    runtime: RayRuntime = on_ray(parts, 1)
    try:
        for index in indices:
            runtime.launch(RolloutRequest(index, (line_stream().at(0),), ((index,),), keep_record=False))
            runtime.next_event()
    finally:
        runtime.close()


def records_of(caplog: pytest.LogCaptureFixture, name: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == name]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_environments_records_and_warnings_reach_the_driver_with_actor_and_group(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "ript_ray")
    roll_out(parts_with(TalkingEnvironment), 17)
    (logged,), (warned,) = records_of(caplog, "simulator"), records_of(caplog, "py.warnings")
    (reported,) = records_of(caplog, "ript_ray.rl.rollout")
    assert logged.message == "[actor 0, group 17] contact buffer is 95 % full"
    assert warned.message.startswith("[actor 0, group 17] ")
    assert "UserWarning: slow renderer" in warned.message
    assert reported.message == "[actor 0, group 17] episode started"
    assert reported.levelno == logging.INFO
    for record in (logged, warned, reported):
        attributes = vars(record)
        assert (attributes["actor"], attributes["group"], attributes["node"]) == (0, 17, platform.node())
        assert record.process not in (None, os.getpid())
        assert 0 <= time.time() - record.created < 900


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_driver_that_shows_warnings_only_gets_no_info_from_its_actors(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "ript_ray")
    roll_out(parts_with(TalkingEnvironment), 17)
    assert len(records_of(caplog, "simulator")) == 1
    assert not records_of(caplog, "ript_ray.rl.rollout")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_chatty_environment_is_truncated_and_the_dropped_records_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    roll_out(parts_with(ChattyEnvironment), 3)
    assert len(records_of(caplog, "simulator")) == MAX_RECORDS
    (dropped,) = records_of(caplog, "ript_ray.runtime.remote_logs")
    assert dropped.message == (
        "[actor 0, group 3] 9900 more log records were dropped: at most 100 different ones are kept per call"
    )


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_records_before_an_exception_reach_the_driver_and_repetitions_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(WorkerError, match=r"group 4 \(\w+\) failed 5 times, last error: RuntimeError: unstable"):
        roll_out(parts_with(FailingEnvironment), 4)
    first, *repeated = (record.message for record in records_of(caplog, "simulator"))
    assert first == "[actor 0, group 4] the solver diverged"
    # A slow machine's retries are further apart than the relay counts as one repetition: then there are more lines.
    assert sum(int(re.sub(r".*\((\d+) more times\)", r"\1", text)) if text != first else 1 for text in repeated) == 4
    pool = [record.message for record in records_of(caplog, "ript_ray.runtime.pool_counts")]
    assert "attempt 1 of 5: RuntimeError: unstable" in pool[0]
    (replaced,) = (record.message for record in records_of(caplog, "ript_ray.runtime.actor_faults"))
    assert replaced.startswith("rollout actor 0 failed (RuntimeError: unstable); replacing it")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_learners_records_reach_the_driver(caplog: pytest.LogCaptureFixture) -> None:
    runtime = on_ray(line_parts(functools.partial(TalkingLearner, "laplace")), 1)
    try:
        train_on(runtime, num_updates=1)
    finally:
        runtime.close()
    (record,) = records_of(caplog, "policy")
    assert record.message.startswith("[learner 0] a large ratio (")
    assert record.message.endswith(" times)")
    assert vars(record)["learner"] == 0
    assert vars(record)["group"] is None


def test_a_buffer_counts_repetitions_truncates_long_messages_and_is_empty_afterwards() -> None:
    buffer, logger = LogBuffer(), logging.Logger("some")
    logger.addHandler(buffer)
    assert buffer.take() == ()
    with buffer.call(group=3):
        for _ in range(1000):
            logger.warning("again")
        logger.error("x" * 10_000)
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError:
            logger.exception("a traceback follows")
    first, second, third = buffer.take()
    assert (first.message, first.count, first.group, first.level) == ("again", 1000, 3, logging.WARNING)
    assert MAX_CHARS <= len(second.message) < MAX_CHARS + 10
    assert third.message.endswith("ZeroDivisionError: division by zero")
    assert buffer.take() == ()


def test_a_malformed_log_call_does_not_end_an_episode(capsys: pytest.CaptureFixture[str]) -> None:
    buffer, logger = LogBuffer(), logging.Logger("some")
    logger.addHandler(buffer)
    logger.warning("%d", "not a number")
    assert buffer.take() == ()
    assert "Logging error" in capsys.readouterr().err


def test_a_repeated_message_is_rate_limited_and_logged_with_its_count(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    relay = LogRelay("actor")
    for number in range(5):
        relay.relay(number, [LogEntry("some", logging.WARNING, "low memory", time.time(), number, 1, "here")])
    assert caplog.messages == ["[actor 0, group 0] low memory"]
    now += REPEAT_S
    relay.relay(0, [])
    assert caplog.messages[1:] == ["[actor 4, group 4] low memory (4 more times)"]
    relay.flush()
    assert len(caplog.messages) == 2
