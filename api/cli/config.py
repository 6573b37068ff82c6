"""``embedserve config``: show and check the settings, and create API keys."""

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

config_app = typer.Typer(help="Show and check the settings of the service; create API keys.", no_args_is_help=True)


def show(json: Json = False) -> None:
    """Show every setting with its value and origin; secrets are masked.

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
    value_width = max(map(len, values))
    for row, value in zip(rows, values, strict=True):
        out(f"{row['name']:{width}}  {value:{value_width}}  {row['from']}")


def check(json: Json = False) -> None:
    """Check the settings, and warn of risky or ineffective ones. Exits with code 2 if a setting is invalid.

    Examples:
      embedserve config check
    """
    settings = load_settings()
    warnings = [*unknown_variables(), *warnings_of(settings)]
    if json:
        out_json({"ok": True, "warnings": warnings})
        return
    for warning in warnings:
        note(f"warning: {warning}")
    out(f"the configuration is valid{', with warnings' if warnings else ''}")


def key(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the key in the log: letters, digits, '.', '_', '-'.")
    ],
    scope: Annotated[
        str,
        typer.Option("--scope", "-s", metavar="SCOPE", help="read, write or admin; each includes the previous ones."),
    ] = "read",
    json: Json = False,
) -> None:
    """Create an API key: print the key, which is shown only once, and the line for the setting api_keys.

    Examples:
      embedserve config key search-page
      embedserve config key importer --scope write
    """
    if scope not in ("read", "write", "admin"):
        raise InputError(f"--scope must be read, write or admin, got {scope!r}", field="scope")
    kind: KeyScope = scope  # type: ignore[assignment]
    secret, line = new_key(name, kind)
    if not KEY_LINE.fullmatch(line):
        raise InputError(f"the name must be 1 to 64 letters, digits, '.', '_' or '-', got {name!r}", field="name")
    if json:
        out_json({"key": secret, "setting": line})
        return
    out(f"key      {secret}")
    out(f"setting  {line}")
    note(f"give the key to its user; add the setting line to {PREFIX}API_KEYS (comma-separated) or to api_keys in TOML")


def settings_table(settings: Settings) -> list[dict[str, Any]]:
    """Return name, value and origin of each setting, with masked secrets."""
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
    """Return a setting's value as a JSON value."""
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value if isinstance(value, str | int | float | None) else str(value)


def value_text(value: Any) -> str:
    """Return a value as text for the table."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def warnings_of(settings: Settings) -> list[str]:
    """Return a warning for each valid but risky or ineffective setting."""
    warnings = []
    if settings.host not in LOOPBACK and not settings.api_keys:
        warnings.append(f"host is {settings.host} and api_keys is empty: every client on the network has full access")
    if "*" in settings.cors_origins and not settings.api_keys:
        warnings.append(
            "cors_origins is * and api_keys is empty: every web page can use the service from its visitors' browsers"
        )
    if settings.trusted_proxies == "*" and (settings.rate_limit_tokens or settings.rate_limit_requests):
        warnings.append("trusted_proxies is *: clients can forge the address used for rate limits")
    if not settings.data_dir.is_dir():
        warnings.append(f"data_dir {settings.data_dir} does not exist yet; the first collection creates it")
    elif not os.access(settings.data_dir, os.W_OK):
        warnings.append(f"data_dir {settings.data_dir} is not writable: its collections are read-only")
    if settings.api_keys and not any(":admin:" in line for line in settings.api_keys):
        warnings.append("no key has the scope admin: collections cannot be deleted")
    return warnings


config_app.command("show", help=help_of(show))(show)
config_app.command("check", help=help_of(check))(check)
config_app.command("key", help=help_of(key))(key)
