"""A hook of mkdocs: pages outside docs/ become pages of the site, and links lead to what they lead to in the repository.

README, CONTRIBUTING, CHANGELOG and the page of the scripts are under ``project/``, and so is every file of the repository that a page
links to. The notebook of the tutorials is a page too, made of its cells.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markdown import Extension, Markdown
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "scripts/README.md")
COMMENT = re.compile(r"<!--.*?-->\n*", flags=re.DOTALL)
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[#)])")


class NoHtml(Extension):
    """Pages have no HTML of their own: ``<g, y>`` is an inner product, as it is on GitHub."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - the name that markdown calls
        """Take out what looks for tags."""
        md.preprocessors.deregister("html_block")
        md.inlinePatterns.deregister("html")


def place(file: Path) -> str:
    """Return where a file of the repository is on the site, relative to its top."""
    if file.is_relative_to(DOCS):
        return file.relative_to(DOCS).as_posix()
    return f"project/{file.relative_to(REPOSITORY).as_posix()}"


def source(place_of_page: str) -> Path:
    """Return the file of the repository that a page of the site is made from."""
    outside = place_of_page.removeprefix("project/")
    return DOCS / place_of_page if outside == place_of_page else REPOSITORY / outside


def moved(text: str, page: Path, meet: Callable[[Path], object] = lambda _: None) -> str:
    """Return a page's Markdown with its links changed to the files' places on the site; ``meet`` is called with each linked file."""

    def new(match: re.Match[str]) -> str:
        linked = (page.parent / match[1]).resolve()
        if "://" in match[1] or not linked.is_file() or not linked.is_relative_to(REPOSITORY):
            return match[1]  # mkdocs says so where it leads nowhere
        meet(linked)
        if linked.suffix == ".ipynb" and linked.with_suffix(".md") != page:
            linked = linked.with_suffix(".md")
        return os.path.relpath(place(linked), os.path.dirname(place(page)))

    return LINK.sub(new, text)


def notebook_page(path: Path) -> str:
    """Return the Markdown of a notebook: its texts, and its code as blocks."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    return "\n\n".join([*parts, f"[The notebook as a file]({path.name}).\n"])


def on_config(config: Any) -> None:
    """Read pages without HTML."""
    config.markdown_extensions.append(NoHtml())


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and the files from outside docs/, and a page for each notebook."""
    linked: set[Path] = {REPOSITORY / name for name in PAGES}
    for page in [*linked, *DOCS.rglob("*.md")]:
        moved(page.read_text("utf-8"), page, linked.add)
    for path in sorted(linked):
        if files.get_file_from_path(place(path)) is None:
            files.append(File.generated(config, place(path), content=path.read_bytes()))
    for path in sorted(DOCS.rglob("*.ipynb")):
        text = notebook_page(path)
        files.append(File.generated(config, place(path.with_suffix(".md")), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Change the links of a page to the places of the files on the site, and leave out comments."""
    return moved(COMMENT.sub("", markdown), source(page.file.src_uri))
