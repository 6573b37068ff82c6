"""What a faiss index is made of, and what its parts can do. faiss itself is handed in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from indexing.engines.faiss_defaults import probes_for


def parts_of(faiss: Any, index: Any) -> Iterator[Any]:
    """Yield a faiss index and the indexes inside of it, each as what it is."""
    index = faiss.downcast_index(index)
    yield index
    for name in ("index", "base_index", "refine_index", "storage", "quantizer"):
        inner = getattr(index, name, None)
        if isinstance(inner, faiss.Index):
            yield from parts_of(faiss, inner)


def transforms_of(faiss: Any, index: Any) -> list[Any]:
    """Return what a faiss index does to vectors before it stores them, each step as what it is."""
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    return [faiss.downcast_VectorTransform(index.chain.at(step)) for step in range(index.chain.size())]


def is_usable(faiss: Any, index: Any) -> bool:
    """Return whether one part of an index can be filled: of these faiss makes what then fails, or ends the process."""
    if isinstance(index, faiss.IndexHNSW):
        return int(index.hnsw.nb_neighbors(1)) >= 2  # HNSW1 and HNSW0 abort on the first row
    if isinstance(index, faiss.IndexIVF):
        return int(index.nlist) >= 1
    steps = transforms_of(faiss, index)
    return all(int(step.d_out) <= int(step.d_in) for step in steps if isinstance(step, faiss.PCAMatrix))


def inside(faiss: Any, index: Any) -> Any:
    """Return the index behind the steps that change vectors before they are stored, as what it is."""
    index = faiss.downcast_index(index)
    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return index


def takes_selector(faiss: Any, index: Any) -> bool:
    """Return whether a search of the index can be kept to chosen places (faiss 1.15)."""
    index = inside(faiss, index)
    if isinstance(index, faiss.IndexRefine):
        return takes_selector(faiss, index.base_index)
    return isinstance(
        index, faiss.IndexFlat | faiss.IndexScalarQuantizer | faiss.IndexRaBitQ | faiss.IndexHNSW | faiss.IndexIVF
    )


def gives_vectors(faiss: Any, index: Any) -> bool:
    """Return whether the index can give back the vector at a place, as far as it keeps it; an IVF would have to seek.

    Refinement keeps a store of its own, in the order in which vectors came.
    """
    return not isinstance(inside(faiss, index), faiss.IndexIVF)


def is_keyed(faiss: Any, index: Any) -> bool:
    """Return whether the index keeps each vector's number, and so others keep theirs when one is removed: an IVF."""
    return isinstance(inside(faiss, index), faiss.IndexIVF)


def closes_up(faiss: Any, index: Any) -> bool:
    """Return whether removing a vector moves up those behind it, which is what codes one behind another do."""
    return isinstance(inside(faiss, index), faiss.IndexFlatCodes | faiss.IndexFastScan)


def search_parameters(
    faiss: Any, index: Any, selector: Any, *, ef_search: int, nprobe: int | None, refine: float
) -> Any:
    """Return how one search of ``index`` is to be done, for every layer of it.

    Args:
        faiss: The module.
        index: A faiss index.
        selector: A faiss ``IDSelector`` of the places that may be found, or None.
        ef_search: Candidates that a graph keeps.
        nprobe: Lists that an IVF reads; `faiss_defaults.probes_for` if None.
        refine: Candidates to refine for each hit wanted.
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
            return faiss.SearchParametersHNSW(efSearch=ef_search, **chosen)
        if isinstance(part, faiss.IndexIVF):
            return faiss.SearchParametersIVF(nprobe=probes_for(int(part.nlist), nprobe), **chosen)
        return faiss.SearchParameters(**chosen) if chosen else None

    chosen = {} if selector is None else {"sel": selector}
    return of(index)
