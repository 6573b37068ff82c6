"""The settings of the service, read from the environment and from one TOML file."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from embedserve.errors import InputError, did_you_mean
from indexing.query.search_options import MAX_K

PREFIX = "EMBEDSERVE_"
CONFIG_VARIABLE = "EMBEDSERVE_CONFIG"
# Variables that other modules read: benchmarks, tests, and the cache of backbone spectra.
OTHER_VARIABLES = ("EMBEDSERVE_EVAL_DIR", "EMBEDSERVE_CACHE_DIR")

SECRETS = ("api_keys",)  # values that messages do not repeat
KEY_LINE = re.compile(r"[A-Za-z0-9._-]{1,64}:(read|write|admin):[0-9a-f]{64}")


def default_data_dir() -> Path:
    """Return the default data folder: ``$XDG_DATA_HOME/embedserve``, or ``~/.local/share/embedserve``."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base else Path("~/.local/share").expanduser()) / "embedserve"


class Settings(BaseSettings):
    """The settings of a service; each is ``EMBEDSERVE_<NAME>`` in the environment and ``<name>`` in TOML.

    Precedence: arguments, the environment, the TOML file that ``EMBEDSERVE_CONFIG`` names, defaults. An empty variable
    is ignored.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    host: Annotated[str, Field(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 picks a free one.")] = 8080
    data_dir: Annotated[Path, Field(description="Folder of the collections.")] = Field(default_factory=default_data_dir)
    model: Annotated[str, Field(min_length=1, description="nano, a saved encoder, or a decoder's folder or id.")] = (
        "nano"
    )
    strategy: Annotated[
        str | None, Field(min_length=1, description="Encoding strategy. Default: that of the model.")
    ] = None
    models: Annotated[
        dict[str, str], NoDecode, Field(description="Further models by name, each as on the command line; JSON.")
    ] = Field(default_factory=dict)
    model_aliases: Annotated[
        dict[str, str], NoDecode, Field(description="Further names of models, each with its model; JSON.")
    ] = Field(default_factory=dict)
    model_keep_alive_s: Annotated[
        float, Field(ge=0, description="Idle seconds after which a further model is unloaded; 0: never.")
    ] = 0.0
    device: Annotated[str, Field(min_length=1, description="auto, cpu, cuda or cuda:1.")] = "auto"
    collection: Annotated[str, Field(min_length=1, description="Collection of searches that name none.")] = (
        "python-docs"
    )
    max_inputs: Annotated[int, Field(ge=1, description="Maximum texts or queries of one request.")] = 4096
    max_text_chars: Annotated[int, Field(ge=1, description="Maximum characters of one text or query.")] = 100_000
    max_body_bytes: Annotated[int, Field(ge=1024, description="Maximum bytes of one request body.")] = 64 * 1024 * 1024
    max_top_k: Annotated[int, Field(ge=1, le=MAX_K, description=f"Maximum hits for one query, at most {MAX_K}.")] = (
        MAX_K
    )
    write_idle_s: Annotated[
        float,
        Field(gt=0, description="Seconds without a write after which the write lock of a collection is released."),
    ] = 30.0
    jobs_dir: Annotated[
        Path | None,
        Field(description="Folder whose files jobs may read. Default: jobs read uploaded files only."),
    ] = None
    max_jobs: Annotated[int, Field(ge=1, description="Maximum number of concurrent jobs; further jobs are queued.")] = 1
    max_hits: Annotated[int, Field(ge=1, description="Maximum hits in one response: queries times top_k.")] = 10_000
    queue_limit: Annotated[
        int, Field(ge=1, description="Maximum queued tokens of a model; further requests get an error 429.")
    ] = 250_000
    drain_timeout_s: Annotated[
        int, Field(ge=1, description="Seconds that accepted requests have to finish at shutdown.")
    ] = 30
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Minimum level of the log.")
    ] = "info"
    log_format: Annotated[
        Literal["console", "json"], Field(description="Log lines for people (console) or for programs (json).")
    ] = "console"
    api_keys: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="name:scope:sha256 of each key, as `embedserve config key` prints it."),
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...], NoDecode, Field(description="Origins of pages that may call the service; * for all.")
    ] = ()
    rate_limit_tokens: Annotated[int, Field(ge=0, description="Tokens per minute of one key; 0 for no limit.")] = 0
    rate_limit_requests: Annotated[int, Field(ge=0, description="Requests per minute of one key; 0 for no limit.")] = 0
    trusted_proxies: Annotated[
        str, Field(description="Comma-separated addresses whose X-Forwarded-For is trusted; * for all.")
    ] = "127.0.0.1"
    otel_endpoint: Annotated[
        str | None, Field(min_length=1, description="Endpoint of an OTLP collector over HTTP. Default: no traces.")
    ] = None

    @field_validator("models", "model_aliases", mode="before")
    @classmethod
    def _decode(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"not a JSON object: {error}") from None

    @field_validator("api_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, line in enumerate(value, start=1):
            if not KEY_LINE.fullmatch(line):  # the entry may be a secret key: the message does not repeat it
                raise ValueError(f"entry {number} is not name:scope:sha256 with a scope of read, write or admin")
        names = [line.split(":")[0] for line in value]
        if len(set(names)) < len(names):
            raise ValueError("two keys have the same name")
        return value

    @field_validator("data_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        try:
            return value.expanduser()
        except RuntimeError:
            raise ValueError("its ~ does not name the home folder of a user") from None

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @property
    def collections_dir(self) -> Path:
        """The parent folder of the collections."""
        return self.data_dir / "collections"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then the environment, then the TOML file."""
        path = os.environ.get(CONFIG_VARIABLE)
        if not path:
            return init_settings, env_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=_checked_toml(path))


