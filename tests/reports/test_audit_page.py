"""The page of an audit: whole, escaped, alone, and rendered by a real browser."""

import html.parser
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

import ntk_privacy
from ntk_privacy import reports
from ntk_privacy.auditing import controls, membership
from ntk_privacy.auditing.auditor import Audit
from ntk_privacy.auditing.given_images import GivenImages
from ntk_privacy.auditing.statement import Statement
from ntk_privacy.evaluation import reconstruction_curve
from ntk_privacy.reconstruction import Reconstruction
from ntk_privacy.reconstruction.verdict import Verdict
from ntk_privacy.reports import audit_page, files

X = np.random.default_rng(0).random((4, 8, 8, 1))
HOSTILE = "<script>alert('it')</script>|`x`\n# no"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def _audit():
    found = np.concatenate([X[:3] + 1e-3, X[:1] * 0])
    made = Reconstruction(
        images=found,
        duals=np.zeros((1, 4, 1)),
        losses=np.zeros(0),
        verdict=Verdict("exact", HOSTILE),
        sources=("closed units",) * 4,
        certified=np.asarray([True, True, False, False]),
        residuals=np.zeros(4),
        errors=np.asarray([1e-3, 2e-3, np.inf, np.inf]),
        estimated_num_images=4,
    )
    given = GivenImages(X, None, HOSTILE)
    pairs = reconstruction_curve.evaluate(X[:3], found, mean=np.zeros(1))
    return Audit(
        verdict=Statement(
            sentence="2 of 3 training images can be computed from these weights.",
            word="certain",
            rests_on=(HOSTILE,),
            not_tried=("a `search` of one",),
        ),
        num_recovered=pairs.num_recovered,
        num_certified=2,
        estimated_num_images=4,
        reconstruction=made,
        images=found,
        private=given._replace(images=X[:3]),
        pairs=pairs,
        controls=controls.Controls(
            wrong_weights=0,
            wrong_weights_told=HOSTILE,
            identified=controls.among_decoys(given._replace(images=X[:3]), found),
        ),
        membership=membership.measured(np.ones(3), np.linspace(0, 1, 20)),
        notes=(HOSTILE,),
        settings={"image_shape": (8, 8, 1), "private": HOSTILE},
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    told = {"command": f"python {HOSTILE}", "versions": {"jax": HOSTILE}}
    audit_page.write(_audit(), folder, **told)
    return folder


class _Read(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def test_the_page_is_alone_and_can_be_read_by_all(page):
    read = _Read((page / "report.html").read_text())
    assert read.all("html") == [{"lang": "en"}]
    assert len(read.all("h1")) == len(read.all("main")) == 1
    images = read.all("img")
    assert len(images) == 3 + 4 + 2
    assert all(one["src"].startswith("data:image/png") for one in images)
    assert all(one["alt"] for one in images)
    assert all(one["scope"] in ("col", "row") for one in read.all("th"))
    for tag, attrs in read.tags:
        assert not any("://" in (value or "") for value in attrs.values()), tag
    assert any("viewport" in one.get("name", "") for one in read.all("meta"))


def test_what_users_name_is_text_and_nothing_else(page):
    read = _Read((page / "report.html").read_text())
    assert len(read.all("script")) == 1
    assert sum("alert('it')" in text for text in read.texts) >= 5
    text = (page / "report.md").read_text()
    code = [line for line in text.splitlines() if line.startswith("    ")]
    assert code == ["    python <script>alert('it')</script>|`x` # no"]  # as it was
    assert text.count("<script") == 1
    assert not re.search(r"^# no", text, re.M)
    assert "&lt;script>alert('it')&lt;/script>\\|`x` # no" in text


def test_code_between_backticks_is_code(page):
    assert "<li>a <code>search</code> of one</li>" in (page / "report.html").read_text()


def test_the_surest_come_first(page):
    told = re.findall(r"<figcaption><strong>(.*?)</strong>.*?(certain|an estimate)",
                      (page / "report.html").read_text())  # fmt: skip
    words = [word for _, word in told]
    assert words == ["certain", "certain", "an estimate", "an estimate"]


def test_figures_hold_what_is_asked_for(tmp_path):
    files.write_json(tmp_path / "results.json", audit_page.figures(_audit()))
    told = files.read_json(tmp_path / "results.json")
    assert told["verdict"].startswith("2 of 3 training images")
    assert told["verdict_word"] == "certain"
    assert (told["num_recovered"], told["num_certified"]) == (3, 2)
    assert told["estimated_num_images"] == 4
    assert told["reconstruction"]["errors"][2] == "inf"


def test_a_distilled_set_has_the_same_page():
    found = ntk_privacy.audit(distilled=X[:2], images=X)
    read = _Read(audit_page.html(found))
    assert len(read.all("img")) == 4
    assert any("2 of 2 distilled images are copies" in text for text in read.texts)
    assert "2 of 2" in audit_page.markdown(found)


@pytest.mark.parametrize("private", [True, False])
def test_a_gallery_needs_no_path(private):
    found = _audit()
    shown = reports.show(found if private else found.reconstruction)
    assert shown._repr_png_().startswith(b"\x89PNG")
    assert len(shown.axes) == (6 if private else 4)
    beside = reports.show(found.reconstruction, X[:3], most=2)
    assert len(beside.axes) == 4


def _browser(page, *flags):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (Debian's package chromium) to render with")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *flags]
    command += [f"--user-data-dir={page / 'profile'}", "--enable-logging=stderr"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_browser_renders_it_without_a_word(page):
    done = _browser(page, "--dump-dom", f"file://{page / 'report.html'}")
    assert done.returncode == 0
    assert "CONSOLE" not in done.stderr
    read = _Read(done.stdout)
    assert any("2 of 3 training images" in text for text in read.texts)
    # The script has run: headers sort, and pictures enlarge.
    sorting = [one for one in read.all("button") if one.get("class") != "enlarge"]
    assert len(sorting) >= 3
    assert len(read.all("dialog")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_no_width_makes_it_scroll_sideways(page, width):
    frame = pathlib.Path(page, f"frame{width}.html")
    measure = (
        "<script>onload=()=>{const d=document.querySelector('iframe').contentDocument"
        ".documentElement;document.title=d.scrollWidth+' of '+d.clientWidth}</script>"
    )
    source = (
        f"<iframe src=report.html style='border:0;width:{width}px;height:900px'>"
        f"</iframe>{measure}"
    )
    frame.write_text(source)
    done = _browser(
        page,
        "--allow-file-access-from-files",
        "--window-size=1400,1000",
        "--dump-dom",
        f"file://{frame}",
    )
    scroll, client = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout).groups()
    assert int(scroll) <= int(client)
