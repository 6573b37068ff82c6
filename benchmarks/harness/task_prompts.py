r"""Prompts by task and by kind of task, from one TOML file.

``query`` and ``document`` apply to all tasks, ``Retrieval-query`` to the queries of a kind of task, ``STS`` to all
texts of a kind, ``SciFact-query`` and ``SciFact`` to one task. The most specific entry wins, as in mteb; without an
entry the encoder's own prompt is used. ``instruction`` is a template such as ``"Instruct: {instruction}\nQuery: "``,
filled with mteb's instruction for the task. It is the prompt of queries, and of all texts in tasks without queries,
that have no other entry.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedserve import InputError
from embedserve.errors import did_you_mean

TASKS = ("query", "document")


def load_prompts(path: Path, known: set[str]) -> dict[str, str]:
    """Read a file of prompts.

    Args:
        path: The TOML file.
        known: Names of tasks and kinds of tasks.

    Raises:
        InputError: The file is missing or not TOML, a prompt is not a string, or a name is unknown.
    """
    try:
        prompts = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", field="prompts") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}", field="prompts") from None
    for name, prompt in prompts.items():
        base, dash, side = name.rpartition("-")
        if name not in (*TASKS, "instruction", *known) and not (dash and side in TASKS and base in known):
            hint = did_you_mean(name, [*TASKS, "instruction", *known])
            message = f"{path}: {name!r} is not a task, a kind of task, query, document or instruction; {hint}"
            raise InputError(message.removesuffix("; "), field="prompts")
        if not isinstance(prompt, str):
            raise InputError(f"{path}: {name} must be a string, got {prompt!r}", field="prompts")
    if "instruction" in prompts and "{instruction}" not in prompts["instruction"]:
        raise InputError(f"{path}: instruction must contain {{instruction}}", field="prompts")
    return prompts


def prompts_for(prompts: Mapping[str, str], metadata: Any, own: Mapping[str, str]) -> dict[str, str]:
    """Return the prompts for queries and documents of one task.

    Args:
        prompts: Result of `load_prompts`.
        metadata: The task's metadata in mteb.
        own: The encoder's own prompts.
    """
    kind, name = str(metadata.type), str(metadata.name)
    has_queries = kind in ("Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking")
    chosen = {}
    for side in TASKS:
        entries = [name, kind]
        if has_queries or side == "document":
            entries = [f"{name}-{side}", name, f"{kind}-{side}", kind, side]
        prompt = next((prompts[entry] for entry in entries if entry in prompts), None)
        if prompt is None and "instruction" in prompts and (side == "query" or not has_queries):
            instruction = _instruction(metadata, side)
            prompt = prompts["instruction"].replace("{instruction}", instruction) if instruction else None
        prompt = own.get(side, "") if prompt is None else prompt
        if prompt:
            chosen[side] = prompt
    return chosen


def _instruction(metadata: Any, side: str) -> str:
    """Return the instruction that mteb has for a task, or ""."""
    prompt = metadata.prompt
    if isinstance(prompt, Mapping):
        prompt = prompt.get(side)
    return str(prompt) if prompt else ""
