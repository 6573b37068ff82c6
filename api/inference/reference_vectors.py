"""The reference vectors of a model: saved with it, or written to the data directory at its first load."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from embedserve.errors import EmbedserveError
from embedserve.loading.reference import read_reference, reference_vectors, write_reference
from embedserve.types import Task

if TYPE_CHECKING:
    import numpy as np

    from embedserve import Encoder

logger = logging.getLogger(__name__)


def keep_reference(folder: Path, encoder: Encoder) -> None:
    """Compute the reference vectors and write them if none are saved; a failed write is logged."""
    vectors = reference_vectors(encoder)
    path = reference_path(folder, encoder.fingerprint)
    try:
        if kept_reference(folder, encoder) is None:
            write_reference(path, encoder.fingerprint, vectors)
    except (OSError, EmbedserveError) as error:
        logger.warning("cannot save the reference vectors of %s: %s", encoder.name, error)


def kept_reference(folder: Path, encoder: Encoder) -> Mapping[Task, np.ndarray] | None:
    """Return the reference vectors saved with the encoder, else those of its first load, else None.

    Raises:
        CorruptFileError: The file of the first load is damaged.
    """
    if encoder.reference is not None:
        return encoder.reference
    return read_reference(reference_path(folder, encoder.fingerprint), encoder.fingerprint)


def reference_path(folder: Path, fingerprint: str) -> Path:
    """Return the path of an encoder's reference vectors."""
    return folder / "reference" / f"{fingerprint}.json"
