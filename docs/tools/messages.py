"""Every message of an error that a user can meet, as the code has it."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
VALUE = "…"
"""Stands for what a message fills in."""


def messages_of(path: Path) -> list[str]:
    """Return the messages of a file's errors and checks, in its order; `…` stands for each value."""
    found = (text for node in ast.walk(ast.parse(path.read_text())) for text in _messages(node))
    return list(dict.fromkeys(text for text in found if text.strip(f"{VALUE}: ,;()'")))


def all_messages() -> dict[str, list[str]]:
    """Return the messages of every file that has some."""
    files = [*sorted((ROOT / "ript_ray").rglob("*.py")), *sorted((ROOT / "envs").rglob("*.py"))]
    found = {str(path.relative_to(ROOT)): messages_of(path) for path in files}
    return {name: messages for name, messages in found.items() if messages}


def is_in_code(quoted: str) -> bool:
    """Whether the code has a text like this; `…` stands for anything."""
    pattern = re.compile(".*".join(map(re.escape, quoted.split(VALUE))))
    return any(pattern.search(text) for text in _texts())


@functools.cache
def _texts() -> tuple[str, ...]:
    files = (path for folder in ("ript_ray", "envs") for path in (ROOT / folder).rglob("*.py"))
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    return tuple(_text(node) for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr))


def _messages(node: ast.AST) -> Iterator[str]:
    """Yield what `AnyError(message)` and `require(condition, message)` say."""
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        shown = node.args[:1] if name.endswith("Error") else node.args[1:] if name == "require" else []
        yield from map(_text, shown)


def _text(message: ast.expr) -> str:
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(VALUE if isinstance(part, ast.FormattedValue) else _text(part) for part in message.values)
    return VALUE
