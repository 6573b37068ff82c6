"""Settings: sources, precedence and errors."""

from pathlib import Path

import pytest

from api.settings import Settings, load_settings, unknown_variables
from embedserve import InputError


def test_defaults(monkeypatch):
    monkeypatch.delenv("EMBEDSERVE_DATA_DIR")
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    settings = load_settings()
    assert (settings.host, settings.port, settings.model, settings.collection) == (
        "127.0.0.1",
        8080,
        "nano",
        "python-docs",
    )
    assert settings.collections_dir == Path("/somewhere/embedserve/collections")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert load_settings().data_dir == Path.home() / ".local/share/embedserve"


def test_arguments_precede_environment_precedes_file(monkeypatch, tmp_path):
    file = tmp_path / "embedserve.toml"
    file.write_text('port = 1\nhost = "file"\nmodel = "file"\n')
    monkeypatch.setenv("EMBEDSERVE_CONFIG", str(file))
    monkeypatch.setenv("EMBEDSERVE_HOST", "environment")
    monkeypatch.setenv("EMBEDSERVE_MODEL", "environment")
    settings = load_settings(model="argument", port=None)
    assert (settings.port, settings.host, settings.model) == (1, "environment", "argument")


def test_a_tilde_is_the_home_folder():
    assert load_settings(data_dir="~/x").data_dir == Path.home() / "x"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (
            "DATA_DIR",
            "~no-such-user/x",
            "cannot be '~no-such-user/x': its ~ does not name the home folder of a user. Folder",
        ),
        ("PORT", "http", "EMBEDSERVE_PORT"),
        ("PORT", "70000", "70000"),
        ("LOG_LEVEL", "loud", "'debug'"),
        ("QUEUE_LIMIT", "0", "greater than or equal to 1"),
        ("MAX_TOP_K", "5000", "1000"),
    ],
)
def test_an_invalid_value_is_reported_with_its_variable(monkeypatch, name, value, says):
    monkeypatch.setenv(f"EMBEDSERVE_{name}", value)
    with pytest.raises(InputError) as refusal:
        load_settings()
    assert says in refusal.value.message
    assert refusal.value.field == name.lower()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"port = ", "not valid TOML"),
        (b"\xff", "not valid TOML"),
        (b"prot = 1", "did you mean 'port'"),
        (b"port = 'x'", "EMBEDSERVE_PORT"),
        (b"host = ''", "EMBEDSERVE_HOST"),
        (None, "does not exist"),
    ],
)
def test_an_invalid_file_is_reported(monkeypatch, tmp_path, content, says):
    file = tmp_path / "embedserve.toml"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("EMBEDSERVE_CONFIG", str(file))
    with pytest.raises(InputError) as refusal:
        load_settings()
    assert says in refusal.value.message


def test_a_file_in_an_unknown_home_folder_is_reported(monkeypatch):
    monkeypatch.setenv("EMBEDSERVE_CONFIG", "~no-such-user/x")
    with pytest.raises(InputError, match="names ~no-such-user/x, which does not exist"):
        load_settings()


def test_an_empty_variable_is_ignored(monkeypatch):
    for name in ("DATA_DIR", "HOST", "PORT", "CONFIG"):
        monkeypatch.setenv(f"EMBEDSERVE_{name}", "")
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    settings = load_settings()
    assert (settings.host, settings.port, settings.data_dir) == ("127.0.0.1", 8080, Path("/somewhere/embedserve"))


def test_an_invalid_argument_is_reported_with_its_option(monkeypatch):
    monkeypatch.setenv("EMBEDSERVE_PORT", "1")
    with pytest.raises(InputError, match=r"^--port cannot be 70000") as refusal:
        load_settings(port=70000)
    assert "EMBEDSERVE" not in refusal.value.message


def test_the_log_level_is_case_insensitive(monkeypatch):
    monkeypatch.setenv("EMBEDSERVE_LOG_LEVEL", "WARNING")
    assert load_settings().log_level == "warning"


def test_an_unknown_variable_is_reported_with_a_suggestion(monkeypatch):
    monkeypatch.setenv("EMBEDSERVE_PROT", "1")
    (sentence,) = unknown_variables()
    assert "did you mean 'EMBEDSERVE_PORT'?" in sentence


def test_an_unknown_variable_may_have_no_suggestion(monkeypatch):
    monkeypatch.setenv("EMBEDSERVE_0123456789_0123456789_0123456789", "1")
    (sentence,) = unknown_variables()
    assert sentence.endswith("is not a setting and has no effect")


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


@pytest.mark.parametrize("value", ["sk-secret-key", "name:owner:" + "0" * 64, f"a:read:{'0' * 64},a:admin:{'1' * 64}"])
def test_an_invalid_key_is_not_repeated(monkeypatch, value):
    monkeypatch.setenv("EMBEDSERVE_API_KEYS", value)
    with pytest.raises(InputError, match="EMBEDSERVE_API_KEYS") as refusal:
        load_settings()
    assert "secret" not in refusal.value.message
    assert "000" not in refusal.value.message


def test_variables_hold_comma_separated_lists(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBEDSERVE_CORS_ORIGINS", "https://a.example, https://b.example")
    assert load_settings().cors_origins == ("https://a.example", "https://b.example")
    file = tmp_path / "embedserve.toml"
    file.write_text(f'api_keys = ["a:read:{"0" * 64}"]')
    monkeypatch.setenv("EMBEDSERVE_CONFIG", str(file))
    assert load_settings().api_keys == (f"a:read:{'0' * 64}",)
