"""The whole catalogue for many users at once, in C++: ranks of targets and the first items, exact.

What takes time is one product with the whole table: 28 · 10¹² operations for Gowalla's users. It is
made of 8-bit numbers, with a bound on its error for each user and item; where the bound leaves an
item's place open, its score is made again in float32. So the result is that of float32 scores, each
summed in one fixed order, whatever stands beside it in a batch.
"""

import ctypes

import torch
from torch import Tensor

from gsas_lab.errors import InputError
from gsas_lab.kernels import native

USERS = 1536  # for each thread in one call: twice what is worked on at once
_LARGEST = 1e15  # of a length: products stay far below float32's end


class _Table(ctypes.Structure):
    """As `Table` in native.cpp."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in "rows words start scale length error".split()],
        *[(name, ctypes.c_int64) for name in "n threads".split()],
        *[(name, ctypes.c_void_p) for name in "parallel number size".split()],
    ]


class _Scan(ctypes.Structure):
    """As `Scan` in native.cpp."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in "table hidden targets seen seen_from".split()],
        *[(name, ctypes.c_void_p) for name in "ranks top scores".split()],
        *[(name, ctypes.c_int64) for name in "users most".split()],
        ("bias", ctypes.c_float),
    ]


def fast(d: int) -> bool:
    """Is it built for this width, and are 8-bit products faster here than float32's?"""
    library = native.load()
    return library is not None and d in native.WIDTHS and bool(library.scan_is_fast())


class Catalogue:
    """A table of items (n_items + 1, d), on CPU, d one of native.WIDTHS, made ready for `scan`.

    Row 0 is no item; bias is added to every score. Memory beyond the table: a quarter of it and 16
    bytes an item. InputError where the native route cannot be built, and for numbers that are not
    finite.
    """

    def __init__(self, table: Tensor, bias: float = 0.0):
        library = native.load()
        if library is None:
            raise InputError("The native route could not be built here: rank by scores.")
        self._library, self._bias = library, bias
        table = table.detach().float().contiguous()
        (n, self._d), padded = table.shape, -(-len(table) // 32) * 32
        words = torch.empty(padded * self._d // 4, dtype=torch.int32)
        start = torch.empty(padded, dtype=torch.int32)
        scale, length, error = torch.empty(3, padded)
        self._kept = (table, words, start, scale, length, error)  # whose memory C++ reads
        self._table = _Table(
            *(part.data_ptr() for part in self._kept),
            n=n,
            threads=torch.get_num_threads(),
            **native._pool(),
        )
        if library.pack_table(ctypes.byref(self._table), self._d):
            raise InputError(f"d = {self._d} is not in {native.WIDTHS}.")
        _check("The table", length)

    def scan(
        self, hidden: Tensor, targets: Tensor, seen: Tensor, seen_from: Tensor, most: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ranks (B,) of the targets by the rule of `ranking.rank_of_targets`, 0 where there is none;
        the first items (B, most) and their scores, 0 and −inf where there are no more.

        hidden (B, d); targets (B,) items, 0 for none; seen (S,) items that do not compete, those of
        row b from seen_from[b] to seen_from[b + 1], ascending. A target always competes.
        """
        hidden, most = hidden.detach().float().contiguous(), min(most, self._table.n - 1)
        _check("The hidden states", hidden.norm(dim=1))
        users, n = len(hidden), self._table.n
        for name, items, low in (("targets", targets, 0), ("seen", seen, 1)):
            if len(items) and not low <= int(items.min()) <= int(items.max()) < n:
                raise InputError(f"{name} must lie between {low} and {n - 1}.")
        ranks = torch.empty(users, dtype=torch.int64)
        top, scores = torch.empty(users, most, dtype=torch.int64), torch.empty(users, most)
        parts = (hidden, *(x.long().contiguous() for x in (targets, seen, seen_from)))
        work = _Scan(
            ctypes.addressof(self._table),
            *(part.data_ptr() for part in (*parts, ranks, top, scores)),
            users=users,
            most=most,
            bias=self._bias,
        )
        self._library.scan_table(ctypes.byref(work), self._d)
        return ranks, top, scores


def _check(what: str, lengths: Tensor) -> None:
    if not bool((lengths < _LARGEST).all()):
        raise InputError(
            f"{what}: NaN, or numbers beyond 10¹⁵; check the model's weights and its learning rate."
        )
