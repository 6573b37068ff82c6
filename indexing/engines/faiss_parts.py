"""The parts of a faiss index and their capabilities. The faiss module is passed as an argument."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from indexing.engines.faiss_defaults import probes_for


def parts_of(faiss: Any, index: Any) -> Iterator[Any]:
    """Yield a faiss index and the indexes inside it, each downcast to its class."""
    index = faiss.downcast_index(index)
    yield index
    for name in ("index", "base_index", "refine_index", "storage", "quantizer"):
        inner = getattr(index, name, None)
        if isinstance(inner, faiss.Index):
            yield from parts_of(faiss, inner)


def transforms_of(faiss: Any, index: Any) -> list[Any]:
    """Return the transforms that a faiss index applies to vectors, each downcast to its class."""
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    return [faiss.downcast_VectorTransform(index.chain.at(step)) for step in range(index.chain.size())]


def is_usable(faiss: Any, index: Any) -> bool:
    """Return whether one part of an index can be filled; faiss accepts some that fail or abort the process later."""
    if isinstance(index, faiss.IndexHNSW):
        return int(index.hnsw.nb_neighbors(1)) >= 2  # HNSW1 and HNSW0 abort on the first row
    if isinstance(index, faiss.IndexIVF):
        return int(index.nlist) >= 1
    steps = transforms_of(faiss, index)
    return all(int(step.d_out) <= int(step.d_in) for step in steps if isinstance(step, faiss.PCAMatrix))


def inner_index(faiss: Any, index: Any) -> Any:
    """Return the index after all transforms, downcast to its class."""
    index = faiss.downcast_index(index)
    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return index


def supports_filter(faiss: Any, index: Any) -> bool:
    """Return whether a search of the index accepts an ``IDSelector`` (faiss 1.15)."""
    index = inner_index(faiss, index)
    if isinstance(index, faiss.IndexRefine):
        return supports_filter(faiss, index.base_index)
    return isinstance(
        index, faiss.IndexFlat | faiss.IndexScalarQuantizer | faiss.IndexRaBitQ | faiss.IndexHNSW | faiss.IndexIVF
    )


def supports_reconstruct(faiss: Any, index: Any) -> bool:
    """Return whether the index can reconstruct the vector at a position directly; an IVF would have to search for it.

    A refined index stores vectors separately, in insertion order.
    """
    return not isinstance(inner_index(faiss, index), faiss.IndexIVF)


def is_keyed(faiss: Any, index: Any) -> bool:
    """Return whether the index stores an id per vector, so that removing one does not change the others: an IVF."""
    return isinstance(inner_index(faiss, index), faiss.IndexIVF)


def renumbers(faiss: Any, index: Any) -> bool:
    """Return whether removing a vector moves up the later ones, as in flat arrays of codes."""
    return isinstance(inner_index(faiss, index), faiss.IndexFlatCodes | faiss.IndexFastScan)


def search_parameters(
    faiss: Any, index: Any, selector: Any, *, ef_search: int, nprobe: int | None, refine: float
) -> Any:
    """Return the search parameters of ``index``, for all its layers.

    Args:
        faiss: The module.
        index: A faiss index.
        selector: A faiss ``IDSelector`` of the positions that may match, or None.
        ef_search: Candidates that a graph keeps.
        nprobe: Lists that an IVF reads. Default: `faiss_defaults.probes_for`.
        refine: Candidates to refine per hit.
    """

    def of(part: Any) -> Any:
        part = faiss.downcast_index(part)
        if isinstance(part, faiss.IndexPreTransform):
            inner = of(part.index)
            return None if inner is None else faiss.SearchParametersPreTransform(index_params=inner)
        if isinstance(part, faiss.IndexRefine):
            inner = of(part.base_index)
            base = {} if inner is None else {"base_index_params": inner}
            return faiss.IndexRefineSearchParameters(k_factor=refine, **base)
        if isinstance(part, faiss.IndexHNSW):
            return faiss.SearchParametersHNSW(efSearch=ef_search, **filtering)
        if isinstance(part, faiss.IndexIVF):
            return faiss.SearchParametersIVF(nprobe=probes_for(int(part.nlist), nprobe), **filtering)
        return faiss.SearchParameters(**filtering) if filtering else None

    filtering = {} if selector is None else {"sel": selector}
    return of(index)
