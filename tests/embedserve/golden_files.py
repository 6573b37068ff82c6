"""The golden files of published implementations; tests/golden/README.md says how each was produced."""

import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent.parent / "golden"
TEXTS = json.loads((GOLDEN / "texts.json").read_text())


def unit(vectors):
    """Return the rows (n, d) normalised."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def arrays(name):
    """Return the arrays of a file by name, and close it."""
    with np.load(GOLDEN / name) as file:
        return dict(file)


def backbone(run_name):
    """Return the folder of the model of a run."""
    return str(GOLDEN / "models" / f"tiny-{run_name.split('_')[0]}")
