"""The built site in a browser: no page is wider than its window, and all have words.

`make docs` builds it; pictures are left in `docs/_build/look`, to be looked at.
"""

import pathlib
import re
import shutil
import subprocess

import pytest

BUILT = pathlib.Path(__file__).parents[1] / "docs" / "_build" / "html"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PAGES = ("index", "api/reconstruction.closed_units", "results_first_layer")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BUILT / "index.html").is_file(), reason="`make docs` builds the site"
    ),
    pytest.mark.skipif(
        CHROMIUM is None, reason="there is no Chromium (Debian's package chromium)"
    ),
]


def _browser(*flags):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *flags]
    command += [f"--user-data-dir={BUILT.parent / 'profile'}", "--hide-scrollbars"]
    command += ["--allow-file-access-from-files"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True
    )


# A window of a browser is 500 pixels wide at least; a frame is what it is told.
FRAME = """<body style="margin:0"><iframe src="{url}" width="{width}" height="{height}"
style="border:0"></iframe><script>onload=()=>{{
const d=document.querySelector("iframe").contentDocument.documentElement
document.title=d.scrollWidth+" of "+d.clientWidth+", "+d.innerText.length
}}</script>"""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_its_window(page, width, tmp_path):
    url = (BUILT / f"{page}.html").as_uri()
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(url=url, width=width, height=1600))
    dom = _browser("--dump-dom", frame.as_uri()).stdout
    ((wide, window, words),) = re.findall(r"<title>(\d+) of (\d+), (\d+)<", dom)
    assert int(window) == width
    assert int(wide) <= int(window)
    assert int(words) > 500
    picture = BUILT.parent / "look" / f"{page.replace('/', '.')}_{width}.png"
    picture.parent.mkdir(exist_ok=True)
    picture.unlink(missing_ok=True)
    size = f"--window-size={max(width, 500)},1600"
    _browser(size, f"--screenshot={picture}", frame.as_uri())
    assert picture.stat().st_size > 10_000
