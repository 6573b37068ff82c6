"""GET / and /docs: complete, self-contained, and safe."""

import re

import pytest


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_loads_nothing_from_elsewhere(client, path):
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    text = response.text
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?(?:https?:)?//""", text)
    assert not re.search(r"@import|url\(", text)
    assert not [url for url in re.findall(r"https?://[^\s'\"]+", text) if "www.w3.org/2000/svg" not in url]
    assert "innerHTML" not in text
    assert "insertAdjacentHTML" not in text


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_runs_only_its_own_script(client, path):
    policy = client.get(path).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", policy)
    assert "unsafe" not in policy


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_supports_small_and_dark_screens(client, path):
    text = client.get(path).text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert '<html lang="en">' in text


def test_the_pages_of_fastapi_are_off(client):
    assert client.get("/redoc").status_code == 404
    assert "cdn" not in client.get("/docs").text
