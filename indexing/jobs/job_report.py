"""The report of an offline job: counts, seconds per stage, skipped records."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

STAGES = ("read", "split", "encode", "write", "check", "wait", "assemble")


@dataclass(frozen=True)
class JobProgress:
    """Progress of a job.

    Attributes:
        stage: ``encode``, then ``write``, then ``index``; ``stop`` after Ctrl-C, while workers finish their batch.
        done: Documents finished in this stage.
        total: Number of documents, or None if unknown.
        resumed: How many of ``done`` were in reused shards; exclude them from rates.
    """

    stage: Literal["encode", "write", "index", "stop"]
    done: int
    total: int | None
    resumed: int = 0


@dataclass
class JobReport:
    """Result of a job.

    Attributes:
        collection: Name of the collection.
        engine: ``local`` or ``ray``.
        encoder: Name of the encoder.
        fingerprint: Fingerprint of the encoder.
        documents: Documents in the collection.
        rows: Rows in the collection: documents or their passages.
        tokens: Tokens that the encoder read.
        truncated: Rows truncated to the encoder's maximum length.
        dead_letters: Skipped records.
        dead_letter_file: File of the skipped records, or None.
        shards: Number of shards.
        resumed: Shards reused from an earlier run.
        damaged: Shards of an earlier run that were damaged and encoded again.
        removed: Shards of earlier runs that were deleted.
        made_documents: Documents encoded in this run.
        seconds: Seconds per stage: ``read`` (the source), ``check`` (existing shards), ``wait`` (for workers),
            ``assemble`` and ``all`` are wall-clock time; ``split``, ``encode`` and ``write`` are summed over workers.
        problems: What was wrong with damaged shards.
    """

    collection: str
    engine: str
    encoder: str
    fingerprint: str
    documents: int = 0
    rows: int = 0
    tokens: int = 0
    truncated: int = 0
    dead_letters: int = 0
    dead_letter_file: str | None = None
    shards: int = 0
    resumed: int = 0
    damaged: int = 0
    removed: int = 0
    made_documents: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*STAGES, "all"), 0.0))
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the duration of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def plain(self) -> dict[str, Any]:
        """Return the report as JSON values, with the encoding rate of this run."""
        values = dataclasses.asdict(self)
        values["seconds"] = {stage: round(seconds, 3) for stage, seconds in self.seconds.items()}
        return values | {"documents_per_second": round(self.rate, 1)}

    @property
    def rate(self) -> float:
        """Documents encoded per second in this run, assembling excluded."""
        seconds = self.seconds["all"] - self.seconds["assemble"]
        return self.made_documents / seconds if seconds > 0 else 0.0

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        rows = f" in {self.rows:,} passages" if self.rows != self.documents else ""
        encoded, noun = self.shards - self.resumed, "shard" if self.shards == 1 else "shards"
        rate = f", {self.rate:,.0f} documents/s encoded" if self.made_documents else ""
        stages = [f"{stage} {seconds:.1f}" for stage, seconds in self.seconds.items() if seconds >= 0.05]
        text = [
            f"{self.documents:,} documents{rows}, {self.tokens:,} tokens{rate}",
            f"{self.shards:,} {noun}: {encoded:,} encoded, {self.resumed:,} reused"
            + (f", {self.damaged:,} damaged and encoded again" if self.damaged else ""),
            "seconds: " + ", ".join(stages),
        ]
        text += [f"damaged: {problem}" for problem in self.problems]
        if self.dead_letters:
            records = "1 record" if self.dead_letters == 1 else f"{self.dead_letters:,} records"
            text.append(f"skipped {records}; see {self.dead_letter_file}")
        return text
