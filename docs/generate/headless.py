"""A headless Chromium, for the pictures in the docs and for the tests of pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
MISSING = not (BROWSER and DRIVER)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1360,900",
)


@contextmanager
def open_browser(folder: Path, *flags: str) -> Iterator[Any]:
    """Give a browser whose profile lies in the folder, and which keeps its console.

    Args:
        folder: for this browser alone.
        flags: further ones; of two alike the last counts.
    """
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for flag in (*_FLAGS, f"--user-data-dir={folder}", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER or "")
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def show_as(driver: Any, *, theme: str = "", width: int = 0) -> None:
    """Ask for a colour scheme and a width in CSS pixels; without them, go back to the usual."""
    features = [{"name": "prefers-color-scheme", "value": theme}] if theme else []
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    if width:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    else:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
