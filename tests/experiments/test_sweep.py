"""A sweep as a user runs it: killed, resumed, compared."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.commands import ROOT, environment, run

SWEEP = (sys.executable, str(ROOT / "experiments" / "sweep.py"))
TINY = (
    *("experiments.extending", "--over", "ppo.learning-rate=1e-3,3e-3", "--seeds", "0-1", "--evaluation.every", "1"),
    *("--num-updates", "2", "--sampling.batch-rollouts", "16", "--evaluation.contexts-per-task", "4"),
)


def results_of(runs: Path) -> dict[str, int]:
    """When each run of the sweep wrote its results, by the end of its name."""
    found = runs.glob("*-seed*-learning-rate-*/results.json")
    return {path.parent.name[16:]: path.stat().st_mtime_ns for path in found}


@pytest.mark.ray
@pytest.mark.cli
def test_a_killed_sweep_goes_on_with_what_is_left_and_compares_all_trials(tmp_path: Path) -> None:
    runs, sweep = tmp_path / "runs" / "extending", "runs/extending-sweep/learning-rate"
    with subprocess.Popen(
        [*SWEEP, *TINY], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as killed:
        assert killed.stdout is not None
        lines = []
        for line in killed.stdout:
            lines.append(line)
            if "has finished" in line:
                break
        killed.kill()
    assert "has finished" in lines[-1], "".join(lines)
    before = results_of(runs)
    assert 0 < len(before) < 4

    resumed = run(*SWEEP, "--resume", sweep, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    after = results_of(runs)
    assert sorted(after) == [f"seed{seed}-learning-rate-{rate}" for seed in (0, 1) for rate in ("1e-3", "3e-3")]
    assert {name: after[name] for name in before} == before
    for shown in (resumed, run(*SWEEP, *TINY, cwd=tmp_path)):  # the same command again shows what is there
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert shown.stdout.count("2 finished") == 2
        assert "mlflow ui --backend-store-uri" in shown.stdout
    assert (tmp_path / sweep / "curves.png").stat().st_size > 1000
    assert results_of(runs) == after

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    found = client.get_experiment_by_name("extending")
    assert found is not None
    tracked = client.search_runs([found.experiment_id])
    (parent,) = (each for each in tracked if each.info.run_name == "sweep learning-rate")
    assert parent.info.status == "FINISHED"
    trials = [each for each in tracked if each is not parent]
    assert {each.data.tags["mlflow.parentRunId"] for each in trials} == {parent.info.run_id}
    assert [each.info.status for each in trials] == ["FINISHED"] * 4
    changed = {json.loads((path / "changed.json").read_text())["ppo.learning-rate"] for path in runs.glob("*-1e-3")}
    assert changed == {"0.001"}

    other = run(*SWEEP, *TINY, "--max-steps", "12", cwd=tmp_path)
    assert (other.returncode, "has a sweep of other trials" in other.stderr) == (2, True)
    listed = run(sys.executable, "-m", "ript_ray", "runs", cwd=tmp_path)
    assert "sweep" not in listed.stdout.replace("-sweep", "")
    assert listed.stdout.count("finished") == 4
