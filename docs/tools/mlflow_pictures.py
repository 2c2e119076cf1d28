"""Make the pictures of docs/mlflow.md: MLflow's own pages of an experiment, in a headless browser.

    python docs/tools/mlflow_pictures.py extending

The store should hold some finished runs of the experiment: of a few seeds, and with other settings. The browser is
Chromium or Chrome, told what to do through its debugging protocol (https://chromedevtools.github.io/devtools-protocol).
How MLflow's pages remember what a reader chose is their own affair: if an upgrade changes it, a wait here fails and
prints the page's text.
"""

import asyncio
import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import tyro
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from PIL import Image

IMAGES = Path(__file__).parents[1] / "images"
PATIENCE_S = 300.0
"""How long one step may take: the start of the server or the browser, or a page."""
NUM_COLORS = 128
"""Of a picture; twice as many make it a half larger and look the same."""
COLUMNS = ("result/before", "result/after", "result/gain")
SEARCH = "train/success_rate"
SMOOTHNESS = 70
"""Of the charts, in percent."""
NO_TOOL_BARS = "Object.assign(document.createElement('style'), {textContent: '.modebar { visibility: hidden }'})"
"""JavaScript: a style that hides what covers the charts where there is no mouse."""
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""The server asks no other host for anything and starts no further processes."""
FIND = """text => {
    const has = each => each.innerText?.trim() === text
    return [...document.querySelectorAll("button, label, span, div, h4")]
        .find(each => has(each) && ![...each.children].some(has))
}"""
"""JavaScript: the first element with a text, not what is around it."""


class PictureError(Exception):
    """A picture cannot be made; the message says why."""


class Page:
    """A page of a headless browser."""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse):
        """Use the page at the other end of a connection."""
        self._connection = connection
        self._num_calls = 0

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the debugging protocol and return its result."""
        self._num_calls += 1
        await self._connection.send_json({"id": self._num_calls, "method": method, "params": parameters})
        answer: dict[str, Any] = {}
        try:
            async with asyncio.timeout(PATIENCE_S):
                while answer.get("id") != self._num_calls:  # an event
                    answer = await self._connection.receive_json()
        except TimeoutError:
            raise PictureError(f"{method}: no answer within {PATIENCE_S:.0f} s") from None
        if "error" in answer:
            raise PictureError(f"{method}: {answer['error']}")
        return answer["result"]

    async def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        return (await self.call("Runtime.evaluate", expression=script))["result"].get("value")

    async def open(self, address: str, *texts: str) -> None:
        """Open an address and wait until the page shows all texts.

        Raises:
            PictureError: It does not; the message has what it shows.
        """
        await self.call("Page.navigate", url=address)
        wanted = f"{json.dumps(texts)}.every(text => document.body?.innerText.includes(text))"
        try:
            await _until(lambda: self.run(wanted), f"{address} does not show {texts}")
        except PictureError as error:
            raise PictureError(f"{error}, but:\n{await self.run('document.body?.innerText')}") from None

    async def take(self, path: Path, width: int, height: int) -> None:
        """Save what a window of this size shows, once that has come to rest."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        taken = ["", ""]

        async def is_at_rest() -> bool:
            taken[:] = [taken[1], (await self.call("Page.captureScreenshot"))["data"]]
            return taken[0] == taken[1]

        await _until(is_at_rest, f"{path.name}: the page does not come to rest", pause_s=2.0)
        image = Image.open(io.BytesIO(base64.b64decode(taken[1])))
        image.convert("RGB").quantize(NUM_COLORS).save(path, optimize=True)


async def _until(is_true: Callable[[], Awaitable[bool]], otherwise: str, pause_s: float = 0.5) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            while not await is_true():
                await asyncio.sleep(pause_s)
            return
    raise PictureError(f"{otherwise} within {PATIENCE_S:.0f} s")


@contextlib.contextmanager
def _running(command: list[str], log: Path) -> Iterator[Callable[[], None]]:
    """Start a program, yield a check that it still runs, and end it and its children afterwards.

    The check raises PictureError with what the program printed.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | QUIET, start_new_session=True
        )

    def check() -> None:
        if process.poll() is not None:
            raise PictureError(f"{command[0]} ended:\n{log.read_text()}")

    try:
        yield check
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE_S)