def load_settings(**overrides: Any) -> Settings:
    """Return the settings.

    Args:
        overrides: Values that precede environment and file; None is ignored.

    Raises:
        InputError: A value is invalid; the message names the variable and its allowed values.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        option = f"--{name.replace('_', '-')}" if overrides.get(name) is not None else ""
        raise InputError(_explain(name, option, first), field=name) from None


def unknown_variables() -> list[str]:
    """Return a warning for each ``EMBEDSERVE_`` variable of the environment that is not a setting."""
    known = [PREFIX + name.upper() for name in Settings.model_fields] + [CONFIG_VARIABLE, *OTHER_VARIABLES]
    sentences = []
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            hint = did_you_mean(name.upper(), known)
            sentences.append(f"{name} is not a setting and has no effect; {hint}".rstrip("; "))
    return sentences


def _explain(name: str, option: str, problem: Any) -> str:
    """Return the message of an invalid setting; ``option`` is the command-line option it came from, if any."""
    fields, reason = Settings.model_fields, problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        hint = did_you_mean(name, fields)
        return f"unknown setting {name!r}; {hint}the settings are {', '.join(fields)}"
    about = fields[name].description if name in fields else ""
    where = option or f"setting {name!r} ({PREFIX}{name.upper()} or the configuration file)"
    verdict = "is invalid" if name in SECRETS else f"cannot be {problem['input']!r}"
    return f"{where} {verdict}: {reason[0].lower()}{reason[1:]}. {about}".rstrip()


def _checked_toml(path: str) -> Path:
    try:
        file = Path(path).expanduser()
        with file.open("rb") as stream:
            tomllib.load(stream)
    except (FileNotFoundError, RuntimeError):  # RuntimeError: the ~ of the path has no home folder
        raise InputError(f"{CONFIG_VARIABLE} names {path}, which does not exist", field=CONFIG_VARIABLE) from None
    except OSError as error:
        raise InputError(f"{CONFIG_VARIABLE} names {path}: {error.strerror}", field=CONFIG_VARIABLE) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}", field=CONFIG_VARIABLE) from None
    return file
