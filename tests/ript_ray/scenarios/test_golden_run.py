"""Backward compatibility: a run folder of schema 1 is read, evaluated, compared, replayed and resumed.

tests/fixtures/schema1/run was written by an earlier version: two MetaWorld tasks, killed while it saved update 3 of 4.
Rounding may differ between processors, so no success rate is compared with the one of that version.
"""

import json
import shutil
from pathlib import Path

import pytest

from ript_ray.policies.quest.config import QuestConfig
from ript_ray.runs import checkpoint
from ript_ray.runs.model_dir import from_pretrained, load_model
from ript_ray.runs.rollout_log import read_groups
from ript_ray.runs.run_dir import RunDir
from ript_ray.tracking.metrics_log import read_metrics
from tests.commands import ROOT, ript_ray_here

FIXTURES = ROOT / "tests" / "fixtures" / "schema1"
HERE = "--cluster.in-process"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "run", tmp_path / "run"))


def test_every_file_is_read_with_its_original_meaning(run: Path) -> None:
    experiment = RunDir(run).experiment
    assert (experiment.benchmark.kind, experiment.policy.kind, experiment.sft.kind) == ("metaworld", "quest", "quest")
    assert isinstance(experiment.policy, QuestConfig)
    assert (experiment.ppo.learning_rate, experiment.policy.prior_width, experiment.max_steps) == (2e-4, 24, 100)
    point = checkpoint.latest_valid(run)
    assert (point.folder.name, point.state.progress.update, point.state.progress.next_index) == ("update-00002", 2, 10)
    totals = point.state.totals
    assert (totals.env_steps, totals.num_rollouts, totals.groups["accepted"]) == (3640, 40, 4)
    assert (totals.ledger.dispatched, totals.ledger.trained, totals.ledger.uniform) == (10, 4, 6)
    groups = read_groups(run / "groups.jsonl")
    assert [group.group for group in groups] == list(range(17))
    kinds = [point.kind for point in read_metrics(run / "metrics.jsonl")]
    assert (kinds.count("evaluation"), kinds.count("update")) == (1, 3)


def test_a_model_folder_is_read_with_its_original_meaning() -> None:
    card = load_model(FIXTURES / "model").card
    assert (card.policy.kind, card.policy.sensors, card.policy.chunk_length) == ("quest", ("state",), 4)
    assert (card.environment.action_dim, card.environment.state_dims) == (1, {"state": 2})
    assert len(from_pretrained(FIXTURES / "model").trainable()) > 0


@pytest.mark.sim
@pytest.mark.cli
def test_it_is_evaluated_and_compared(run: Path, tmp_path: Path) -> None:
    result = ript_ray_here("evaluate", "run", "--out", "figures.json", HERE, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "figures.json").read_text())["num_rollouts"] == 8
    first = "run/checkpoints/update-00000"
    result = ript_ray_here("compare", first, "run", "--out", "pair.json", HERE, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "pair.json").read_text())["difference"]["num_pairs"] == 8


@pytest.mark.sim
@pytest.mark.cli
def test_its_rollouts_are_replayed(run: Path, tmp_path: Path) -> None:
    """All rollouts of the group failed by a wide margin, so that rounding differences cannot change the outcome."""
    result = ript_ray_here("replay", "run", "--group", "4", "--member", "0", "--size", "32", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "group 4, member 0: failure after 100 steps, as recorded" in result.stdout


@pytest.mark.sim
@pytest.mark.cli
def test_it_is_resumed_to_its_end_and_then_has_the_current_schema(run: Path, store: str, tmp_path: Path) -> None:
    result = ript_ray_here("resume", "run", HERE, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads((run / "results.json").read_text())
    assert (results["num_updates"], results["schema"]) == (4, 2)
    assert results["before"] == json.loads((run / "before.json").read_text())
    for name, schema in {"groups.jsonl": 2, "metrics.jsonl": 3}.items():
        assert {json.loads(line)["schema"] for line in (run / name).read_text().splitlines()} == {schema}
    assert checkpoint.load(run / "checkpoints" / "update-00004").experiment == RunDir(run).experiment
