"""The shipped settings: a node that hangs is given up in time, one that pauses is not."""

import os
import re
import subprocess
import sys

import pytest

from tests.commands import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.cli, pytest.mark.alone]

NOTICED_WITHIN_S = 20.0
"""By the settings 9 s on an idle machine; with Ray's defaults more than a minute."""


def test_a_node_that_hangs_is_dead_within_twenty_seconds_and_one_that_pauses_is_not() -> None:
    # A process of its own: Ray reads its settings once, and they must be those of the shipped file.
    settings = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    result = subprocess.run(
        ["sh", "-c", '. clusters/environment.sh && exec "$@"', "sh", sys.executable, "-m", "tests.clusters.hung_node"],
        cwd=ROOT,
        env=settings | {"RAY_AUTH_TOKEN": "0" * 64},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    print(result.stdout)
    assert "survived a pause" in result.stdout, result.stderr
    noticed = re.search(r"ActorDiedError after ([\d.]+) s", result.stdout)
    assert noticed, result.stdout + result.stderr
    assert float(noticed.group(1)) < NOTICED_WITHIN_S
