"""The picture of the report: its head, as a browser shows it.

`make pictures` runs it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from headless import open_browser, show_as


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--page", type=Path, default=Path("out/demo/report.html"))
    parser.add_argument("--out", type=Path, default=Path("docs/report.png"))
    options = parser.parse_args()
    flags = ("--hide-scrollbars", "--window-size=1228,1340")
    with tempfile.TemporaryDirectory() as folder, open_browser(Path(folder), *flags) as browser:
        show_as(browser, theme="light")
        browser.get(options.page.resolve().as_uri())
        browser.save_screenshot(str(options.out))


if __name__ == "__main__":
    main()