@contextlib.asynccontextmanager
async def _server(store: str, folder: Path, session: aiohttp.ClientSession) -> AsyncIterator[str]:
    """Start MLflow's server on a free port of this machine; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--port", str(port)]
    with _running([*command, "--workers", "1"], folder / "server.log") as check:

        async def answers() -> bool:
            check()
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{address}/health") as answer:
                    return answer.ok
            return False

        await _until(answers, f"{address} does not answer")
        yield address


@contextlib.asynccontextmanager
async def _browser(program: str, folder: Path, session: aiohttp.ClientSession) -> AsyncIterator[Page]:
    """Start a browser, which chooses a port and writes it down; yield its page."""
    options = ["--headless=new", "--no-sandbox", f"--user-data-dir={folder}", "--remote-debugging-port=0"]
    port = folder / "DevToolsActivePort"
    with _running([program, *options, "about:blank"], folder / "browser.log") as check:

        async def names_port() -> bool:
            check()
            return port.exists() and "\n" in port.read_text()

        await _until(names_port, f"{program} does not answer")
        async with session.get(f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json") as answer:
            (page, *_) = [each for each in await answer.json() if each["type"] == "page"]
        async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as connection:
            yield Page(connection)


def _remembered(runs: list[Run]) -> Mapping[str, Any]:
    """Return what MLflow's pages remember in the browser of a reader who chose what the pictures show."""
    view = {
        "selectedColumns": [f"metrics.`{column}`" for column in COLUMNS],
        "runsExpanded": {run.info.run_id: True for run in runs},
        "chartsSearchFilter": f"^{SEARCH}",
        "globalLineChartConfig": {"xAxisKey": "step", "selectedXAxisMetricKey": "", "lineSmoothness": SMOOTHNESS},
    }
    return {
        "mlflow.workflowType_v1": "machine_learning",
        "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,  # else it covers a quarter of the page
        f'MLflowLocalStorage-1.1-ExperimentPage-["{runs[0].info.experiment_id}"]-ReactComponentState': view,
    }


def _runs_of(experiment: str, store: str) -> list[Run]:
    """Return the runs of an experiment, the newest first."""
    client = MlflowClient(store)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        names = ", ".join(each.name for each in client.search_experiments())
        raise PictureError(f"experiment {experiment} is not in {store}; there are: {names}")
    return list(client.search_runs([found.experiment_id]))


async def make_pictures(runs: list[Run], store: str, out: Path, program: str) -> None:
    """Make all pictures of an experiment's runs; the two newest ones with a result are compared.

    Raises:
        PictureError: The server or the browser does not start, or a page is not as expected.
    """
    compared = [run.info.run_id for run in runs if COLUMNS[0] in run.data.metrics][:2]
    if len(compared) < 2:
        raise PictureError(f"a comparison needs two runs that have ended; {store} has {len(compared)}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        async with (
            aiohttp.ClientSession() as session,
            _server(store, Path(folder), session) as address,
            _browser(program, Path(folder), session) as page,
        ):
            await page.open(f"{address}/health", "OK")
            for key, value in _remembered(runs).items():
                await page.run(f"localStorage.setItem({json.dumps(key)}, {json.dumps(json.dumps(value))})")
            experiment = runs[0].info.experiment_id
            listed = f"{address}/#/experiments/{experiment}/runs"
            await page.open(listed, f"{len(runs)} matching runs", *COLUMNS)
            await page.take(out / "mlflow-list.png", 1200, 600)
            await page.open(f"{listed}?compareRunsMode=CHART", SEARCH)
            await page.run(f"document.head.append({NO_TOOL_BARS})")
            await page.take(out / "mlflow-charts.png", 1400, 1110)
            query = f"runs={json.dumps(compared)}&experiments={json.dumps([experiment])}"
            await page.open(f"{address}/#/compare-runs?{query}", "Show diff only")
            await page.run(f"({FIND})('Show diff only').click()")
            await page.run(f"({FIND})('Parameters').scrollIntoView()")
            await page.take(out / "mlflow-compare.png", 1200, 480)


def main(
    experiment: Annotated[str, tyro.conf.Positional],
    /,
    *,
    store: str = "sqlite:///mlflow.db",
    out: Path = IMAGES,
    browser: str = "chromium",
) -> None:
    """Make the pictures of docs/mlflow.md: MLflow's own pages of an experiment, in a headless browser.

    Args:
        experiment: Name of the experiment; two or more of its runs have ended.
        store: URI of the MLflow store that holds it.
        out: Folder of the pictures.
        browser: Chromium or Chrome; a program's name or path.
    """
    if shutil.which(browser) is None:
        sys.exit(f"--browser {browser} is not a program; install Chromium, or name another")
    try:
        asyncio.run(make_pictures(_runs_of(experiment, store), store, out, browser))
    except (PictureError, MlflowException) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    tyro.cli(main)
