"""Every benchmark runs at its smallest size and prints its table; people interpret the numbers."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from experiments.benchmarks import (
    authors,
    broadcast,
    env_processes,
    lag,
    libero,
    loader,
    memory,
    metaworld,
    openvla_oft_flops,
    pictures,
    races,
    reliability,
    run_ahead,
    sampling,
    where_time_goes,
)
from ript_ray.errors import ConfigError
from tests.commands import ROOT, environment, run
from tests.conftest import start_ray

SMALLEST: dict[str, tuple[Callable[[], None], str]] = {
    "broadcast": (
        lambda: broadcast.main(broadcast.Options(megabytes=(1,), actors=(2,), num_broadcasts=2)),
        "MB/s per actor",
    ),
    "env_processes": (
        lambda: env_processes.main(
            env_processes.Options(
                group_size=2, processes=(1,), queries_s=(0.001,), step_s=0.001, num_steps=2, repeats=1, libero=False
            )
        ),
        "times as fast",
    ),
    "loader": (
        lambda: loader.main(
            loader.Options(steps_s=(0.0,), num_frames=4, image_size=32, batch_size=2, num_steps=2, rounds=1)
        ),
        "times as fast",
    ),
    "memory": (
        lambda: memory.main(memory.Options(tasks=("reach-v3",), group_size=2, num_steps=1)),
        "of what it was then",
    ),
    "metaworld": (
        lambda: metaworld.main(metaworld.Options(tasks=("reach-v3",), rounds=1, num_steps=2)),
        "ours / physics",
    ),
    "openvla_oft_flops": (
        lambda: openvla_oft_flops.main(openvla_oft_flops.Options(iterations=(2,), group_size=2, rollout_decisions=1)),
        "times less",
    ),
    "pictures": (
        lambda: pictures.main(pictures.Options(tasks=("reach-v3",), suites=(), rounds=1)),
        "0 pixels differ",
    ),
    "reliability": (
        lambda: reliability.main(reliability.Options(group_s=0.01, batch_groups=4, num_batches=2)),
        "overhead",
    ),
    "races": (
        lambda: races.main(
            races.Options(
                tasks=("reach-v3",), suites=(), experiments=("quickstart",), rounds=1, num_steps=2, num_updates=0
            )
        ),
        "reset to a state met before",
    ),
    "sampling": (
        lambda: sampling.main(sampling.Options(rollouts=(2,), repeats=1, group_rollouts=2)),
        "same tokens",
    ),
    "run_ahead": (
        lambda: run_ahead.main(
            run_ahead.Options(actors=(2, 8), mixed=(0.5,), groups_per_update=4, rollouts_per_request=8, num_seeds=2)
        ),
        "in vain",
    ),
    "lag": (
        lambda: lag.main(lag.Options(lags=(1,), num_actors=2, batch_groups=2, group_s=0.1, num_updates=2)),
        "largest lag seen",
    ),
    "where_time_goes": (
        lambda: where_time_goes.main(where_time_goes.Options(experiments=("quickstart",), rounds=1, num_steps=16)),
        "backward",
    ),
}
"""By module: a short run, and a column of its table."""


@pytest.fixture(scope="module")
def _ray_that_finds_the_benchmarks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        start_ray(num_cpus=2)
        yield
        ray.shutdown()


@pytest.mark.ray
@pytest.mark.usefixtures("_ray_that_finds_the_benchmarks")
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_runs_and_prints_its_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_smallest, column = SMALLEST[name]
    run_smallest()
    assert column in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.cli
def test_a_benchmark_is_a_command(tmp_path: Path) -> None:
    options = ("--max-actors", "1", "--point-s", "0.2", "--group-s", "0.1")
    result = run(sys.executable, "-m", "experiments.benchmarks.throughput", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "efficiency" in result.stdout


@pytest.mark.sim
@pytest.mark.slow
def test_the_benchmark_of_libero_runs_and_prints_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    libero.main(libero.Options(blocks=1, kinds=1, growth_tasks=1, episodes=2, num_steps=1))
    printed = capsys.readouterr().out
    for title in ("stock / this", "in 24 GiB", "MB the second"):
        assert title in printed


def test_the_table_of_races_is_a_page_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [races.Row("MetaWorld", "step, ours / MuJoCo's", [1.25, 1.5, 1.125])]
    monkeypatch.setattr(races, "rows_of", lambda options: rows)
    races.main(races.Options(output=tmp_path / "page.md"))
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("# Measurements")
    assert "\n| MetaWorld | step, ours / MuJoCo's | 1.12 | 1.25 | 1.50 |\n" in page


STAND_IN = """
import torch

from ript_ray.policies.quest.skill_prior import SkillPrior


class SkillGPT(SkillPrior):
    def __init__(self, *, vocab_size, block_size, n_layer, n_head, n_embd, attn_pdrop, beam_size, **others):
        sizes = {"width": n_embd, "num_heads": n_head, "num_layers": n_layer, "dropout": attn_pdrop}
        super().__init__(vocabulary=vocab_size, num_tokens=block_size, **sizes)

    def forward(self, inputs, context):
        return self.logits(context, inputs.roll(-1, dims=1))

    def get_indices_top_k(self, context, size):
        return context
"""
"""The interface of the authors' module, which no test can download."""


def test_the_authors_code_is_raced_where_there_is_a_checkout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = authors.Options(tmp_path, num_rollouts=2, num_decisions=4, rounds=1)
    with pytest.raises(ConfigError, match=r"skill_gpt\.py does not exist"):
        authors.main(options)
    module = tmp_path / "quest" / "algos" / "quest_modules" / "skill_gpt.py"
    module.parent.mkdir(parents=True)
    module.write_text(STAND_IN)
    authors.main(options)
    assert "one by one / ours" in capsys.readouterr().out
    monkeypatch.setattr(authors, "measure", lambda options: [("forward and backward pass / ours", [2.0])])
    nothing = races.Options(tasks=(), suites=(), experiments=(), megabytes=0, num_updates=0)
    races.main(replace(nothing, authors=tmp_path))
    assert "| QueST as published | forward and backward pass / ours | 2.00 | 2.00 | 2.00 |" in capsys.readouterr().out
    races.main(nothing)
    assert "no checkout" in capsys.readouterr().out


def test_every_benchmark_is_tested() -> None:
    modules = {path.stem for path in (ROOT / "experiments" / "benchmarks").glob("*.py")}
    others = {"__init__", "timed", "throughput", "libero", "stock_libero", "stock_metaworld", "authors"}
    assert modules == others | {*SMALLEST}
