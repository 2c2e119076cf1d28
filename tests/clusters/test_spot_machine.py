"""A cluster that `ray start` made, with the shipped settings: machines join and leave during a run."""

import os
import secrets
import subprocess
import sys

import pytest

from tests.commands import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.cli]

RUN = (sys.executable, "-m", "tests.clusters.spot_machine")


def test_a_machine_joins_another_is_stopped_and_the_weights_are_those_of_an_undisturbed_run() -> None:
    # A process of its own: Ray reads its settings once, and they must be those of the shipped file.
    settings = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    result = subprocess.run(
        ["sh", "-c", '. clusters/environment.sh && exec "$@"', "sh", *RUN],
        cwd=ROOT,
        env=settings | {"RAY_AUTH_TOKEN": secrets.token_hex(32)},
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = iter(result.stdout.splitlines())
    for expected in (
        "waiting for a node to join, for at most 1800 s (cluster.node-timeout-s)",
        ") has joined: cores 1, GPUs 0",
        "rollout actors: 1 now fit on the nodes, before 0",
        ") has joined: cores 1, GPUs 0",
        "rollout actors: 2 now fit on the nodes, before 1",
        ") is gone",
        "rollout actors: 1 now fit on the nodes, before 2",
        "the weights are those of an undisturbed run: True",
    ):
        assert any(line.endswith(expected) for line in lines), result.stdout
