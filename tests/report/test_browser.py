"""The report in a real browser: nothing on the console, no request, no fault of accessibility, everything by keyboard.

Skips where there is no browser: any Chromium in the path will do (Debian: chromium-headless-shell), or DISTQEXP_BROWSER names one.
With DISTQEXP_SCREENSHOTS set to a folder, pictures of the report are written there; those in docs/pictures were.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import headless
from PIL import Image
from report_files import figures, write_audit, write_run

from distqexp.report.html import write_report

pytestmark = [pytest.mark.process, pytest.mark.slow]

SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser."""
    with headless() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages to be opened, by name."""
    folder = tmp_path_factory.mktemp("pages")
    run = write_run(folder / "icu")
    write_audit(run)
    runs = [run]
    for epsilon, strength in ((2.0, 1.8), (8.0, 2.4)):
        tree = figures(strength=strength, records=600)
        runs.append(write_run(folder / f"icu-epsilon-{epsilon:g}", tree, epsilon=epsilon))
    withheld = write_run(folder / "withheld", figures(evaluation={"withheld": "private"}), noise_seed=3)
    classes = write_run(folder / "classes", figures(10, strength=-1.0))
    wanted = {"run": [run], "runs": runs, "withheld": [withheld], "classes": [classes]}
    for name, shown in wanted.items():
        write_report(shown, folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in wanted}


def opened(browser: Any, path: Path, **options: Any) -> tuple[Any, list[str], list[str]]:
    """A tab with the page in it, what the console said, and the addresses that were asked for."""
    tab = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **options}).new_page()
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    return tab, said, asked


@pytest.mark.parametrize("name", ["run", "runs", "withheld", "classes"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_is_quiet_asks_for_nothing_and_is_accessible(
    browser: Any, pages: dict[str, Path], name: str, scheme: str
) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="needs axe-playwright-python (the extra test)"
    )
    tab, said, asked = opened(browser, pages[name], color_scheme=scheme)
    tab.mouse.wheel(0, 10_000)
    tab.locator("summary").first.click() if tab.locator("summary").count() else None
    assert said == []
    assert asked == [pages[name].as_uri()]
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    _take(tab, f"report-{name}-{scheme}")
    # Another tab for axe, whose script the page's own policy would not let run.
    tab, _, _ = opened(browser, pages[name], color_scheme=scheme, bypass_csp=True)
    faults = axe.Axe().run(tab).response["violations"]
    assert [(fault["id"], fault["impact"], fault["nodes"][0]["html"]) for fault in faults] == []


def test_axe_would_find_a_fault(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="needs axe-playwright-python (the extra test)"
    )
    text = pages["run"].read_text("utf-8").replace('role="img"', "").replace('<html lang="en">', "<html>")
    (tmp_path / "bad.html").write_text(text, "utf-8")
    tab, _, _ = opened(browser, tmp_path / "bad.html", bypass_csp=True)
    assert "html-has-lang" in {fault["id"] for fault in axe.Axe().run(tab).response["violations"]}


def test_a_script_or_a_request_in_the_page_would_be_blocked(
    browser: Any, pages: dict[str, Path], tmp_path: Path
) -> None:
    added = "<script>document.title = 'taken'</script><img src='http://127.0.0.1:9/x.png' alt=''></body>"
    (tmp_path / "taken.html").write_text(pages["run"].read_text("utf-8").replace("</body>", added), "utf-8")
    tab, said, _ = opened(browser, tmp_path / "taken.html")
    assert tab.title() != "taken"
    assert len([text for text in said if "Content Security Policy" in text]) == 2


def test_everything_is_reached_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    tab, _, _ = opened(browser, pages["run"], viewport={"width": 700, "height": 900})
    wanted = tab.evaluate("document.querySelectorAll('a, summary, [tabindex=\"0\"]').length")
    reached = []
    for _ in range(wanted):
        tab.keyboard.press("Tab")
        reached.append(
            tab.evaluate(
                "(() => { const one = document.activeElement; const box = one.getBoundingClientRect();"
                "const line = getComputedStyle(one); return [one.className || one.tagName, box.width > 0, line.outlineStyle]; })()"
            )
        )
        if reached[-1][0] == "SUMMARY":
            tab.keyboard.press("Enter")  # the table in it can be reached now
    assert reached[0][0] == "skip"
    assert all(seen and outline != "none" for _, seen, outline in reached), reached
    assert tab.evaluate("document.querySelectorAll('details[open]').length") == 2


@pytest.mark.parametrize("name", ["run", "runs", "classes"])
def test_narrow_windows_scroll_in_one_direction_and_paper_holds_it_all(
    browser: Any, pages: dict[str, Path], name: str
) -> None:
    tab, _, _ = opened(browser, pages[name], viewport={"width": 320, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 320
    tab.set_viewport_size({"width": 720, "height": 1000})
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert tab.pdf()[:5] == b"%PDF-"


def _take(tab: Any, name: str) -> None:
    """Take pictures of the top of the page and of one section, small enough to be committed."""
    folder = os.environ.get("DISTQEXP_SCREENSHOTS")
    if folder:
        tab.evaluate("scrollTo(0, 0)")  # a turn of the wheel may still be under way when the picture is taken
        shots = {name: tab} | {
            f"{name}-{part.get_attribute('id')}": part for part in tab.locator("#evaluation, #privacy").all()
        }
        for file, shown in shots.items():
            picture = Image.open(io.BytesIO(shown.screenshot())).convert("RGB")
            picture.quantize(128, dither=Image.Dither.NONE).save(Path(folder) / f"{file}.png", optimize=True)
