r"""Prompts by task and by kind of task, from one TOML file.

``query`` and ``document`` hold for all tasks; ``Retrieval-query`` for queries of a kind of task, ``STS`` for all texts
of one; ``SciFact-query`` and ``SciFact`` for one task. The most specific that there is counts, as in mteb. What none
names keeps the encoder's own prompt. ``instruction`` is a template such as ``"Instruct: {instruction}\nQuery: "``: it
is filled with the instruction that mteb gives for a task, and stands before queries, and before the texts of tasks that
know no queries, where no other entry does.
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
        InputError: No such file, no TOML, a prompt that is no string, or a name that belongs to nothing.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", field="prompts") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}", field="prompts") from None
    for name, prompt in found.items():
        base, dash, side = name.rpartition("-")
        if name not in (*TASKS, "instruction", *known) and not (dash and side in TASKS and base in known):
            hint = did_you_mean(name, [*TASKS, "instruction", *known])
            message = f"{path}: {name!r} is no task, no kind of task, and not query, document or instruction; {hint}"
            raise InputError(message.removesuffix("; "), field="prompts")
        if not isinstance(prompt, str):
            raise InputError(f"{path}: {name} must be a string, got {prompt!r}", field="prompts")
    if "instruction" in found and "{instruction}" not in found["instruction"]:
        raise InputError(f"{path}: instruction must hold {{instruction}}", field="prompts")
    return found


def prompts_for(prompts: Mapping[str, str], metadata: Any, own: Mapping[str, str]) -> dict[str, str]:
    """Return the prompts for queries and documents of one task.

    Args:
        prompts: What `load_prompts` read.
        metadata: mteb's, of the task.
        own: The encoder's own.
    """
    kind, name = str(metadata.type), str(metadata.name)
    has_queries = kind in ("Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking")
    found = {}
    for side in TASKS:
        entries = [name, kind]
        if has_queries or side == "document":
            entries = [f"{name}-{side}", name, f"{kind}-{side}", kind, side]
        given = next((prompts[entry] for entry in entries if entry in prompts), None)
        if given is None and "instruction" in prompts and (side == "query" or not has_queries):
            instruction = _instruction(metadata, side)
            given = prompts["instruction"].replace("{instruction}", instruction) if instruction else None
        chosen = own.get(side, "") if given is None else given
        if chosen:
            found[side] = chosen
    return found


def _instruction(metadata: Any, side: str) -> str:
    """Return the instruction that mteb has for a task, "" where it has none."""
    prompt = metadata.prompt
    if isinstance(prompt, Mapping):
        prompt = prompt.get(side)
    return str(prompt) if prompt else ""
