import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

import pytest

from ript_ray.evaluation.evaluate import EvaluationResult, SuccessRate, evaluate, evaluation_requests
from ript_ray.rl.hosting import Hosting
from ript_ray.runtime.serial import SerialRuntime
from ript_ray.types import Context
from tests.conftest import line_parts, line_stream
from tests.fakes import LineEnvironment, TinyChunkPolicy


def wilson_oracle(solved: int, total: int) -> tuple[float, float]:
    """Wilson 1927, closed form."""
    z, share = 1.959963984540054, solved / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return centre - half, centre + half


@pytest.mark.parametrize(("solved", "total"), [(0, 50), (1, 1), (25, 50), (49, 50), (50, 50), (7, 13)])
def test_intervals_are_wilson_intervals(solved: int, total: int) -> None:
    rate = SuccessRate.of([1.0] * solved + [0.0] * (total - solved))
    assert (rate.success_rate, rate.num_rollouts) == (solved / total, total)
    assert (rate.low, rate.high) == pytest.approx(wilson_oracle(solved, total), abs=1e-9)
    assert 0 <= rate.low <= rate.success_rate <= rate.high <= 1


def test_each_context_is_rolled_out_once_and_counted_for_its_task() -> None:
    contexts = [line_stream().at(index) for index in range(11)]
    runtime = SerialRuntime(line_parts(lambda: TinyChunkPolicy("laplace")))
    result = evaluate(runtime, evaluation_requests(contexts, batch_size=4, seed=0))
    assert result.overall.num_rollouts == 11
    for task, rate in result.per_task.items():
        assert rate.num_rollouts == sum(context.task == task for context in contexts)
    solved = sum(rate.success_rate * rate.num_rollouts for rate in result.per_task.values())
    assert result.overall.success_rate == pytest.approx(solved / 11)
    assert 11 <= result.num_env_steps <= 11 * 12


class Counted(LineEnvironment):
    """Counts how many environments are open."""

    open: ClassVar[list[int]] = [0]

    def __init__(self) -> None:
        super().__init__()
        self.open.append(self.open[-1] + 1)

    def close(self) -> None:
        self.open.append(self.open[-1] - 1)


def test_500_episodes_of_ten_tasks_stream_through_ten_environments_and_none_is_built_twice() -> None:
    Counted.open[:] = [0]
    parts = replace(
        line_parts(lambda: TinyChunkPolicy("laplace")), make_environment=lambda task: Counted(), max_steps=2
    )
    contexts = [Context(f"task {index // 50}", "go left", (0.0, 1.0)) for index in range(500)]
    runtime = SerialRuntime(parts, Hosting(max_environments=10))
    result = evaluate(runtime, evaluation_requests(contexts, batch_size=10, seed=0))
    assert [rate.num_rollouts for rate in result.per_task.values()] == [50] * 10
    assert max(Counted.open) == 10
    num_built = sum(after > before for before, after in pairwise(Counted.open))
    assert num_built == 10 * 10, "tasks come one after another, so an actor builds the environments of each once"
    runtime.close()
    assert Counted.open[-1] == 0


def test_evaluating_the_same_policy_twice_gives_the_same_result() -> None:
    contexts = [line_stream().at(index) for index in range(10)]
    parts = line_parts(lambda: TinyChunkPolicy("gaussian"))
    first, second = (
        evaluate(SerialRuntime(parts), evaluation_requests(contexts, batch_size=3, seed=1)) for _ in range(2)
    )
    assert first == second


def test_results_round_trip_through_json_with_every_outcome() -> None:
    result = EvaluationResult({"a": (True, False, True), "b": (False,)}, 120)
    written = json.loads(json.dumps(result.to_json()))
    assert written["outcomes"] == {"a": "101", "b": "0"}
    assert (written["success_rate"], written["num_rollouts"], written["env_steps"]) == (0.5, 4, 120)
    assert EvaluationResult.from_json(written) == result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcomes": {"a": "111", "b": "0"}}, "does not match its outcomes: .*success_rate"),
        ({"outcomes": {"a": "1x1", "b": "0"}}, "not a valid evaluation result"),
        ({"outcomes": {"a": "", "b": "0"}}, "not a valid evaluation result"),
        ({"outcomes": {}}, "not a valid evaluation result"),
        ({"outcomes": None}, "not a valid evaluation result"),
        ({"env_steps": "many"}, "not a valid evaluation result"),
        ({"low": 0.5}, "does not match its outcomes: low"),
        ({"per_task": {}}, "does not match its outcomes: per_task"),
        ({"lows": 0.5}, "does not match its outcomes: lows"),
    ],
)
def test_results_that_do_not_match_their_outcomes_are_refused(change: dict[str, object], message: str) -> None:
    written = EvaluationResult({"a": (True, False, True), "b": (False,)}, 120).to_json()
    with pytest.raises(ValueError, match=message):
        EvaluationResult.from_json(written | change)


def test_results_without_outcomes_are_refused() -> None:
    written = EvaluationResult({"a": (True,)}, 1).to_json()
    del written["outcomes"]
    with pytest.raises(ValueError, match="not a valid evaluation result: KeyError"):
        EvaluationResult.from_json(written)
