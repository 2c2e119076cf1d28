"""Ray starts though its agents take longer than Ray waits for them."""

import os
import sys
from pathlib import Path

import pytest

from tests.commands import environment, run

SLOW_AGENTS = """
import sys, time

if any(word.endswith(("dashboard/agent.py", "runtime_env/agent/main.py")) for word in sys.orig_argv):
    time.sleep(20)  # Ray's own limit is 15 s
"""
USE_RAY = """
import ray
from ript_ray.runtime.cluster import Cluster
from ript_ray.runtime.ray_session import ray_session

with ray_session(Cluster(num_actors=1)):
    print("answered", ray.get(ray.remote(lambda: 42).remote(), timeout=300))
"""


@pytest.mark.ray
@pytest.mark.cli
def test_ray_starts_though_its_agents_are_slow(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_AGENTS)
    path = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"
    result = run("env", f"PYTHONPATH={path}", sys.executable, "-c", USE_RAY, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "answered 42" in result.stdout
