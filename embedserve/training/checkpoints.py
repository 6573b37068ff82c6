"""The work folder of a training run: which run it belongs to, and its checkpoints."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedserve.errors import SpecError
from embedserve.training.pairs import TrainingPair


def pairs_digest(pairs: Sequence[TrainingPair]) -> str:
    """Return a digest of ``pairs`` and their order."""
    return hashlib.blake2b(repr(list(pairs)).encode(), digest_size=16).hexdigest()


def prepare_work_folder(work: Path, run: dict[str, Any], resume: bool) -> None:
    """Prepare ``work`` for ``run``: a new run deletes earlier checkpoints, a resumed run must equal the stored one.

    Raises:
        SpecError: There is no run to resume, or its settings differ; the message names them.
    """
    path, current = work / "run.json", json.loads(json.dumps(run))
    if resume:
        if not path.is_file():
            message = f"{work} holds no run to resume; check output, or train without --resume"
            raise SpecError(message, field="resume")
        stored = json.loads(path.read_text(encoding="utf-8"))
        old, new = ({**values, **values["settings"]} for values in (stored, current))
        if differences := sorted(name for name in new if name != "settings" and old.get(name) != new[name]):
            message = f"{work} holds the checkpoints of a run with another {', '.join(differences)}"
            raise SpecError(f"{message}; use the same values, or train without --resume", field="resume")
        return
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(current), encoding="utf-8")


def last_checkpoint(work: Path) -> Path | None:
    """Return the newest complete checkpoint in ``work``, or None."""
    checkpoints = [
        path for path in (work / "checkpoints").glob("checkpoint-*") if (path / "trainer_state.json").is_file()
    ]
    return max(checkpoints, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
