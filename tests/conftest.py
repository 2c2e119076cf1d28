"""Shared fixtures."""

import contextlib
import ctypes
import functools
import gc
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from ript_ray.config.rl import PPO
from ript_ray.data.contexts import draw_contexts
from ript_ray.policies.base import Policy
from ript_ray.policies.quest.config import QuestConfig
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.rl.context_stream import ContextStream, Perturb
from ript_ray.rl.protocols import Components
from ript_ray.runtime.patient_start import free_ports, patient_start
from ript_ray.seeding import Purpose
from tests.fakes import LineBenchmark, TinyChunkPolicy

TINY_QUEST = QuestConfig(
    chunk_length=4,
    num_executed=2,
    fsq_levels=(3, 3),
    skill_width=16,
    skill_layers=(1, 1),
    prior_width=16,
    prior_layers=2,
    prior_heads=2,
    state_width=8,
    text_features=16,
    dropout=0.0,
    top_k=0,
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that start processes: at the end, such a file keeps one worker busy while others idle."""
    long_files = {item.path for item in items if item.get_closest_marker("ray") or item.get_closest_marker("cli")}
    items.sort(key=lambda item: item.path not in long_files)


def tiny_quest() -> QuestPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return QuestPolicy(TINY_QUEST, action_dim=1, state_dims={"state": 2})


def line_parts(build_policy: Callable[[], Policy], **ppo: Any) -> Components:
    return Components(
        build_policy=build_policy,
        make_environment=LineBenchmark().make,
        max_steps=12,
        ppo=PPO(**{"num_iterations": 2, "minibatch_rollouts": 8, "learning_rate": 1e-2, **ppo}),
        seed=5,
        learner_threads=1,
    )


def line_stream(num_per_task: int = 6, *, perturb: Perturb | None = None) -> ContextStream:
    benchmark = LineBenchmark()
    contexts = draw_contexts(
        benchmark, benchmark.tasks, num_per_task=num_per_task, seed=5, purpose=Purpose.TRAINING_CONTEXTS
    )
    return ContextStream(contexts, seed=5, perturb=perturb)


@pytest.fixture(scope="module", autouse=True)
def _free_caches() -> Iterator[None]:
    """After each file, free cached policies and simulators."""
    yield
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("ript_ray", "ript_envs", "tests"):
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()
    free_memory()


@pytest.fixture(autouse=True)
def _free_simulators() -> Iterator[None]:
    """After a test that used much memory, free closed simulators: 25 MB each, and several per run."""
    before = psutil.Process().memory_info().rss
    yield
    if psutil.Process().memory_info().rss > before + 50e6:
        free_memory()


def start_ray(**options: Any) -> None:
    """Start Ray on this machine, silently."""
    with patient_start():
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", **options)


class RayNodes(Cluster):  # type: ignore[misc]
    """Several machines, simulated as Ray nodes."""

    def add_node(self, *arguments: Any, **options: Any) -> Any:
        (port,) = free_ports(1)  # otherwise Ray's own code drops the one that it is given
        with patient_start():
            return super().add_node(*arguments, **{"dashboard_agent_listen_port": port, **options})


def free_memory() -> None:
    """Return the memory of unused objects to the system."""
    gc.collect()  # a simulator is a reference cycle
    with contextlib.suppress(AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(params=["gaussian", "laplace"])
def build_chunk_policy(request: pytest.FixtureRequest) -> Callable[[], TinyChunkPolicy]:
    return functools.partial(TinyChunkPolicy, request.param)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, because creating them takes longer than most tests here."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "store.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh local MLflow store of its default kind."""
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path)}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """Ray on two cores, for the tests of one file."""
    start_ray(num_cpus=2)
    yield
    ray.shutdown()
