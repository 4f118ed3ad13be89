"""The report as a person sees it, in headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import contrast
from headless import MISSING, open_browser, show_as
from reported_profiles import EVALUATION, MARKUP, Reported, reported

from toolguard.calibration.report.page import ReportInput, report_page

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING, reason="needs Debian's chromium and chromium-driver"),
]
TEXTS = (
    "h1",
    ".lead",
    ".how",
    ".tiles .note",
    ".tick",
    ".axis-name",
    ".badge",
    ".tag.run",
    ".tag.ask",
    ".tag.block",
    "td small",
    ".tool-name",
    ".legend li",
)


def whole(made: Reported) -> str:
    """Return the page with everything on it; the queries are markup."""
    return report_page(
        ReportInput(
            profile=made.profile,
            tested=made.tested,
            evaluation=EVALUATION,
            queries={call.record_id: MARKUP for call in made.tested.calls},
        )
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    """Give the addresses of a page of a few tools, of many, and of a profile without its calls."""
    folder = tmp_path_factory.mktemp("pages")
    few = reported(800)
    html = {
        "few": whole(few),
        "many": whole(reported(1600, tools=64, layers=(0, 1))),
        "bare": report_page(ReportInput(profile=few.profile)),
    }
    for name, text in html.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in html}


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    """Give a browser; each test asks for the theme and width it wants."""
    with open_browser(Path(tmp_path_factory.mktemp("chromium"))) as driver:
        yield driver


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("name", ["few", "many", "bare"])
def test_the_page_fits_its_window(browser, pages, name, width):
    """Nothing makes the whole page scroll sideways, on a phone or on a desk; wide tables do."""
    show_as(browser, width=width)
    browser.get(pages[name])
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    beyond = browser.execute_script(
        """
        const edge = document.documentElement.clientWidth + 1;
        return [...document.querySelectorAll('main *, header *')].filter((one) =>
          one.getBoundingClientRect().right > edge && !one.closest('.scroll, nav')
        ).map((one) => one.outerHTML.slice(0, 120));
        """
    )
    assert beyond == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_both_themes(browser, pages, theme):
    """Ink and paper differ by at least 4.5 to 1, as WCAG 2.2 asks for text, in drawings too."""
    show_as(browser, theme=theme, width=1440)
    browser.get(pages["few"])
    for css in TEXTS:
        assert contrast(browser, css) >= 4.5, css
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(246, 247, 247)", "dark": "rgb(18, 22, 24)"}[theme]


@pytest.mark.parametrize("name", ["few", "many", "bare"])
def test_nothing_runs_and_nothing_is_loaded(browser, pages, name):
    """Queries that are markup stay text, the console stays silent, no other address is asked."""
    browser.get_log("browser")
    show_as(browser)
    browser.get(pages[name])
    assert browser.title == "made · toolguard report"
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map((one) => one.name)"
    )
    assert [address for address in loaded if not address.startswith("data:")] == []
    assert browser.get_log("browser") == []


def test_every_drawing_shows_something(browser, pages):
    """Each has a size, a name for those who do not see it, and marks within its edges."""
    show_as(browser, width=1440)
    browser.get(pages["few"])
    drawings = browser.find_elements("css selector", "figure svg[role=img]")
    assert len(drawings) >= 10
    for drawing in drawings:
        assert drawing.size["width"] > 200
        assert drawing.size["height"] > 100
        assert drawing.get_attribute("aria-label")
    outside = browser.execute_script(
        """
        return [...document.querySelectorAll('figure svg[role=img] text')].filter((one) => {
          const box = one.getBoundingClientRect();
          const all = one.ownerSVGElement.getBoundingClientRect();
          return box.left < all.left - 1 || box.right > all.right + 1
            || box.top < all.top - 1 || box.bottom > all.bottom + 1;
        }).map((one) => one.textContent);
        """
    )
    assert outside == []


def test_the_links_lead_to_sections(browser, pages):
    """Every entry of the navigation has its place on the page."""
    browser.get(pages["few"])
    links = browser.find_elements("css selector", "nav a")
    assert len(links) >= 6
    for link in links:
        place = link.get_attribute("href").split("#")[1]
        assert browser.find_elements("id", place), place


def test_it_prints_light_and_whole(browser, pages):
    """On paper it is light whatever the screen is, and no table is cut off."""
    show_as(browser, theme="dark", width=720)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    browser.get(pages["few"])
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    cut = browser.execute_script(
        """
        return [...document.querySelectorAll('.card table')].filter((one) =>
          one.getBoundingClientRect().right > one.closest('.card').getBoundingClientRect().right
        ).map((one) => one.textContent.slice(0, 80));
        """
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert paper == "rgb(255, 255, 255)"
    assert cut == []
