"""Searches by faiss on a GPU. The faiss module is passed as an argument."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np

from embedserve.errors import InputError, LoadError
from indexing.engines.faiss_defaults import probes_for
from indexing.engines.faiss_parts import inner_index

DEVICE = re.compile(r"cpu|cuda(?::(\d+))?")
MAX_K = 2_048  # hits that a GPU search can return


def check_device(faiss: Any, device: str, kind: str = "") -> int:
    """Return the number of the GPU that ``device`` names, -1 for the CPU.

    Raises:
        InputError: ``device`` is neither ``cpu`` nor ``cuda`` nor ``cuda:N``.
        LoadError: faiss was built without GPU support, or without support for ``kind``, or there is no such GPU.
    """
    match = DEVICE.fullmatch(device)
    if match is None:
        raise InputError(f"device must be cpu, cuda or cuda:N, got {device!r}", field="device")
    if device == "cpu":
        if kind == "cagra":
            raise InputError("index 'cagra' is built on a GPU: give device='cuda', or use hnsw", field="device")
        return -1
    ordinal = int(match[1] or 0)
    if not hasattr(faiss, "StandardGpuResources"):
        raise LoadError(
            f"device {device!r} needs faiss for GPUs: `pip uninstall faiss-cpu`, then `pip install -e '.[gpu]'` "
            "(faiss-gpu), or '.[gpu-cuvs]' (faiss-gpu-cuvs) for cagra; never both",
            field="device",
        )
    if kind == "cagra" and not hasattr(faiss, "GpuIndexCagra"):
        raise LoadError(
            "index 'cagra' needs faiss with cuVS: `pip uninstall faiss-gpu`, then `pip install -e '.[gpu-cuvs]'` "
            "(faiss-gpu-cuvs)",
            field="index",
        )
    if ordinal >= faiss.get_num_gpus():
        raise LoadError(f"device {device!r}: faiss sees {faiss.get_num_gpus()} GPUs", field="device")
    return ordinal


class GpuCopy:
    """A copy of a CPU index on a GPU for searches without a filter, one at a time.

    Scores of unit vectors are within 1e-3 of the CPU's: matrix products on a GPU may use TF32. Rows whose scores differ
    by less may be ordered differently, and an IVF may read other lists of nearly the same distance.

    Raises:
        InputError: faiss does not support this index on a GPU.
    """

    def __init__(self, faiss: Any, index: Any, kind: str, ordinal: int) -> None:
        if not _has_gpu_form(faiss, inner_index(faiss, index)):
            raise InputError(
                f"index {kind!r} cannot be moved to a GPU; use auto, flat, IVF with Flat, SQ8 or PQ, or cagra",
                field="index",
            )
        self._faiss = faiss
        self._resources = faiss.StandardGpuResources()
        self._index = faiss.index_cpu_to_gpu(self._resources, ordinal, index)
        self._nlist = int(getattr(inner_index(faiss, index), "nlist", 0))
        self._lock = threading.Lock()  # searches share temporary GPU memory

    def search(self, queries: np.ndarray, k: int, nprobe: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and positions (Q, k); ``k`` is at most `MAX_K`."""
        parameters = None
        if self._nlist:
            parameters = self._faiss.SearchParametersIVF(nprobe=probes_for(self._nlist, nprobe))
            if isinstance(self._index, self._faiss.IndexPreTransform):
                parameters = self._faiss.SearchParametersPreTransform(index_params=parameters)
        with self._lock:
            scores, positions = self._index.search(queries, k, params=parameters)
        return scores, positions


def _has_gpu_form(faiss: Any, index: Any) -> bool:
    if isinstance(index, faiss.IndexHNSWCagra):
        return hasattr(faiss, "GpuIndexCagra")
    fast_scan = isinstance(index, faiss.IndexIVFFastScan)
    kinds = faiss.IndexFlat | faiss.IndexIVFFlat | faiss.IndexIVFScalarQuantizer | faiss.IndexIVFPQ
    return isinstance(index, kinds) and not fast_scan


def build_cagra(faiss: Any, vectors: np.ndarray, ordinal: int) -> Any:
    """Return a CAGRA graph (Ootomo et al. 2024, arXiv 2308.15136) of ``vectors`` (N, d), built on a GPU.

    The result is a CPU index, searched as an HNSW graph.
    """
    config = faiss.GpuIndexCagraConfig()
    config.device = ordinal
    index = faiss.GpuIndexCagra(faiss.StandardGpuResources(), int(vectors.shape[1]), faiss.METRIC_INNER_PRODUCT, config)
    index.train(vectors)
    return faiss.index_gpu_to_cpu(index)
