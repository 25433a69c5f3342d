"""The page in a real browser, where one is at hand: nothing scrolls sideways, and nothing is complained of."""

from __future__ import annotations

import html
import re
import shutil
import subprocess

import pytest
from making_runs import make_run

from dpo_recipes.run_page.contents import contents
from dpo_recipes.run_page.page import page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no Chromium here"), pytest.mark.slow]

# A page in a frame of some width, as it is and with all that can be opened open: how wide it needs to be.
FRAME = """<!doctype html><body><iframe width="{width}" height="900" frameborder="0" srcdoc="{page}"></iframe><script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {{
  const inside = frame.contentDocument;
  const needed = () => inside.documentElement.scrollWidth;
  document.body.dataset.folded = needed();
  inside.querySelectorAll("details").forEach((details) => {{ details.open = true; }});
  document.body.dataset.unfolded = needed();
  document.body.dataset.paper = getComputedStyle(inside.body).backgroundColor;
}});
</script></body>"""


def opened(file, folder, *options: str) -> tuple[str, str]:
    """(the document as the browser has it, what it complains of)."""
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command += ["--enable-logging=stderr", "--window-size=1400,900", *options, "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_is_no_wider_than_its_window_in_light_and_dark(tmp_path, width):
    long = make_run(tmp_path / ("a-very-long-name-" * 6), model="/a/path/without/any/space/" * 8)
    short = [make_run(tmp_path / f"run-{number}", beta=number / 10, seed=number) for number in range(1, 10)]
    papers = {}
    for name, folders, scheme in (("one", [long], "dark"), ("several", [long, *short], "light")):
        text = page([contents(folder) for folder in folders])
        file = tmp_path / f"{name}.html"
        file.write_text(FRAME.format(width=width, page=html.escape(text)))
        preferred = {"dark": 0, "light": 1}[scheme]
        document, complaints = opened(file, tmp_path, f"--blink-settings=preferredColorScheme={preferred}")
        assert complaints == ""
        folded, unfolded = (int(re.search(rf'data-{state}="(\d+)"', document)[1]) for state in ("folded", "unfolded"))
        assert folded == unfolded == width
        papers[scheme] = re.search(r'data-paper="([^"]+)"', document)[1]
    assert papers == {"dark": "rgb(15, 19, 24)", "light": "rgb(255, 255, 255)"}


def test_the_page_as_a_file_is_complained_of_by_no_browser(tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page([contents(make_run(tmp_path / "run"))]))
    document, complaints = opened(file, tmp_path)
    assert complaints == "" and "Held out: 100 pairs" in document
