"""Whatever stands in place of a file that is read, the error names it, and nothing hangs."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ript_ray.config.experiment import Experiment
from ript_ray.config.serialization import read_experiment
from ript_ray.data.contexts import read_contexts
from ript_ray.errors import RiptError
from ript_ray.policies.quest.upstream_checkpoint import read_upstream_checkpoint
from ript_ray.runs import checkpoint
from ript_ray.runs.model_dir import load_model
from ript_ray.runs.rollout_log import load_weights, read_groups
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.summary import summarize_runs
from ript_ray.storage.hashed_dir import load_arrays, save_arrays, verify_manifest
from ript_ray.storage.jsonl import AppendOnlyLog
from ript_ray.storage.reading import MAX_NESTING, parse_json, read_json
from ript_ray.tracking.metrics_log import MetricsLog, read_metrics
from tests.commands import ROOT
from tests.conftest import tiny_quest

EXPERIMENT = Experiment("small", ("reach-v3",))

DEEP = "[" * 200_000 + "]" * 200_000
LINES = {"metrics.jsonl": read_metrics, "groups.jsonl": read_groups}
READERS: dict[str, Callable[[Path], object]] = {
    **LINES,
    "manifest.json": lambda path: verify_manifest(path.parent, ()),
    "config.json": read_experiment,
    "contexts.json": lambda path: read_contexts(path, EXPERIMENT.benchmark, ("reach-v3",), num_per_task=1),
    "run-id": lambda path: RunDir(path.parent).run_id,
    "points": MetricsLog,
    "lines": lambda path: AppendOnlyLog(path, "lines"),
    "policy.safetensors": load_arrays,
    "update-00001.safetensors": lambda path: load_weights(path, tiny_quest()),
    "quest.pth": read_upstream_checkpoint,
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_a_device_or_a_folder_is_refused_by_name_and_not_waited_for(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(RiptError, match=f"{name} is no regular file"):
        READERS[name](path)
    path.unlink()
    path.symlink_to("/dev/zero")  # it never ends
    with pytest.raises(RiptError, match=f"{name} is no regular file"):
        READERS[name](path)
    path.unlink()
    path.mkdir()
    with pytest.raises(RiptError, match=f"{name} is no regular file"):
        READERS[name](path)


@pytest.mark.parametrize("content", [DEEP, '{"a":' * 100 + "1" + "}" * 100, "{", '{"a": 1, "a": 2}', "\udcff"])
@pytest.mark.parametrize("name", [name for name in READERS if name.endswith(".json")])
def test_json_that_is_deep_broken_or_ambiguous_is_refused_by_name(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RiptError, match=f"{name} cannot be read: it (is not JSON|has 'a' twice|is no text)|nested"):
        READERS[name](path)


@pytest.mark.parametrize("name", LINES)
def test_a_line_of_deep_json_is_skipped_as_any_damaged_line(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / name
    path.write_text(f"{DEEP}\n")
    assert LINES[name](path) == []
    assert "cannot read line 1; skipping" in caplog.text


def test_nothing_else_in_the_package_parses_files_as_json() -> None:
    for path in sorted((ROOT / "ript_ray").rglob("*.py")):
        if path.name != "reading.py":
            assert not re.search(r"json\.load(s\((?!json\.dumps)|\()", path.read_text()), path


def test_json_is_read_up_to_the_stated_nesting(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * (MAX_NESTING - 1) + '{"key": "[[[" }' + "]" * (MAX_NESTING - 1))
    assert read_json(path)
    with pytest.raises(ValueError, match="nested more than 50 deep"):
        parse_json("[" * (MAX_NESTING + 1) + "]" * (MAX_NESTING + 1))


def test_results_and_models_that_are_deep_are_refused_by_name(tmp_path: Path) -> None:
    folders = [RunDir.create(tmp_path, EXPERIMENT) for _ in range(2)]
    folders[0].results.write_text(DEEP)
    with pytest.raises(RiptError, match=r"results\.json cannot be read: .*nested"):
        summarize_runs([folders[0].path, folders[0].path])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")
    (tmp_path / "model" / "manifest.json").write_text(DEEP)
    with pytest.raises(RiptError, match=r"manifest\.json cannot be read: .*nested"):
        load_model(tmp_path / "model")
    saved = tmp_path / "run" / "checkpoints" / "update-00000"
    saved.mkdir(parents=True)
    (saved / "experiment.json").write_text(DEEP)
    assert checkpoint.saved_in(tmp_path / "run") == [saved], "whoever loads it is told"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_arrays_that_are_not_finite_are_refused_when_they_are_read(tmp_path: Path, value: float) -> None:
    path = tmp_path / "policy.safetensors"
    save_arrays({"good": np.zeros(2, np.float32), "bad": np.array([0, value], np.float32), "n": np.arange(3)}, path)
    with pytest.raises(RiptError, match=r"policy\.safetensors has values that are not finite: bad$"):
        load_arrays(path)
