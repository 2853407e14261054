"""MaskIndex: the nearest of very many stored masks, exactly, while most of them are never read.

The question is which stored mask shares most features with a query of N features, if any shares at least a floor of them.
The index keeps, of a random sample of the features, a bitmap over all masks each. Adding up the bitmaps of the sampled
features that the query has counts, for all masks at once and 64 in a machine word, how many of k random features of the
query each mask has. A mask that shares a fraction f of the N has c or fewer of them with probability at most

    exp(-k KL(c/k || f))                        (Hoeffding 1963, theorems 1 and 4; without replacement too)

so those with fewer than a cutoff are dropped at a risk of `RISK` a query, and the few that are left are compared in full.
The best one seen raises the floor, hence a query that has a near mask is answered after a few dozen bitmaps; one that has
none needs the more, the lower the floor is, and in the worst case all masks are compared.
"""

import json
import math
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from errata import disk
from errata.errors import DamagedFile

RISK = 1e-9
"""The probability, over the index's own sample, that a query misses the nearest mask."""
SAMPLE = 1024
"""Features that are kept as bitmaps: as much again as 7 % of masks of 14,336 bits."""
GRADES = 64
"""Fractions are rounded down to this many steps, so that cutoffs are worked out once."""
FIRST = 24
"""Bitmaps that are added up before the first look at what is left."""
FEW = 4096
"""Of so many masks one may be left: comparing it in full then costs less than another look."""
WORDS = 2048
"""Machine words of a bitmap that are worked on at once: all counters of so many fit a core's cache."""

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
        if not len(self.rows):
            return None
        has = np.unpackbits(mask, bitorder="little")[self.features].nonzero()[0]
        n = int(np.bitwise_count(mask).sum())
        words = -(-len(self.rows) // 64)
        parts = [slice(at, min(at + WORDS, words)) for at in range(0, words, WORDS)]
        counters = [Counter(part.stop - part.start) for part in parts]
        alive = self._alive[:words]
        few = 64 + len(self.rows) // FEW
        best: Found | None = None
        left = alive
        at, goal = 0, FIRST
        while at < len(has):
            some = has[at:goal]
            for counter, part in zip(counters, parts, strict=True):
                counter.add(self._columns[some, part])
            counts = [counter.digits() for counter in counters]
            best = self._better(mask, best, _places(_most(counts, [left[part] for part in parts]))[:few])
            wanted = max(floor, best.overlap if best else 0)
            f = min(wanted * GRADES // n, GRADES) / GRADES
            at += len(some)
            least = cutoff(at, f)
            left = np.concatenate([at_least(count, least) for count in counts]) & alive
            if int(np.bitwise_count(left).sum()) <= few:
                break
            goal = max(at * 3 // 2, enough(f, n / self.width))
        best = self._better(mask, best, _places(left))
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
    """How many of the bitmaps that were added have a bit, for every bit at once: numbers in binary, one digit a bitmap."""

    def __init__(self, words: int) -> None:
        self._digits: list[Words] = []
        """Of each digit, (at most 2, words) bitmaps whose sum it is."""
        self._words = words

    def add(self, bitmaps: Words, digit: int = 0) -> None:
        """Count these bitmaps (some, words). Three of a digit make one of that digit and one of the next."""
        if digit == len(self._digits):
            self._digits.append(np.zeros((0, self._words), dtype=np.uint64))
        rows = np.concatenate([self._digits[digit], bitmaps])
        carries = []
        while len(rows) > 2:
            third = len(rows) // 3
            a, b, c = rows[:third], rows[third : 2 * third], rows[2 * third : 3 * third]
            either = a ^ b
            carry = either & c
            carry |= a & b
            either ^= c
            carries.append(carry)
            rows = either if len(rows) == 3 * third else np.concatenate([either, rows[3 * third :]])
        self._digits[digit] = rows
        if carries:
            self.add(np.concatenate(carries), digit + 1)

    def digits(self) -> list[Words]:
        """The counts, one bitmap a digit, the lowest first."""
        found, carry = [], None
        for rows in self._digits:
            bits = [*rows] if carry is None else [*rows, carry]
            while len(bits) < 3:
                bits.append(np.zeros(self._words, dtype=np.uint64))
            a, b, c = bits
            found.append(a ^ b ^ c)
            carry = a & b | (a ^ b) & c
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


@lru_cache(maxsize=4096)
def cutoff(k: int, f: float) -> int:
    """The least c that a mask which shares the fraction `f` has of `k` random features, but for the risk."""
    limit = math.log(1 / RISK)
    c = 0
    while c < f * k and k * _divergence(c / k, f) > limit:
        c += 1
    return c


@lru_cache(maxsize=4096)
def enough(f: float, chance: float) -> int:
    """About so many random features tell masks that share the fraction `f` from those that share `chance`."""
    for k in range(FIRST, SAMPLE, 8):
        if cutoff(k, f) > chance * k + 3 * math.sqrt(k * chance * (1 - chance)):
            return k
    return SAMPLE


def _divergence(p: float, q: float) -> float:
    """KL(p || q) of two coins."""
    if q >= 1:
        return 0.0 if p >= 1 else math.inf
    first = p * math.log(p / q) if p else 0.0
    return first + ((1 - p) * math.log((1 - p) / (1 - q)) if p < 1 else 0.0)


def _places(bits: Words) -> NDArray[np.int64]:
    """Which bits are set."""
    (words,) = bits.nonzero()
    inside = np.unpackbits(bits[words].view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    row, bit = inside.nonzero()
    return words[row] * 64 + bit


def words(rows: Bits) -> NDArray[Any]:
    """Rows of bytes as rows of the largest words that fit."""
    width = rows.shape[1]
    kind = next(kind for kind in (np.uint64, np.uint32, np.uint16, np.uint8) if width % np.dtype(kind).itemsize == 0)
    return np.ascontiguousarray(rows).view(kind)
