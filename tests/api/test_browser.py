"""The page in a browser: what each view shows of a real server, with nothing loaded from elsewhere."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
from contextlib import ExitStack
from urllib.parse import urlencode

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.http.auth import new_key
from api.settings import Settings
from tests.api.conftest import served, wait_until

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


class Tab:
    """A tab of a browser that stays open, driven through the browser's pipe of JSON messages."""

    def __init__(self, folder):
        (theirs, self._commands), (self._answers, theirs_too) = os.pipe(), os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--window-size=1000,700"]
        script = f'exec "$@" 3<&{theirs} 4>&{theirs_too}'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", BROWSER, *options, "--remote-debugging-pipe", "about:blank"],
            pass_fds=(theirs, theirs_too), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        os.close(theirs_too)
        self._number, self._buffer, self.session = 0, b"", None
        pages = [one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self.session = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]

    def call(self, method, **values):
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self):
        while b"\0" not in self._buffer:
            assert select.select([self._answers], [], [], 60)[0], "the browser says nothing"
            part = os.read(self._answers, 65536)
            assert part, "the browser has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def run(self, script):
        """Return the value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def text(self, name):
        return self.run(f"document.getElementById({name!r})?.innerText ?? ''")

    def shows(self, name, *parts):
        """Say whether an element of the page holds all of ``parts`` before long."""
        return wait_until(lambda: all(part in self.text(name) for part in parts), 120)

    def close(self):
        self.process.kill()
        self.process.wait(30)
        os.close(self._commands)
        os.close(self._answers)


@pytest.fixture
def tab(tmp_path):
    opened = Tab(tmp_path / "profile")
    yield opened
    opened.close()


def test_a_search_marks_words_and_shows_timings_and_explanations(view):
    part = view("search", q="copy mode bits", c="python-docs", m="hybrid", why="1")
    assert part.count("<li>") == 10
    assert "<mark>mode</mark>" in part
    assert re.search(r"embed \d+\.\d, retrieve \d+\.\d, fuse \d+\.\d, fetch \d+\.\d", part)
    assert re.search(r"bm25 #\d+ \d", part) and re.search(r"dense #\d+ ", part)


def test_a_document_is_text_and_never_markup(view):
    part = view("search", q="script alert more", c="python-docs", m="bm25")
    assert "&lt;<mark>script</mark>&gt;" in part and "<script>alert" not in part


def test_ways_of_searching_are_shown_side_by_side(view):
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


def test_a_job_is_followed_live_with_a_key_and_again_after_a_lost_connection(tab, tiny_llama, encoder, tmp_path):
    key, line = new_key("page", "admin")
    (tmp_path / "many.jsonl").write_text("".join(f'{{"id": "d{n}", "text": "{n} night rain"}}\n' for n in range(3000)))
    settings = Settings(
        model=str(tiny_llama), data_dir=tmp_path / "data", device="cpu", jobs_dir=tmp_path, api_keys=(line,)
    )
    headers = {"Authorization": f"Bearer {key}"}
    app = create_app(settings, encoder)
    with TestClient(app, headers=headers) as client, ExitStack() as on_end:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        with served(app) as port:
            tab.call("Page.navigate", url=f"http://127.0.0.1:{port}/#collections")
            assert wait_until(lambda: tab.run("document.readyState === 'complete' && typeof begin === 'function'"))
            tab.run("window.never_reloaded = true")
            tab.run(f"at('key').value = {key!r}; at('key-form').requestSubmit()")
            assert tab.shows("collections-list", "No collections yet")
            sent = client.post("/v1/jobs", json={"collection": "many", "source": "many.jsonl", "shard_size": 25})
            assert sent.status_code == 202, sent.text
            path = f"/v1/jobs/{sent.json()['id']}"
            assert wait_until(lambda: (client.get(path).json()["progress"] or {}).get("done", 0) > 50, 400)
            group = app.state.service.jobs._processes[sent.json()["id"]].pid
            os.killpg(group, signal.SIGSTOP)  # it stays where it is until the page has shown that
            on_end.callback(os.killpg, group, signal.SIGCONT)
            assert tab.shows("jobs", "running", " of 3,000")
        assert tab.shows("collections-status", "connection to the server was lost")
        with served(app, port):
            assert wait_until(lambda: tab.text("collections-status") == "")
            on_end.close()
            assert tab.shows("jobs", "succeeded", "3,000 of 3,000")
            assert tab.shows("collections-list", "many", "3,000")
            assert tab.run("window.never_reloaded") is True
            followed = "performance.getEntriesByType('resource').some((one) => one.name.endsWith('/events'))"
            assert wait_until(lambda: tab.run(followed))
