"""MaskIndex: the nearest of very many stored masks, exactly, while most of them are never read.

The question is which stored mask shares most features with a query of N features, if any shares at least a floor of them.
The index keeps, of a random sample of the features, a bitmap over all masks each. Adding up the bitmaps of the sampled
features that the query has counts, for all masks at once and 64 in a machine word, how many of k random features of the
query each mask has. Of a mask that shares s of the N, that number is hypergeometric,

    P(x) = C(s, x) C(N - s, k - x) / C(N, k)

so those with fewer than a cutoff are dropped at a risk of `RISK`, and the few that are left are compared in full.
The best one seen raises the floor, hence a query that has a near mask is answered after a few dozen bitmaps; one that has
none needs the more, the lower the floor is, and in the worst case all masks are compared.
"""

import functools
import json
import math
import zlib
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from safetensors.numpy import save

from errata import disk
from errata.bitmaps import Bits, Counts, Places, Words, places, shared, turned
from errata.errors import DamagedFile

RISK = 1e-9
"""The probability, over the index's own sample, that a look at what is left drops the nearest mask."""
SAMPLE = 2048
"""Features that are kept as bitmaps: as much again as 14 % of masks of 14,336 bits."""
FIRST = 48
"""Bitmaps that are added up before the first look at what is left: enough where the nearest mask shares .9 of the query."""
FEW = 4096
"""Of so many masks, one of those that look best is compared in full at every look ..."""
END = 512
"""... and all that are left, once that is one of so many: it then costs less than another look."""


class Found(NamedTuple):
    """The nearest stored mask, and how many features it shares with the query."""

    which: int
    overlap: int


