"""embedserve config: the settings of the service, where each comes from, and keys for its users."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.console import note, out, out_json
from api.cli.shared_options import Json, help_of
from api.http.auth import KeyScope, new_key
from api.settings import CONFIG_VARIABLE, KEY_LINE, PREFIX, SECRETS, Settings, load_settings, unknown_variables
from embedserve.errors import InputError

LOOPBACK = ("127.0.0.1", "::1", "localhost")

config_app = typer.Typer(help="Show and check the settings of the service; make keys.", no_args_is_help=True)


def show(json: Json = False) -> None:
    """Show every setting, its value, and where that comes from; secrets are masked.

    Examples:
      embedserve config show
      EMBEDSERVE_CONFIG=service.toml embedserve config show --json
    """
    rows = settings_table(load_settings())
    if json:
        out_json({"settings": rows})
        return
    width = max(len(row["name"]) for row in rows)
    values = [value_text(row["value"]) for row in rows]
    shown = max(map(len, values))
    for row, value in zip(rows, values, strict=True):
        out(f"{row['name']:{width}}  {value:{shown}}  {row['from']}")


def check(json: Json = False) -> None:
    """Check the settings, and say what is risky or has no effect. Exit code 2 if a setting is wrong.

    Examples:
      embedserve config check
    """
    settings = load_settings()
    found = [*unknown_variables(), *warnings_of(settings)]
    if json:
        out_json({"ok": True, "warnings": found})
        return
    for sentence in found:
        note(f"warning: {sentence}")
    out(f"the configuration is valid{', with warnings' if found else ''}")


def key(
    name: Annotated[str, typer.Argument(help="What the log calls it: letters, digits, '.', '_' and '-'.")],
    scope: Annotated[
        str, typer.Option("--scope", "-s", help="read, write or admin, each more than the last.")
    ] = "read",
    json: Json = False,
) -> None:
    """Make a key: the key itself, shown only now, and the line for the setting api_keys.

    Examples:
      embedserve config key search-page
      embedserve config key importer --scope write
    """
    if scope not in ("read", "write", "admin"):
        raise InputError(f"--scope is {scope!r}; it is one of read, write, admin", field="scope")
    kind: KeyScope = scope  # type: ignore[assignment]
    made, line = new_key(name, kind)
    if not KEY_LINE.fullmatch(line):
        raise InputError(f"the name {name!r} must be 1 to 64 letters, digits, '.', '_' and '-'", field="name")
    if json:
        out_json({"key": made, "setting": line})
        return
    out(f"key      {made}")
    out(f"setting  {line}")
    note(f"give the key to its user; add the other line to {PREFIX}API_KEYS (commas between) or to api_keys in TOML")


def settings_table(settings: Settings) -> list[dict[str, Any]]:
    """Return name, value and origin of each setting, secrets masked."""
    file = os.environ.get(CONFIG_VARIABLE, "")
    in_file = tomllib.loads(Path(file).expanduser().read_text(encoding="utf-8")) if file else {}
    variables = {variable.upper(): value for variable, value in os.environ.items()}
    rows = []
    for name in Settings.model_fields:
        variable = f"{PREFIX}{name.upper()}"
        origin = f"file {file}" if name in in_file else "default"
        if variables.get(variable):
            origin = f"variable {variable}"
        value = getattr(settings, name)
        rows.append({"name": name, "value": masked(value) if name in SECRETS else plain(value), "from": origin})
    return rows


def masked(lines: tuple[str, ...]) -> list[str]:
    """Return the names and scopes of keys, without their digests."""
    return [f"{line.rpartition(':')[0]}:***" for line in lines]


def plain(value: Any) -> Any:
    """Return a setting's value as JSON has it."""
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value if isinstance(value, str | int | float | None) else str(value)


def value_text(value: Any) -> str:
    """Return a value as a table shows it."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def warnings_of(settings: Settings) -> list[str]:
    """Return a sentence for each thing that is allowed and probably not meant."""
    found = []
    if settings.host not in LOOPBACK and not settings.api_keys:
        found.append(f"host is {settings.host} and there are no api_keys: whoever reaches it may do everything")
    if "*" in settings.cors_origins and not settings.api_keys:
        found.append("cors_origins is * and there are no api_keys: every web page may use the service of its visitors")
    if settings.trusted_proxies == "*" and (settings.rate_limit_tokens or settings.rate_limit_requests):
        found.append("trusted_proxies is *: callers choose the address that they are limited by")
    if not settings.data_dir.is_dir():
        found.append(f"data_dir {settings.data_dir} is not there yet; the first collection makes it")
    elif not os.access(settings.data_dir, os.W_OK):
        found.append(f"data_dir {settings.data_dir} cannot be written: its collections can only be searched")
    if settings.api_keys and not any(":admin:" in line for line in settings.api_keys):
        found.append("no key has the scope admin: nobody may remove collections")
    return found


config_app.command("show", help=help_of(show))(show)
config_app.command("check", help=help_of(check))(check)
config_app.command("key", help=help_of(key))(key)
