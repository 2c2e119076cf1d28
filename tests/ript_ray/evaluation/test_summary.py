"""Intervals over seeds and contexts: coverage, edge cases, and which runs may be summarized."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ript_ray.cli.summarize import Summarize
from ript_ray.config.experiment import Experiment
from ript_ray.config.rl import PPO, Evaluation
from ript_ray.errors import CheckpointError, ConfigError
from ript_ray.evaluation.comparison import Comparison
from ript_ray.evaluation.evaluate import EvaluationResult
from ript_ray.evaluation.summary import Estimate, Summary
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.summary import summarize_runs


@pytest.mark.parametrize("shares_contexts", [False, True])
@pytest.mark.parametrize(("num_seeds", "spread"), [(3, 0.6), (6, 0.0)])
def test_intervals_have_at_least_about_their_nominal_coverage(
    num_seeds: int, spread: float, shares_contexts: bool
) -> None:
    """Success of a rollout: 1 / (1 + exp(-x)), where x has a part of the seed and a part of the context."""
    generator = np.random.default_rng(0)
    many = 1.4 + generator.normal(0, 1, 200_000) + generator.normal(0, spread, 200_000)
    truth = float((1 / (1 + np.exp(-many))).mean())
    covered, ends = [], []
    for _ in range(80):
        contexts = generator.normal(0, 1, (1 if shares_contexts else num_seeds, 2, 25))
        seeds = generator.normal(0, spread, (num_seeds, 1, 1))
        outcomes = generator.random((num_seeds, 2, 25)) < 1 / (1 + np.exp(-1.4 - contexts - seeds))
        found = Estimate.of(outcomes.astype(float), shares_contexts=shares_contexts)
        covered.append(found.low <= truth <= found.high)
        ends.append(found.high - found.low)
    assert np.mean(covered) > 0.88  # fewer in 1 % of cases; of a plain bootstrap over three seeds, 0.77 to 0.86
    assert np.mean(ends) < (0.6 if num_seeds == 3 else 0.2), "wider than needed"


def test_estimates_stay_in_range_and_are_never_certain() -> None:
    certain = Estimate.of(np.ones((3, 2, 10)), shares_contexts=False)
    assert (certain.mean, certain.high, certain.worst) == (1.0, 1.0, 1.0)
    assert certain.low == pytest.approx(1 - 3 / 60)
    none = Estimate.of(np.zeros((2, 1, 5)), shares_contexts=True)
    assert (none.mean, none.low) == (0.0, 0.0)
    assert none.high > 0


def results(*rates: tuple[float, float]) -> dict[int, tuple[EvaluationResult, EvaluationResult]]:
    """By seed: success before and after on ten contexts of one task."""

    def first(rate: float) -> EvaluationResult:
        return EvaluationResult({"reach-v3": tuple(index < 10 * rate for index in range(10))}, 10)

    return {seed: (first(before), first(after)) for seed, (before, after) in enumerate(rates)}


def test_a_summary_has_means_the_worst_seed_and_paired_gains() -> None:
    found = Summary.of(results((0.2, 0.8), (0.3, 0.5), (0.4, 0.9)), shares_contexts=False)
    overall = found.overall
    assert found.worst_seed == 1
    assert (overall.before.mean, overall.after.mean, overall.gain.mean) == pytest.approx(
        (0.3, 0.7333, 0.4333), abs=1e-4
    )
    assert (overall.after.worst, overall.gain.worst) == pytest.approx((0.5, 0.2))
    assert overall.gain.low < 0.4333 < overall.gain.high
    assert found.per_task["reach-v3"] == overall


def finished(root: Path, experiment: Experiment, pair: tuple[EvaluationResult, EvaluationResult]) -> Path:
    folder = RunDir.create(root, experiment)
    folder.results.write_text(json.dumps({"schema": 2, "before": pair[0].to_json(), "after": pair[1].to_json()}))
    return folder.path


EXPERIMENT = Experiment("small", ("reach-v3",), evaluation=Evaluation(contexts_per_task=10, seed=0))


def test_runs_that_differ_in_their_seeds_alone_are_summarized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = results((0.2, 0.8), (0.3, 0.5), (0.4, 0.9))
    runs = [finished(tmp_path, replace(EXPERIMENT, seed=seed), pair) for seed, pair in found.items()]
    assert Summarize(tuple(runs), out=tmp_path / "summary.json").run() == 0
    printed = capsys.readouterr().out
    assert "seeds 0, 1, 2; 10 contexts per task, the same for each seed; worst: seed 1" in " ".join(printed.split())
    assert "+43.3 [" in printed
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["overall"]["after"]["worst"] == 0.5
    assert summarize_runs(runs) == Summary.of(found, shares_contexts=True)
    latest = runs[0].parent / "latest"
    assert summarize_runs([*runs, latest]) == summarize_runs(runs), "as typed with an asterisk"


def test_runs_that_cannot_be_summarized_are_refused_by_name(tmp_path: Path) -> None:
    pair = results((0.2, 0.8))[0]
    first = finished(tmp_path, EXPERIMENT, pair)
    twin = finished(tmp_path, EXPERIMENT, pair)
    other = finished(tmp_path, replace(EXPERIMENT, seed=1, ppo=PPO(clip_high=0.3)), pair)
    unfinished = RunDir.create(tmp_path, replace(EXPERIMENT, seed=2)).path
    for runs, error, message in (
        ([first], ConfigError, "at least two runs, not 1"),
        ([first, first], ConfigError, "is named twice"),
        ([first, twin], ConfigError, f"{twin} has seed 0, as another of these runs"),
        ([first, other], ConfigError, f"{other} cannot be summarized with {first}: it has ppo.clip_high 0.3, not 0.2"),
        ([first, unfinished], CheckpointError, f"{unfinished} has not finished"),
        ([first, tmp_path], CheckpointError, "config.json"),
    ):
        with pytest.raises(error, match=message):
            summarize_runs(runs)


def test_p_values_of_tasks_are_corrected_for_their_number() -> None:
    gained = {"a": 8, "b": 6, "c": 1}
    before = EvaluationResult(dict.fromkeys(gained, (False,) * 10), 1)
    after = EvaluationResult({task: tuple(index < number for index in range(10)) for task, number in gained.items()}, 1)
    comparison = Comparison.of(before, after)
    raw = [comparison.per_task[task].p_value for task in gained]
    assert raw == pytest.approx([2 / 2**8, 2 / 2**6, 1.0])
    assert list(comparison.holm_p_values.values()) == pytest.approx([3 * raw[0], 2 * raw[1], 1.0])
    assert comparison.to_json()["per_task"]["b"]["p_holm"] == pytest.approx(2 * raw[1])
