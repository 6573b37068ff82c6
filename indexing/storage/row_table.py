"""Row numbers: the whole numbers that an index answers with, and where each of them stands inside of it."""

from __future__ import annotations

import numpy as np

from embedserve.errors import InputError, NotFoundError

SPARSEST = 8  # numbers for each row, at most, for a list of them all


def as_rows(rows: np.ndarray, count: int | None = None, *, field: str = "rows") -> np.ndarray:
    """Return ``rows`` as int64 (n,), each of them once.

    Args:
        rows: Whole numbers from 0.
        count: How many there have to be; any number if None.
        field: What an error calls them.

    Raises:
        InputError: Not a list of whole numbers, not ``count`` of them, a negative one, or one twice.
    """
    values = np.asarray(rows)
    if values.ndim != 1 or not (values.size == 0 or np.issubdtype(values.dtype, np.integer)):
        raise InputError(f"{field} must be a list of whole numbers (n,), got {_described(values)}", field=field)
    if count is not None and len(values) != count:
        raise InputError(f"{field}: {len(values)} row numbers for {count} vectors", field=field)
    checked = values.astype(np.int64)
    if checked.size and checked.min() < 0:
        raise InputError(f"{field} must not be negative, got {int(checked.min())}", field=field)
    ordered = np.sort(checked)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if twice.size:
        raise InputError(f"{field}: row {int(twice[0])} is given twice", field=field)
    return checked


def as_allowed(allowed: np.ndarray) -> np.ndarray:
    """Return the rows a filter lets through, int64 (m,), in any order and any number of times; else `InputError`."""
    values = np.asarray(allowed)
    if values.ndim != 1 or not (values.size == 0 or np.issubdtype(values.dtype, np.integer)):
        message = f"allowed must be a list of row numbers (m,), got {_described(values)}"
        raise InputError(message, field="allowed")
    return values.astype(np.int64, copy=False)


def _described(values: np.ndarray) -> str:
    return f"shape {values.shape} of {values.dtype}"


def places_in(ordered: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the place (m,) of each of ``wanted`` in the ascending ``ordered`` (n,), -1 where it is not there."""
    if ordered.size == 0:
        return np.full(len(wanted), -1, dtype=np.int64)
    places = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[places] == wanted, places, -1)


def mask_of(ordered: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return which of the ascending ``ordered`` (n,) are among ``allowed``, (n,) bool."""
    places = places_in(ordered, as_allowed(allowed))
    mask = np.zeros(len(ordered), dtype=bool)
    mask[places[places >= 0]] = True
    return mask


def check_new(ordered: np.ndarray, rows: np.ndarray) -> None:
    """Raise `InputError` where one of ``rows`` is among the ascending ``ordered`` already."""
    known = rows[places_in(ordered, rows) >= 0]
    if known.size:
        raise InputError(f"rows: row {int(known[0])} is in the index already; remove it first", field="rows")


def places_of_known(ordered: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the places of ``rows`` in the ascending ``ordered``; raise `NotFoundError` for one that is not there."""
    wanted = as_rows(rows)
    places = places_in(ordered, wanted)
    if (places < 0).any():
        raise NotFoundError(f"rows: row {int(wanted[np.argmin(places)])} is not in the index", field="rows")
    return places


class RowTable:
    """Which row stands at which place of an index that keeps the order in which rows came.

    Args:
        rows: (n,) int64, the row at each place.
        alive: (n,) bool, False where the row was removed but its place is still taken.
    """

    def __init__(self, rows: np.ndarray, alive: np.ndarray | None = None) -> None:
        self.rows = rows
        self.alive = np.ones(len(rows), dtype=bool) if alive is None else alive
        self._settle()

    def _settle(self) -> None:
        places = np.flatnonzero(self.alive)
        order = np.argsort(self.rows[places], kind="stable")
        self._places = places[order]
        self.ordered = self.rows[self._places]  # the rows that are there, ascending
        # Rows that are numbered with few gaps are looked up in a list, which is 20 times faster than searching them.
        self._lookup = None
        if len(places) and self.ordered[-1] < SPARSEST * len(places):
            self._lookup = np.full(int(self.ordered[-1]) + 1, -1, dtype=np.int64)
            self._lookup[self.ordered] = self._places

    def __len__(self) -> int:
        return len(self.ordered)

    @property
    def all_alive(self) -> bool:
        """Whether no place is taken by a row that was removed."""
        return len(self.ordered) == len(self.rows)

    def append(self, rows: np.ndarray) -> None:
        """Give new ``rows`` the next places."""
        self.rows = np.concatenate([self.rows, rows])
        self.alive = np.concatenate([self.alive, np.ones(len(rows), dtype=bool)])
        self._settle()

    def mask(self, allowed: np.ndarray) -> np.ndarray:
        """Return which places hold one of the rows ``allowed``, (n,) bool."""
        wanted = as_allowed(allowed)
        if self._lookup is None:
            found = places_in(self.ordered, wanted)
            places = self._places[found[found >= 0]]
        else:
            found = self._lookup[wanted[(wanted >= 0) & (wanted < len(self._lookup))]]
            places = found[found >= 0]
        mask = np.zeros(len(self.rows), dtype=bool)
        mask[places] = True
        return mask

    def find(self, rows: np.ndarray) -> np.ndarray:
        """Return the places of those of ``rows`` that are there, in the order of their rows."""
        places = np.flatnonzero(self.mask(rows))
        return places[np.argsort(self.rows[places])]

    def find_known(self, rows: np.ndarray) -> np.ndarray:
        """Return the places of ``rows``; raise `NotFoundError` for one that is not there."""
        return self._places[places_of_known(self.ordered, rows)]

    def bury(self, places: np.ndarray) -> None:
        """Mark ``places`` as removed; they stay taken."""
        self.alive[places] = False
        self._settle()

    def close_up(self, places: np.ndarray) -> None:
        """Take ``places`` out; those behind them move up."""
        keep = np.ones(len(self.rows), dtype=bool)
        keep[places] = False
        self.rows, self.alive = self.rows[keep], self.alive[keep]
        self._settle()
