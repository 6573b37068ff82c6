"""The page in a browser: what each view shows of a real server, with nothing loaded from elsewhere."""

import re
import shutil
import subprocess
from urllib.parse import urlencode

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on the PATH")


@pytest.fixture
def view(address, tmp_path):
    """The page's document after its scripts have run."""

    def show(name, **values):
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}",
            "--window-size=1000,900",
        ]
        found = subprocess.run(
            [BROWSER, *options, "--virtual-time-budget=8000", "--dump-dom", f"{address}/?{urlencode(values)}#{name}"],
            capture_output=True, text=True, timeout=90, check=True,
        )  # fmt: skip
        assert "Refused to" not in found.stderr  # what the policy of the page forbids
        assert "Uncaught" not in found.stderr
        part = re.search(rf'<section id="view-{name}".*?</section>', found.stdout, re.DOTALL)[0]
        assert 'class="status bad"' not in part
        return part

    return show


def test_a_search_marks_words_tells_times_and_says_why(view):
    part = view("search", q="copy mode bits", c="python-docs", m="hybrid", why="1")
    assert part.count("<li>") == 10
    assert "<mark>mode</mark>" in part and "ms embedding" in part
    assert re.search(r"bm25 #\d+ \d", part) and re.search(r"dense #\d+ ", part)


def test_a_document_is_text_and_never_markup(view):
    part = view("search", q="script alert more", c="python-docs", m="bm25")
    assert "&lt;<mark>script</mark>&gt;" in part and "<script>alert" not in part


def test_ways_of_searching_stand_side_by_side(view):
    part = view("compare", q="join arrays", ways="python-docs · dense|python-docs · bm25|python-docs · hybrid")
    assert part.count('<div class="column">') == 3
    assert "overlap@10" in part and 'class="shared"' in part


def test_texts_are_compared_and_mapped(view):
    part = view("texts", texts="a cat sleeps\nanother cat sleeps\nstocks fell\nthe market fell")
    assert part.count("<td") == 4 * (1 + 4) and part.count("1.00") >= 4
    assert part.count("<circle") == 4


def test_collections_models_and_rates_are_shown(view):
    part = view("collections")
    assert "python-docs" in part and "dense, bm25" in part
    part = view("status")
    assert "tokens in the queue" in part and "<polyline" in part and ">ready<" in part
