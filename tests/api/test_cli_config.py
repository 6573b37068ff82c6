"""embedserve config: show, check, key."""

import pytest

from api.http.auth import digest_of


def test_each_setting_tells_where_it_comes_from(shell, monkeypatch, tmp_path):
    file = tmp_path / "service.toml"
    file.write_text(f'host = "0.0.0.0"\nport = 1\napi_keys = ["page:read:{"ab" * 32}"]\n')
    monkeypatch.setenv("EMBEDSERVE_CONFIG", str(file))
    monkeypatch.setenv("embedserve_port", "2")
    rows = {row["name"]: row for row in shell("config", "show", "--json").json["settings"]}
    assert rows["host"] == {"name": "host", "value": "0.0.0.0", "from": f"file {file}"}
    assert rows["port"] == {"name": "port", "value": 2, "from": "variable EMBEDSERVE_PORT"}
    assert rows["model"]["from"] == "default"
    assert rows["api_keys"]["value"] == ["page:read:***"]
    text = shell("config", "show").out
    assert "abab" not in text
    assert "variable EMBEDSERVE_PORT" in text


def test_what_is_wrong_and_what_is_risky_is_said(shell, monkeypatch):
    assert "valid" in shell("config", "check").out
    monkeypatch.setenv("EMBEDSERVE_HOST", "0.0.0.0")
    monkeypatch.setenv("EMBEDSERVE_PROT", "1")
    result = shell("config", "check", "--json")
    assert result.code == 0
    assert any("api_keys is empty" in sentence for sentence in result.json["warnings"])
    assert any("EMBEDSERVE_PROT" in sentence for sentence in result.json["warnings"])
    monkeypatch.setenv("EMBEDSERVE_PORT", "http")
    result = shell("config", "check")
    assert (result.code, "EMBEDSERVE_PORT" in result.err) == (2, True)


def test_a_key_is_made_with_the_line_for_the_settings(shell):
    made = shell("config", "key", "page", "--scope", "write", "--json").json
    assert made["setting"] == f"page:write:{digest_of(made['key'])}"
    assert made["key"] not in made["setting"]


@pytest.mark.parametrize(("name", "scope"), [("a b", "read"), ("page", "owner"), ("", "read")])
def test_what_the_settings_would_refuse_is_refused(shell, name, scope):
    result = shell("config", "key", name, "--scope", scope)
    assert result.code == 2
    assert result.out == ""
