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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from errata import disk
from errata.errors import DamagedFile

RISK = 1e-9
"""The probability, over the index's own sample, that a look at what is left drops the nearest mask."""
SAMPLE = 1024
"""Features that are kept as bitmaps: as much again as 7 % of masks of 14,336 bits."""
FIRST = 48
"""Bitmaps that are added up before the first look at what is left: enough where the nearest mask shares .9 of the query."""
FEW = 4096
"""Of so many masks one may be left: comparing it in full then costs less than another look."""
WORDS = 8192
"""Machine words of a bitmap that are worked on at once: all counters of so many fit a core's second cache."""

Bits = NDArray[np.uint8]
Words = NDArray[np.uint64]


class Found(NamedTuple):
    """The nearest stored mask, and how many features it shares with the query."""

    which: int
    overlap: int


class MaskIndex:
    """Masks of `width` features, packed as `errata.masks.pack` does."""

    def __init__(self, width: int, sample: int = SAMPLE, seed: int = 0) -> None:
        order = np.random.default_rng(seed).permutation(width)
        self.width = width
        self.features: NDArray[np.int64] = order[:sample]
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
            room = max(words, 2 * self._columns.shape[1]) - self._columns.shape[1]
            self._columns = np.pad(self._columns, ((0, 0), (0, room)))
            self._alive = np.pad(self._alive, (0, room))
        start = known // 64 * 64  # the word that is half full is worked out anew
        for at in range(start, len(rows), 64 * WORDS):
            part = rows[at : at + 64 * WORDS]
            bits = part[:, self.features // 8] >> (self.features % 8).astype(np.uint8) & 1
            packed = np.packbits(bits, axis=0, bitorder="little").T
            words = -(-len(part) // 64)
            padded = np.zeros((len(self.features), words * 8), dtype=np.uint8)
            padded[:, : packed.shape[1]] = packed
            self._columns[:, at // 64 : at // 64 + words] = padded.view(np.uint64)
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
        index.rows, index._columns, index._alive = rows, mapped["columns"], mapped["alive"]
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
        few = 64 + len(self.rows) // FEW
        spots = np.arange(-(-len(self.rows) // 64))  # the machine words in which there are masks left
        everywhere = len(spots)
        left = self._alive[:everywhere]
        parts = [slice(at, min(at + WORDS, everywhere)) for at in range(0, everywhere, WORDS)]
        counters = [Counter.from_zero(part.stop - part.start) for part in parts]
        best: Found | None = None
        at, goal = 0, FIRST
        while at < len(has):
            some = has[at:goal]
            at += len(some)
            columns = (
                self._columns[some[:, None], spots] if len(spots) < everywhere else [self._columns[i] for i in some]
            )
            for counter, part in zip(counters, parts, strict=True):
                for column in columns:
                    counter.add(column[part])
            counts = [counter.digits() for counter in counters]
            best = self._better(mask, best, _places(_most(counts, [left[part] for part in parts]), spots)[:few])
            wanted = max(floor, best.overlap if best else 0)
            least = cutoff(at, wanted, n)
            left = np.concatenate([at_least(count, least) for count in counts]) & left
            if int(np.bitwise_count(left).sum()) <= few:
                break
            (kept,) = left.nonzero()
            if len(kept) <= len(spots) // 4:
                counters = [Counter([np.concatenate(digit)[kept] for digit in zip(*counts, strict=True)])]
                spots, left, parts = spots[kept], left[kept], [slice(None)]
            goal = max(at * 3 // 2, enough(wanted / n, n / self.width))
        best = self._better(mask, best, _places(left, spots))
        return best if best is not None and best.overlap >= floor else None

    def _better(self, mask: Bits, best: Found | None, places: NDArray[np.int64]) -> Found | None:
        """The best of what was found and of these masks, compared in full."""
        for at in range(0, len(places), 4096):
            some = places[at : at + 4096]
            shared = np.bitwise_count(words(self.rows[some] & mask)).sum(axis=1, dtype=np.int64)
            i = int(shared.argmax())
            new = Found(int(some[i]), int(shared[i]))
            if best is None or (new.overlap, -new.which) > (best.overlap, -best.which):
                best = new
        return best


class Counter:
    """How many of the bitmaps that were added have a bit, for every bit at once: numbers in binary, one digit a bitmap.

    A bitmap is added when there are two of its digit: they and the digit's own make that digit anew and one of the next.
    So n bitmaps take n additions of five operations, all in the same few buffers.
    """

    def __init__(self, digits: Sequence[Words]) -> None:
        """Go on from these counts, one bitmap (words,) a digit, at least one."""
        self._digits = list(digits)
        self._waiting: list[Words | None] = [None] * len(self._digits)
        """Of each digit, the bitmap that waits for a second one."""
        self._either = np.empty_like(self._digits[0])

    @classmethod
    def from_zero(cls, words: int) -> Self:
        """Nothing counted, in bitmaps of so many words."""
        return cls([np.zeros(words, dtype=np.uint64)])

    def add(self, bitmap: Words, digit: int = 0) -> None:
        """Count this bitmap (words,), which is kept, and not changed where it is of the lowest digit."""
        if digit == len(self._digits):
            self._digits.append(np.zeros_like(self._either))
            self._waiting.append(None)
        own, waiting = self._digits[digit], self._waiting[digit]
        if waiting is None:
            self._waiting[digit] = bitmap
            return
        self._waiting[digit] = None
        either = np.bitwise_xor(own, waiting, out=self._either)
        carry = np.bitwise_and(own, waiting, out=waiting if digit else None)
        np.bitwise_xor(either, bitmap, out=own)
        carry |= np.bitwise_and(either, bitmap, out=either)
        self.add(carry, digit + 1)

    def digits(self) -> list[Words]:
        """The counts, one bitmap a digit, the lowest first."""
        found, carry = [], None
        for own, waiting in zip(self._digits, self._waiting, strict=True):
            some = [bits for bits in (own, waiting, carry) if bits is not None]
            found.append(functools.reduce(np.bitwise_xor, some))
            if len(some) == 3:
                a, b, c = some
                carry = a & b | (a ^ b) & c
            else:
                carry = some[0] & some[1] if len(some) == 2 else None
        return found if carry is None else [*found, carry]


def at_least(digits: Sequence[Words], count: int) -> Words:
    """Where a number, given as one bitmap a digit, is `count` or more."""
    equal, more = ~np.zeros_like(digits[0]), np.zeros_like(digits[0])
    if count >= 1 << len(digits):
        return more
    for digit in reversed(range(len(digits))):
        if count >> digit & 1:
            equal &= digits[digit]
        else:
            more |= equal & digits[digit]
            equal &= ~digits[digit]
    return more | equal


def _most(parts: Sequence[Sequence[Words]], among: Sequence[Words]) -> Words:
    """Where the number is largest over all parts, of some places."""
    among = list(among)
    for digit in reversed(range(len(parts[0]))):
        narrower = [here & count[digit] for here, count in zip(among, parts, strict=True)]
        if any(here.any() for here in narrower):
            among = narrower
    return np.concatenate(among)


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


def _places(bits: Words, spots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which bits are set in these words, which are the words at `spots` of all."""
    (words,) = bits.nonzero()
    inside = np.unpackbits(bits[words].view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    row, bit = inside.nonzero()
    return spots[words[row]] * 64 + bit


def words(rows: Bits) -> NDArray[Any]:
    """Rows of bytes as rows of the largest words that fit."""
    width = rows.shape[1]
    kind = next(kind for kind in (np.uint64, np.uint32, np.uint16, np.uint8) if width % np.dtype(kind).itemsize == 0)
    return np.ascontiguousarray(rows).view(kind)
