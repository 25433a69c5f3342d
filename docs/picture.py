"""The page of a run as a picture: python docs/picture.py runs/NAME docs/demo-page.png

Needs Chromium, or Chrome, on the path.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, HEIGHT = 1100, 1250  # of the window, in pixels of CSS


def take(page: Path, picture: Path) -> None:
    """Write what a window of WIDTH x HEIGHT shows of a page, from its top."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"None of {', '.join(BROWSERS)} is on the path.")
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--force-device-scale-factor=1.5",
            "--blink-settings=preferredColorScheme=1",  # light
            f"--user-data-dir={profile}",
            f"--window-size={WIDTH},{HEIGHT}",
            f"--screenshot={picture.resolve()}",
            page.resolve().as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    if not picture.is_file():
        sys.exit(f"{browser} made no picture:\n{done.stderr}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    take(Path(sys.argv[1]) / "report.html", Path(sys.argv[2]))
