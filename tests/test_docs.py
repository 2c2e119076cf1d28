"""The documents match the code."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from tests.commands import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PICTURES = ROOT / "docs" / "tools" / "mlflow_pictures.py"


@pytest.mark.cli
def test_the_code_of_the_python_api_document_runs(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "python_api.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    namespace: dict[str, object] = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, "docs/python_api.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "runs/notebook/" in printed
    assert re.search(r"\d+% -> \d+%", printed)


def test_every_function_of_the_python_api_is_in_its_document() -> None:
    import ript_ray

    text = (ROOT / "docs" / "python_api.md").read_text()
    functions = [name for name in ript_ray.__all__ if name.islower()]
    assert [name for name in functions if f"`{name}(" not in text] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_file_that_a_document_names_exists(path: Path) -> None:
    named = re.findall(r"`((?:ript_ray|envs|experiments|tests|clusters|docs)/[\w/.-]+\.\w+)", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_commands_and_output_are_in_fences_that_say_which(path: Path) -> None:
    text = path.read_text()
    fences = re.findall(r"^```(.*)$", text, re.MULTILINE)
    assert all(fences[::2]), "a block of code begins with ```sh, ```console, ```python, ```toml or ```text"
    assert not re.search(r"\n\n    (?:\.venv/bin/|python |ript-ray |make )", text)


def test_every_message_of_the_troubleshooting_page_is_in_the_code() -> None:
    messages = runpy.run_path(str(ROOT / "docs" / "tools" / "messages.py"))
    quoted = re.findall(r"^\| `(.*?)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 40
    assert [message for message in quoted if not messages["is_in_code"](message)] == []
    assert not messages["is_in_code"]("… is as nobody … ever said")
    assert sum(map(len, messages["all_messages"]().values())) > 250


@pytest.mark.cli
def test_the_site_is_built_strictly_and_asks_no_other_host_for_anything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    foreign = re.compile(r'<(?:script|img|iframe)[^>]* src="?(?:https?:)?//|<link[^>]* href="?(?:https?:)?//')
    assert [page for page in pages if foreign.search(page.read_text())] == []


SITE = """
site_name: a small copy
hooks: [docs/tools/site.py]
plugins:
  - mkdocstrings: {handlers: {python: {paths: [code]}}}
nav: [index.md, page.md]
"""

PAGE = "# Page\n\n## Part\n\n[home](index.md), [itself](#part), [its part](page.md#part)\n\n::: small.add\n"

CODE = """
def add(first: int, second: int) -> int:
    {docstring}
    return first + second
"""


@pytest.mark.cli
@pytest.mark.parametrize(
    ("page", "docstring", "warning"),
    [
        (PAGE, '"""Return the sum."""', ""),
        (f"{PAGE}\n[nowhere](no_such_page.md)\n", '"""Return the sum."""', "no_such_page.md"),
        (f"{PAGE}\n[no part](page.md#no-such-part)\n", '"""Return the sum."""', "#no-such-part"),
        (PAGE, "first += 0", "small.add has no docstring"),
    ],
    ids=["all well", "broken link", "missing anchor", "no docstring"],
)
def test_the_strict_build_fails_for_what_is_missing(page: str, docstring: str, warning: str, tmp_path: Path) -> None:
    validation = (ROOT / "mkdocs.yml").read_text().partition("\nvalidation:")[2]
    (tmp_path / "mkdocs.yml").write_text(f"{SITE}validation:{validation}")
    shutil.copytree(ROOT / "docs" / "tools", tmp_path / "docs" / "tools")
    (tmp_path / "docs" / "page.md").write_text(page)
    (tmp_path / "docs" / "index.md").write_text("# Home\n\n[page](page.md)\n")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "small.py").write_text(CODE.format(docstring=docstring))
    (strict,) = re.findall(r"mkdocs (build --strict.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    command = [sys.executable, "-m", "mkdocs", *strict.split()]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    shown = result.stdout + result.stderr
    assert (result.returncode != 0) == bool(warning), shown
    assert warning in shown


def test_mlflow_pictures_without_a_browser_say_what_to_install() -> None:
    main = runpy.run_path(str(PICTURES))["main"]
    with pytest.raises(SystemExit, match="--browser no-such-browser is not a program; install Chromium"):
        main("extending", browser="no-such-browser")


@pytest.mark.cli
@pytest.mark.slow  # minutes on a busy machine without a GPU
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_mlflow_pictures_are_made_of_any_two_runs_with_results(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(store)
    experiment = client.create_experiment("tiny", artifact_location=str(tmp_path / "artifacts"))
    for seed in range(2):
        run = client.create_run(experiment, run_name=f"seed{seed}").info.run_id
        client.log_param(run, "seed", seed)
        for name in ("before", "after", "gain"):
            client.log_metric(run, f"result/{name}", 0.5)
        for update in range(3):
            client.log_metric(run, "train/success_rate", 0.1 * update, step=update)
        client.set_terminated(run)
    command = [sys.executable, str(PICTURES), "tiny", "--store", store, "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    for name, size in (("list", (1200, 600)), ("charts", (1400, 1110)), ("compare", (1200, 480))):
        with Image.open(tmp_path / f"mlflow-{name}.png") as picture:
            assert picture.size == size
