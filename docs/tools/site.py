"""What this site has beyond MkDocs: pages from outside of docs/, and links from file names to the code.

- `clusters/**/*.md`, SECURITY.md and other documents are pages where they lie; nothing is copied.
- A file of the checkout that a page links to, or names in backticks, becomes a page with its text in colors.
- Two pages end with lists that are made here: of the decisions, and of the messages of errors.
- Entries of `nav` with * stand for all pages that match.
- A function or class without a docstring on a page of the Python API is a warning, and so an error in `make docs`.

MkDocs calls the functions `on_...`: https://www.mkdocs.org/dev-guide/plugins/#events.
"""

import fnmatch
import logging
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
from messages import all_messages

ROOT = Path(__file__).parents[2]
OUTSIDE = ("clusters/**/*.md", "*.md")
NAMED = re.compile(r"(?<!\[)`((?:ript_ray|envs|experiments|tests|clusters|docs)/[\w/.-]+\.\w+)`(?!\])")
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
FENCE = re.compile(r" *(```|~~~)")
LANGUAGES = {".py": "python", ".sh": "sh", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml"}

logger = logging.getLogger("mkdocs.plugins.site")  # MkDocs counts warnings below its own name


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/, and those of code; then complete the navigation."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, _page_of(str(path.relative_to(ROOT))), abs_src_path=str(path)))
    for name in sorted({found for file in files.documentation_pages() for found in _code_of(file)}):
        files.append(File.generated(config, _page_of(name), content=_as_page(name)))
    pages = sorted(file.src_uri for file in files.documentation_pages())
    config.nav = _expanded(config.nav, pages)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links and file names at pages of this site, and check docstrings."""
    if page.file.src_uri.startswith("source/"):
        return markdown
    for identifier in re.findall(r"^::: (\S+)", markdown, re.MULTILINE):
        _require_docstrings(identifier, config)
    if page.file.src_uri == "decisions/index.md":
        markdown += "".join(_list_of_decisions())
    if page.file.src_uri == "troubleshooting.md":
        markdown += "".join(_list_of_messages())
    origin = _origin(page.file)

    def relink(match: re.Match[str]) -> str:
        name = _resolved(origin, match[1])
        target = _page_of(name) if (ROOT / name).is_file() else match[1]
        is_local = target == match[1] or files.get_file_from_path(target) is None
        return match[0] if is_local else f"]({_relative(target, page.file)}{match[2] or ''})"

    def link_name(match: re.Match[str]) -> str:
        target = _page_of(match[1])
        return f"[{match[0]}]({_relative(target, page.file)})" if files.get_file_from_path(target) else match[0]

    lines = [NAMED.sub(link_name, LINK.sub(relink, line)) if is_prose else line for line, is_prose in _lines(markdown)]
    return "\n".join(lines)


def _list_of_decisions() -> Iterator[str]:
    for path in sorted((ROOT / "docs" / "decisions").glob("0*.md")):
        title = path.read_text().splitlines()[0].removeprefix("# ")
        yield f"- [{title}]({path.name})\n"


def _list_of_messages() -> Iterator[str]:
    for name, messages in all_messages().items():
        yield f"\n**{name}**\n\n"
        yield from (f"- `` {message} ``\n" for message in messages)


def _lines(markdown: str) -> Iterator[tuple[str, bool]]:
    """Yield each line, and whether it is prose: neither code nor a heading."""
    is_code = False
    for line in markdown.splitlines():
        is_fence = bool(FENCE.match(line))
        yield line, not (is_code or is_fence or line.startswith(("    ", "#")))
        is_code ^= is_fence


def _code_of(file: File) -> Iterator[str]:
    """Yield the files that are no pages, which a page names or links to."""
    for line, is_prose in _lines(file.content_string):
        if is_prose:
            names = NAMED.findall(line) + [_resolved(_origin(file), each) for each, _ in LINK.findall(line)]
            yield from (name for name in names if (ROOT / name).is_file() and _page_of(name).startswith("source/"))


def _origin(file: File) -> str:
    """Return where a page lies in the checkout."""
    return str(Path(file.abs_src_path or "").relative_to(ROOT))


def _resolved(origin: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def _page_of(name: str) -> str:
    """Return the page, or the picture, of a file of the checkout."""
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return "index.md" if name == "README.md" else name if name.endswith(".md") else f"source/{name}.md"


def _relative(target: str, page: File) -> str:
    return posixpath.relpath(target, posixpath.dirname(page.src_uri) or ".")


def _as_page(name: str) -> str:
    language = LANGUAGES.get(Path(name).suffix, "text")
    front = "---\nsearch:\n  exclude: true\nhide: [navigation, toc]\n---\n"
    return f'{front}# {name}\n\n``````{language} linenums="1"\n{(ROOT / name).read_text()}``````\n'


def _expanded(entries: Any, pages: list[str]) -> Any:
    """Return the navigation with patterns replaced by the pages that they match, index pages first."""
    expanded: list[Any] = []
    for entry in entries:
        if isinstance(entry, dict):
            ((title, inner),) = entry.items()
            expanded.append({title: _expanded(inner, pages) if isinstance(inner, list) else inner})
        elif "*" in entry:
            expanded += fnmatch.filter(pages, entry)
        else:
            expanded.append(entry)
    return expanded


def _require_docstrings(identifier: str, config: MkDocsConfig) -> None:
    """Warn of what a page of the Python API shows without a word."""
    handler = config.plugins["mkdocstrings"].get_handler("python")  # type: ignore[attr-defined]
    documented = handler.collect(identifier, handler.get_options({}))
    members = documented.members.values() if documented.is_class else ()
    for each in (
        documented,
        *(member for member in members if member.is_public and member.is_function and not member.is_special),
    ):
        if not each.has_docstring:
            logger.warning("%s has no docstring", each.path)
