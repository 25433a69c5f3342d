"""The page in a real browser, where one is at hand: nothing scrolls sideways, and nothing is complained of."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from making_runs import make_run

from dpo_recipes.run_page.contents import contents
from dpo_recipes.run_page.page import POLICY, page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no Chromium here"), pytest.mark.slow]

# Asks the document how wide it is. The page itself lets no script run, so that the copy is opened without its policy.
MEASURE = (
    "<script>addEventListener('load', () => { document.body.dataset.widths = "
    "document.documentElement.scrollWidth + ' ' + innerWidth + ' ' + getComputedStyle(document.body).backgroundColor;"
    "document.querySelectorAll('details').forEach(d => d.open = true);"
    "document.body.dataset.opened = document.documentElement.scrollWidth; })</script></body>"
)


def opened(file, width: int, folder, *options: str) -> tuple[str, str]:
    """(the document as the browser has it, what it complains of)."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--enable-logging=stderr", f"--window-size={width},900", *options, "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_is_no_wider_than_its_window_in_light_and_dark(tmp_path, width):
    long = make_run(tmp_path / ("a-very-long-name-" * 6), model="/a/path/without/any/space/" * 8)
    short = [make_run(tmp_path / f"run-{number}", beta=number / 10, seed=number) for number in range(1, 5)]
    backgrounds = set()
    for name, folders in (("one", [long]), ("several", [long, *short])):
        for scheme in ("0", "1"):  # dark, light
            text = page([contents(folder) for folder in folders])
            file = tmp_path / f"{name}-{scheme}.html"
            file.write_text(text.replace(POLICY.replace("'", "&#x27;"), "").replace("</body>", MEASURE))
            document, complaints = opened(file, width, tmp_path, f"--blink-settings=preferredColorScheme={scheme}")
            assert complaints == ""
            needed, there, background = re.search(r'data-widths="(\d+) (\d+) ([^"]+)"', document).groups()
            unfolded = re.search(r'data-opened="(\d+)"', document)[1]
            assert int(needed) <= int(there) and int(unfolded) <= int(there)
            backgrounds.add((scheme, background))
    assert len(backgrounds) == 2  # a colour for each scheme


def test_the_page_as_it_is_is_complained_of_by_no_browser(tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page([contents(make_run(tmp_path / "run"))]))
    document, complaints = opened(file, 1280, tmp_path)
    assert complaints == "" and "Held out: 100 pairs" in document
