"""Row numbers: the integer keys of an index, and the position of each row inside it."""

from __future__ import annotations

import numpy as np

from embedserve.errors import InputError, NotFoundError

LOOKUP_DENSITY = 8  # a lookup table has at most this many entries per row


def as_rows(rows: np.ndarray, count: int | None = None, *, field: str = "rows") -> np.ndarray:
    """Return ``rows`` as int64 (n,) after checking that they are unique and not negative.

    Args:
        rows: Integers from 0.
        count: The required number of rows. Default: any.
        field: The name of the argument, for errors.

    Raises:
        InputError: Not a list of integers, another number than ``count``, a negative or a duplicate row.
    """
    values = _as_integers(rows, "(n,)", field)
    if count is not None and len(values) != count:
        raise InputError(f"{field}: {len(values)} row numbers for {count} vectors", field=field)
    checked = values.astype(np.int64)
    if checked.size and checked.min() < 0:
        raise InputError(f"{field} must not be negative, got {int(checked.min())}", field=field)
    ordered = np.sort(checked)
    duplicates = ordered[1:][ordered[1:] == ordered[:-1]]
    if duplicates.size:
        raise InputError(f"{field}: row {int(duplicates[0])} is given twice", field=field)
    return checked


def as_allowed(allowed: np.ndarray) -> np.ndarray:
    """Return the rows that match a filter, int64 (m,), in any order, with or without duplicates.

    Raises:
        InputError: Not a list of integers.
    """
    return _as_integers(allowed, "(m,)", "allowed").astype(np.int64, copy=False)


def _as_integers(values: np.ndarray, shape: str, field: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or not (array.size == 0 or np.issubdtype(array.dtype, np.integer)):
        message = f"{field} must be a list of whole numbers {shape}, got shape {array.shape} of {array.dtype}"
        raise InputError(message, field=field)
    return array


def positions_in(ordered: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the position (m,) of each of ``rows`` in the ascending ``ordered`` (n,), -1 if it is missing."""
    if ordered.size == 0:
        return np.full(len(rows), -1, dtype=np.int64)
    positions = np.minimum(np.searchsorted(ordered, rows), len(ordered) - 1)
    return np.where(ordered[positions] == rows, positions, -1)


def mask_of(ordered: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return which of the ascending ``ordered`` (n,) are in ``allowed``, (n,) bool."""
    positions = positions_in(ordered, as_allowed(allowed))
    mask = np.zeros(len(ordered), dtype=bool)
    mask[positions[positions >= 0]] = True
    return mask


def check_new(ordered: np.ndarray, rows: np.ndarray) -> None:
    """Raise `InputError` if one of ``rows`` is already in the ascending ``ordered``."""
    known = rows[positions_in(ordered, rows) >= 0]
    if known.size:
        raise InputError(f"rows: row {int(known[0])} is in the index already; remove it first", field="rows")


def known_positions(ordered: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the positions of ``rows`` in the ascending ``ordered``; raise `NotFoundError` for a missing row."""
    checked = as_rows(rows)
    positions = positions_in(ordered, checked)
    if (positions < 0).any():
        raise NotFoundError(f"rows: row {int(checked[np.argmin(positions)])} is not in the index", field="rows")
    return positions


class RowTable:
    """The row at each position of an index whose positions follow insertion order.

    Args:
        rows: (n,) int64, the row at each position.
        alive: (n,) bool, False for a removed row that still occupies its position. Default: all True.
    """

    def __init__(self, rows: np.ndarray, alive: np.ndarray | None = None) -> None:
        self.rows = rows
        self.alive = np.ones(len(rows), dtype=bool) if alive is None else alive
        self._update()

    def _update(self) -> None:
        positions = np.flatnonzero(self.alive)
        order = np.argsort(self.rows[positions], kind="stable")
        self._positions = positions[order]
        self.ordered = self.rows[self._positions]  # rows that were not removed, ascending
        # If row numbers have few gaps, a lookup table is 20 times faster than binary search.
        self._lookup = None
        if len(positions) and self.ordered[-1] < LOOKUP_DENSITY * len(positions):
            self._lookup = np.full(int(self.ordered[-1]) + 1, -1, dtype=np.int64)
            self._lookup[self.ordered] = self._positions

    def __len__(self) -> int:
        return len(self.ordered)

    @property
    def num_removed(self) -> int:
        """Removed rows that still occupy a position."""
        return len(self.rows) - len(self.ordered)

    def append(self, rows: np.ndarray) -> None:
        """Add new ``rows`` at the next positions."""
        self.rows = np.concatenate([self.rows, rows])
        self.alive = np.concatenate([self.alive, np.ones(len(rows), dtype=bool)])
        self._update()

    def mask(self, allowed: np.ndarray) -> np.ndarray:
        """Return which positions hold one of the rows ``allowed``, (n,) bool."""
        rows = as_allowed(allowed)
        if self._lookup is None:
            matches = positions_in(self.ordered, rows)
            positions = self._positions[matches[matches >= 0]]
        else:
            matches = self._lookup[rows[(rows >= 0) & (rows < len(self._lookup))]]
            positions = matches[matches >= 0]
        mask = np.zeros(len(self.rows), dtype=bool)
        mask[positions] = True
        return mask

    def find(self, rows: np.ndarray) -> np.ndarray:
        """Return the positions of those of ``rows`` that exist, in ascending order of rows."""
        positions = np.flatnonzero(self.mask(rows))
        return positions[np.argsort(self.rows[positions])]

    def find_known(self, rows: np.ndarray) -> np.ndarray:
        """Return the positions of ``rows``; raise `NotFoundError` for a missing row."""
        return self._positions[known_positions(self.ordered, rows)]

    def mark_removed(self, positions: np.ndarray) -> None:
        """Mark the rows at ``positions`` as removed; the positions stay occupied."""
        self.alive[positions] = False
        self._update()

    def delete(self, positions: np.ndarray) -> None:
        """Delete ``positions``; later positions move up."""
        self.rows, self.alive = np.delete(self.rows, positions), np.delete(self.alive, positions)
        self._update()
