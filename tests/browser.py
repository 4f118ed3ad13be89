"""What the tests of pages measure in a browser."""

from __future__ import annotations

from typing import Any


def contrast(driver: Any, css: str) -> float:
    """Return the contrast ratio of an element's text (WCAG 2.2, 1.4.3)."""
    from selenium.webdriver.support.ui import WebDriverWait

    script = """
    const paint = (text) => text.match(/[\\d.]+/g).map(Number);
    let place = document.querySelector(arguments[0]);
    const style = getComputedStyle(place);
    const ink = paint(place instanceof SVGElement ? style.fill : style.color);
    for (; place; place = place.parentElement) {
      const back = paint(getComputedStyle(place).backgroundColor);
      if (back.length < 4 || back[3] > 0) return [ink, back];
    }
    """
    # Until the style sheet is there nothing has a ground to stand out from.
    colours = WebDriverWait(driver, 10).until(lambda page: page.execute_script(script, css))
    light = sorted(_luminance(colour[:3]) for colour in colours)
    return (light[1] + 0.05) / (light[0] + 0.05)


def _luminance(colour: list[float]) -> float:
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
