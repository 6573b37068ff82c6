"""What an offline job did: counts, seconds by stage, and what was left out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

STAGES = ("read", "split", "encode", "write", "check", "wait", "assemble")


@dataclass(frozen=True)
class JobProgress:
    """How far a job is.

    Attributes:
        stage: ``encode``, then ``write``, then ``index``; ``stop`` once Ctrl-C came and workers finish what they hold.
        done: Documents this stage is done with.
        total: Documents in all, or None while that is unknown.
        resumed: How many of those done were in shards made before: they took no time worth counting.
    """

    stage: Literal["encode", "write", "index", "stop"]
    done: int
    total: int | None
    resumed: int = 0


@dataclass
class JobReport:
    """What a job did.

    Attributes:
        collection: Its name.
        engine: ``local`` or ``ray``.
        encoder: Its name.
        fingerprint: The encoder's.
        documents: Documents in the collection.
        rows: Rows in the collection: documents or their passages.
        tokens: Tokens that the encoder read for them.
        truncated: Rows that were cut to what the encoder reads.
        dead_letters: Records left out.
        dead_letter_file: Where they are; None where there are none.
        shards: Shards in all.
        resumed: Shards that were there already.
        damaged: Shards that were there but damaged, and were made anew.
        removed: Shards of earlier runs that this one had no use for.
        made_documents: Documents that were encoded in this run.
        seconds: By stage: ``read`` (the source), ``check`` (shards that were there) and ``assemble`` by the clock;
            ``split``, ``encode`` and ``write`` summed over the workers; ``wait`` for the workers; ``all`` by the clock.
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

    def plain(self) -> dict[str, Any]:
        """Return the report as JSON values, with the rate of what this run encoded."""
        values = dataclasses.asdict(self)
        values["seconds"] = {stage: round(spent, 3) for stage, spent in self.seconds.items()}
        return values | {"documents_per_second": round(self.rate, 1)}

    @property
    def rate(self) -> float:
        """Documents encoded in this run by the second, of the time before assembling."""
        spent = self.seconds["all"] - self.seconds["assemble"]
        return self.made_documents / spent if spent > 0 else 0.0

    def lines(self) -> list[str]:
        """Return the report for a person."""
        rows = f" in {self.rows:,} passages" if self.rows != self.documents else ""
        made, noun = self.shards - self.resumed, "shard" if self.shards == 1 else "shards"
        rate = f", {self.rate:,.0f} documents/s encoded" if self.made_documents else ""
        text = [
            f"{self.documents:,} documents{rows}, {self.tokens:,} tokens{rate}",
            f"{self.shards:,} {noun}: {made:,} made, {self.resumed:,} there already"
            + (f", {self.damaged:,} damaged and made anew" if self.damaged else ""),
            "seconds: " + ", ".join(f"{stage} {spent:.1f}" for stage, spent in self.seconds.items() if spent >= 0.05),
        ]
        text += [f"damaged: {problem}" for problem in self.problems]
        if self.dead_letters:
            records = "1 record was" if self.dead_letters == 1 else f"{self.dead_letters:,} records were"
            text.append(f"{records} left out; see {self.dead_letter_file}")
        return text
