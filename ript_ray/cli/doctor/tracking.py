"""Whether MLflow's store can be reached. Without one a run continues, and `ript-ray sync-tracking` uploads later."""

import os
from collections.abc import Iterator
from pathlib import Path

from ript_ray.cli.doctor.answers import NoAnswerError, ask
from ript_ray.cli.doctor.finding import Finding
from ript_ray.cli.doctor.machine import skew


def mlflow() -> Iterator[Finding]:
    """Check the store that MLFLOW_TRACKING_URI names."""
    from ript_ray.tracking.store import MLFLOW_URI, SQLITE, without_password

    uri = os.environ.get(MLFLOW_URI, "")
    shown = without_password(uri)
    if not uri:
        yield Finding("MLflow", "mlflow.db beside the folder of the runs")
    elif uri.startswith(SQLITE):
        yield database(Path(uri.removeprefix(SQLITE)).absolute())
    elif uri.startswith(("http://", "https://")):
        yield from server(shown)
    else:
        yield Finding("MLflow", f"{shown}: not checked")


def database(file: Path) -> Finding:
    """Check that a database can be written to, or made."""
    place = file if file.exists() else file.parent
    fix = "let MLFLOW_TRACKING_URI name a file that you can write to, in a folder that is there"
    return Finding("MLflow", str(file), good=os.access(place, os.W_OK), fix=fix)


def server(uri: str) -> Iterator[Finding]:
    """Check that a server answers, and its clock."""
    fix = "start it, or unset MLFLOW_TRACKING_URI; `ript-ray sync-tracking RUN` uploads what it missed"
    try:
        status, ahead_s = ask(f"{uri.rstrip('/')}/health")
    except NoAnswerError as error:
        yield Finding("MLflow", f"{uri} does not answer: {error}", good=False, fix=fix)
        return
    answers = status in {200, 401, 403}  # it is asked without the password that the URI may have
    yield Finding("MLflow", f"{uri} answers with {status}", good=answers, fix=fix)
    if ahead_s is not None:
        yield skew("clock of MLflow's server", ahead_s)
