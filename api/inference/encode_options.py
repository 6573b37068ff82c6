"""What a request asks of an encoder, in one value from the route to the queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embedserve.types import Task

Truncate = Literal["end", "start", "none"]


@dataclass(frozen=True)
class EncodeOptions:
    """How to embed the texts of one request.

    Attributes:
        task: ``query`` or ``document``: selects the prompt.
        prompt: Literal prefix of each text. Default: the prompt of the task.
        max_tokens: Tokens to read of one text. Default: the model's maximum.
        truncate: The part of a longer text to drop, ``end`` or ``start``; ``none`` makes it an error.
        dimensions: Leading dimensions to keep. Default: all.
        normalize: Whether truncated vectors are normalised again.
        priority: Lane of the queue: ``query``, ``document``, ``bulk`` or ``urgent``. Default: the task.
        field: Name of the texts in errors: ``field`` for one text, ``field[index]`` for several.
    """

    task: Task = "document"
    prompt: str | None = None
    max_tokens: int | None = None
    truncate: Truncate = "end"
    dimensions: int | None = None
    normalize: bool = True
    priority: str | None = None
    field: str = "input"

    def name_of(self, index: int, count: int) -> str:
        """Return the name of one of ``count`` texts in errors."""
        return self.field if count == 1 else f"{self.field}[{index}]"
