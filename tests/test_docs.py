"""The documents match the code."""

import re
from pathlib import Path

import pytest

from tests.commands import ROOT


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


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.stem)
def test_every_file_that_a_document_names_exists(path: Path) -> None:
    named = re.findall(r"`((?:ript_ray|envs|experiments|tests|clusters|docs)/[\w/.-]+\.\w+)", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