class MaskIndex:
    """Masks of `width` features, packed as `errata.masks.pack` does."""

    def __init__(self, width: int, sample: int = SAMPLE, seed: int = 0) -> None:
        order = np.random.default_rng(seed).permutation(width)
        self.width = width
        self.features: Places = order[:sample]
        self.rows: Bits = np.zeros((0, -(-width // 8)), dtype=np.uint8)
        self._columns: Words = np.zeros((len(self.features), 0), dtype=np.uint64)
        self._alive: Words = np.zeros(0, dtype=np.uint64)

    @classmethod
    def of(cls, rows: Bits, width: int, **kwargs: int) -> Self:
        """An index of these masks, (masks, bytes)."""
        index = cls(width, **kwargs)
        index.grow(rows)
        return index

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the bitmaps, beside those of the masks."""
        return self._columns.nbytes + self._alive.nbytes

    # -- changing it -------------------------------------------------------------------------------------------------

    def grow(self, rows: Bits) -> None:
        """Take in more masks. `rows` (masks, bytes) are all of them, those before being the first; they are not copied."""
        known, self.rows = len(self.rows), rows
        words = -(-len(rows) // 64)
        if words > self._columns.shape[1]:
            room = max(words, self._columns.shape[1] * 5 // 4) - self._columns.shape[1]
            self._columns = np.pad(self._columns, ((0, 0), (0, room)))
            self._alive = np.pad(self._alive, (0, room))
        start = known // 64  # the word that is half full is worked out anew
        self._columns[:, start:words] = turned(rows[64 * start :], self.features)
        fresh = np.zeros(len(self._alive) * 64, dtype=np.uint8)
        fresh[known : len(rows)] = 1
        self._alive |= np.packbits(fresh, bitorder="little").view(np.uint64)

    def remove(self, index: int) -> None:
        """Never find this mask again. The places of the others stay."""
        self._alive[index // 64] &= ~np.uint64(1 << index % 64)

    # -- keeping it --------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the bitmaps, not the masks, to a safetensors file; the one before survives any failure."""
        words = -(-len(self.rows) // 64)
        tensors = {"columns": np.ascontiguousarray(self._columns[:, :words]), "alive": self._alive[:words].copy()}
        told = {"width": str(self.width), "masks": str(len(self.rows)), "features": json.dumps(self.features.tolist())}
        told |= {name: str(zlib.crc32(tensor.data)) for name, tensor in tensors.items()}
        disk.replace_all(path.parent, {path.name: save(tensors, metadata=told)})

    @classmethod
    def load(cls, path: Path, rows: Bits) -> Self:
        """The index that was saved, of these masks (masks, bytes). The file is mapped into memory, not read.

        Raises `DamagedFile` for a file that is not whole or is of other masks; `MaskIndex.of` makes it anew.
        """
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            told = header["__metadata__"]
            mapped = {
                name: np.memmap(
                    path, np.uint64, "c", 8 + length + header[name]["data_offsets"][0], tuple(header[name]["shape"])
                )
                for name in ("columns", "alive")
            }
            index = cls(int(told["width"]))
            index.features = np.array(json.loads(told["features"]))
            whole = all(zlib.crc32(tensor.data) == int(told[name]) for name, tensor in mapped.items())
            same = int(told["masks"]) == len(rows)
        except (KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
            raise DamagedFile(f"{path}: not an index of masks ({error}); build it anew with MaskIndex.of") from error
        if not whole or not same:
            found = "damaged" if not whole else f"of {told['masks']} masks, not of {len(rows)}"
            raise DamagedFile(f"{path}: {found}; build it anew with MaskIndex.of")
        index.rows, index._columns, index._alive = rows, np.asarray(mapped["columns"]), np.asarray(mapped["alive"])
        return index

    # -- asking it ---------------------------------------------------------------------------------------------------

    def nearest(self, mask: Bits, floor: int = 1) -> Found | None:
        """The stored mask that shares most features with `mask` (bytes,), if that are at least `floor`.

        Of equal ones the oldest among those that were compared.
        """
        n = int(np.bitwise_count(mask).sum())
        if not len(self.rows) or floor > n:
            return None
        has = np.unpackbits(mask, bitorder="little")[self.features].nonzero()[0]
        few, end = 64 + len(self.rows) // FEW, 512 + len(self.rows) // END
        spots = np.arange(-(-len(self.rows) // 64))  # the machine words in which there are masks left
        everywhere = len(spots)
        left, counts = self._alive[:everywhere], Counts(everywhere)
        best: Found | None = None
        at, goal = 0, FIRST
        while at < len(has):
            some = has[at:goal]
            at += len(some)
            if len(spots) < everywhere:
                counts.add(self._columns[some[:, None], spots], np.arange(len(some)))
            else:
                counts.add(self._columns, some)
            best = self._better(mask, best, places(counts.most(left), spots)[:few])
            wanted = max(floor, best.overlap if best else 0)
            left = counts.reached(cutoff(at, wanted, n)) & left
            if int(np.bitwise_count(left).sum()) <= end:
                break
            (kept,) = left.nonzero()
            if len(kept) <= len(spots) // 4:
                counts, spots, left = counts.at(kept), spots[kept], left[kept]
            goal = max(at * 3 // 2, enough(wanted / n, n / self.width))
            goal += -goal % 8  # so many are added at once
        best = self._better(mask, best, places(left, spots))
        return best if best is not None and best.overlap >= floor else None

    def _better(self, mask: Bits, best: Found | None, which: Places) -> Found | None:
        """The best of what was found and of these masks, compared in full."""
        if len(which):
            found = shared(self.rows, which, mask)
            i = int(found.argmax())
            new = Found(int(which[i]), int(found[i]))
            if best is None or (new.overlap, -new.which) > (best.overlap, -best.which):
                return new
        return best


@functools.lru_cache(maxsize=4096)
def cutoff(k: int, shared: int, active: int) -> int:
    """The least x that a mask with `shared` of `active` features has of `k` random ones of these, but for the risk."""
    most, least = min(k, shared), max(0, k - (active - shared))
    p = ways(shared, least) + ways(active - shared, k - least) - ways(active, k)  # log P(x), from x = least on
    below = 0.0
    for x in range(least, most):
        below += math.exp(p)
        if below > RISK:
            return x
        p += math.log((shared - x) * (k - x) / ((x + 1) * (active - shared - k + x + 1)))
    return most


def ways(among: int, some: int) -> float:
    """log C(among, some)"""
    return math.lgamma(among + 1) - math.lgamma(some + 1) - math.lgamma(among - some + 1)


def enough(f: float, chance: float) -> int:
    """About so many random features tell masks that share the fraction `f` from those that share `chance`.

    As many as put six standard deviations of the one and three of the other between them.
    """
    if f <= chance:
        return SAMPLE
    apart = 6 * math.sqrt(f * (1 - f)) + 3 * math.sqrt(chance * (1 - chance))
    return min(SAMPLE, math.ceil((apart / (f - chance)) ** 2))
