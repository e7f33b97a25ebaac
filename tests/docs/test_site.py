"""The site: built strictly, with every page and every public function, and nothing in it comes from another host."""

from __future__ import annotations

import functools
import inspect
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browsers import headless
from mpi_harness import REPOSITORY, run_environ

from distqexp import api

pytestmark = pytest.mark.process

PARTS = ("docs", "configs", "scripts", "mkdocs.yml", "LICENSE", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
ELSEWHERE = re.compile(r"^\s*(?:[a-z]+:)?//", flags=re.IGNORECASE)


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site strictly, as a command does."""
    pytest.importorskip("mkdocs", reason="needs mkdocs (the extra docs)")
    pytest.importorskip("material", reason="needs mkdocs-material (the extra docs)")
    pytest.importorskip("mkdocstrings", reason="needs mkdocstrings (the extra docs)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environ = run_environ({"NO_MKDOCS_2_WARNING": "1"})
    return subprocess.run(command, cwd=source, env=environ, capture_output=True, text=True, check=False)


def copy_of_the_sources(folder: Path) -> Path:
    """A copy of all that the site is made from."""
    folder.mkdir()
    for name in PARTS:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, folder / name)
    (folder / "distqexp").symlink_to(REPOSITORY / "distqexp")
    return folder


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = build(copy_of_the_sources(folder / "source"), folder / "built")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder / "built"


class Tags(HTMLParser):
    """The tags of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


def loaded(text: str) -> list[str]:
    """What a page names that a browser fetches by itself: everything but links to be clicked on."""
    names = ("src", "srcset", "href", "data", "poster", "action", "content", "style", "xlink:href")
    tags = [(tag, attributes) for tag, attributes in Tags(text).found if tag != "a"]
    return [value for _, attributes in tags for name, value in attributes.items() if name in names]


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        found = loaded(page.read_text("utf-8"))
        assert len(found) > 5
        assert [value for value in found if ELSEWHERE.search(value) or "http" in value] == [], page
    for sheet in site.rglob("*.css"):
        text = sheet.read_text("utf-8")
        assert not re.search(r"@import|url\(\s*['\"]?(?:https?:)?//", text), sheet
    assert loaded('<link rel="preload" href="https://fonts.example/a.css"><a href="https://x.example/">') == [
        "https://fonts.example/a.css"
    ]


def test_links_to_other_hosts_are_those_that_the_documents_have(site: Path) -> None:
    written = "".join(path.read_text("utf-8") for path in REPOSITORY.glob("*.md"))
    written += "".join(path.read_text("utf-8") for path in (REPOSITORY / "docs").rglob("*.md"))
    for page in site.rglob("*.html"):
        links = [attributes.get("href", "") for tag, attributes in Tags(page.read_text("utf-8")).found if tag == "a"]
        assert all(link in written for link in links if ELSEWHERE.search(link)), page


def test_every_document_and_every_public_function_is_there(site: Path) -> None:
    for page in (REPOSITORY / "docs").rglob("*.md"):
        place = page.relative_to(REPOSITORY / "docs").with_suffix("")
        assert (site / ("" if place.name == "index" else place) / "index.html").is_file(), page
    assert (site / "tutorials" / "notebook" / "index.html").is_file()
    assert (site / "project" / "configs" / "digits.toml").is_file()
    reference = (site / "reference" / "python" / "index.html").read_text("utf-8")
    functions = [name for name in api.__all__ if inspect.isfunction(getattr(api, name))]
    assert len(functions) > 15
    wanted = {f"distqexp.api.{name}" for name in functions} - {"distqexp.api.load_model", "distqexp.api.tune"}
    wanted |= {f"distqexp.sklearn.{name}" for name in ("PrivateClassifier", "PrivateRegressor", "PrivacyWarning")}
    wanted |= {
        "distqexp.live.fit",
        "distqexp.live.load_model",
        "distqexp.live.Fitted.predict",
        "distqexp.tuning.tune.tune",
    }
    anchors = {attributes.get("id") for _, attributes in Tags(reference).found}
    assert wanted - anchors == set()


def test_formulas_are_no_tags(site: Path) -> None:
    """An inner product such as <g, y> is text on the site, as it is on GitHub."""
    tags = {tag for page in site.rglob("*.html") for tag, _ in Tags(page.read_text("utf-8")).found}
    assert {"table", "code"} <= tags
    assert {tag for tag in tags if not re.fullmatch(r"[abip]|[a-z][a-z0-9]+", tag)} == set()
    assert "&lt;g~_j, y&gt;" in (site / "method" / "index.html").read_text("utf-8")


FAULTS = [
    ("docs/sites.md", "[nowhere](nowhere.md)", "nowhere.md"),
    ("docs/sites.md", "[no heading](config.md#no-such-heading)", "no-such-heading"),
    ("README.md", "[no file](docs/nothing.md)", "nothing.md"),
    ("docs/left-out.md", "# A page that is in no menu", "left-out.md"),
]


@pytest.mark.slow
@pytest.mark.parametrize("faults", [FAULTS, [("docs/reference/python.md", "::: distqexp.nothing", "distqexp.nothing")]])
def test_the_build_refuses_what_leads_nowhere(tmp_path: Path, faults: list[tuple[str, str, str]]) -> None:
    source = copy_of_the_sources(tmp_path / "source")
    for page, line, _ in faults:
        with (source / page).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    done = build(source, tmp_path / "built")
    assert done.returncode != 0
    assert [said for _, _, said in faults if said not in done.stderr] == []


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site behind a server on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
def test_a_browser_asks_no_other_host_and_finds_a_word(address: str) -> None:
    with headless() as browser:
        tab = browser.new_page()
        asked: list[str] = []
        said: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        for page in ("", "glossary/", "tutorials/table/", "reference/python/", "config/", "report/"):
            tab.goto(address + page)
            tab.wait_for_load_state("networkidle")
            assert tab.locator("h1").first.inner_text().strip()
        tab.locator("input[name=query]").press_sequentially("whitening")  # the search listens to keys
        tab.locator(".md-search-result__link").first.wait_for(state="attached", timeout=20_000)
        assert len(asked) > 20
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
        assert said == []
