"""The reference vectors of a model, kept beside the collections when it is first loaded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from embedserve.errors import EmbedserveError
from embedserve.reference import read_reference, reference_vectors, write_reference

if TYPE_CHECKING:
    from embedserve import Encoder

logger = logging.getLogger(__name__)


def keep_reference(folder: Path, encoder: Encoder) -> None:
    """Compute the reference vectors, and write them unless there are some; what fails in writing is logged."""
    vectors = reference_vectors(encoder)
    path = reference_path(folder, encoder.fingerprint)
    try:
        if read_reference(path, encoder.fingerprint) is None:
            write_reference(path, encoder.fingerprint, vectors)
    except (OSError, EmbedserveError) as error:
        logger.warning("the reference vectors of %s are not kept: %s", encoder.name, error)


def reference_path(folder: Path, fingerprint: str) -> Path:
    """Return where the reference vectors of an encoder are kept."""
    return folder / "reference" / f"{fingerprint}.json"
