"""Bitmaps, added up: how many of some bitmaps have a bit, for every bit at once and 64 in a machine word.

A count is a number in binary, and its digits lie in as many bitmaps, one a digit. Where two bitmaps are added to the digit
that is there, the sum is a digit again and a carry for the next (a full adder, five operations on a word); n bitmaps take
little more than n of these, whatever the counts come to.

With Numba (`pip install 'errata[index]'`) all of this is compiled, when it is first asked for, which takes two or three
seconds; without, NumPy does the same in two to four times as long.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
Words = NDArray[np.uint64]
Places = NDArray[np.int64]

WORDS = 8192
"""Machine words of a bitmap that NumPy works on at once: all counts of so many fit a core's second cache."""
BLOCK = 2048
"""The same where it is compiled: long enough runs of a bitmap that they are fetched ahead."""


class Compiled(NamedTuple):
    """What Numba makes of the functions below."""

    add: Callable[[Words, Places, Words, int], None]
    turn: Callable[[Bits, Places, Words], None]
    shared: Callable[[Words, Places, Words], Places]


@functools.cache
def compiled() -> Compiled | None:
    """The compiled functions; None where Numba is not installed."""
    if importlib.util.find_spec("numba") is None:
        return None
    import numba

    fast = numba.njit(nogil=True)
    return Compiled(fast(_add), fast(_turn), fast(_shared))


class Counts:
    """How many of the bitmaps that were added have each bit."""

    def __init__(self, words: int) -> None:
        """Nothing counted yet, of bitmaps of so many words."""
        self._added, self._digits = 0, np.zeros((1, words), dtype=np.uint64)

    def add(self, bitmaps: Words, which: Places) -> None:
        """Count these of the bitmaps (all, at least so many words)."""
        self._added += len(which)
        more = self._added.bit_length() - len(self._digits)
        if more > 0:
            self._digits = np.pad(self._digits, ((0, more), (0, 0)))
        fast = compiled()
        if fast:
            fast.add(bitmaps, which, self._digits, BLOCK)
            return
        words = self._digits.shape[1]
        for at in range(0, words, WORDS):
            part = slice(at, min(at + WORDS, words))
            adder = Adder(self._digits[:, part])
            for i in which:
                adder.add(bitmaps[i, part])
            self._digits[:, part] = adder.digits(len(self._digits))

    def at(self, kept: Places) -> Self:
        """The counts in these words alone, to go on from."""
        some = type(self)(0)
        some._added, some._digits = self._added, np.ascontiguousarray(self._digits[:, kept])
        return some

    def reached(self, count: int) -> Words:
        """Where it is `count` or more: (words,)."""
        equal, more = ~np.zeros_like(self._digits[0]), np.zeros_like(self._digits[0])
        if count >= 1 << len(self._digits):
            return more
        for place in reversed(range(len(self._digits))):
            if count >> place & 1:
                equal &= self._digits[place]
            else:
                more |= equal & self._digits[place]
                equal &= ~self._digits[place]
        return more | equal

    def most(self, among: Words) -> Words:
        """Where it is largest, of some places: (words,) -> (words,)."""
        for digit in reversed(self._digits):
            narrower = among & digit
            if narrower.any():
                among = narrower
        return among


class Adder:
    """Adds bitmaps to digits that are there, in NumPy.

    A bitmap is added when there are two of its digit: they and the digit's own make that digit anew and one of the next.
    """

    def __init__(self, digits: Words) -> None:
        """Go on from these counts, (digits, words), at least one digit; they are not changed."""
        self._digits = [digit.copy() for digit in digits]
        self._waiting: list[Words | None] = [None] * len(self._digits)
        """Of each digit, the bitmap that waits for a second one."""
        self._either = np.empty_like(self._digits[0])

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

    def digits(self, count: int) -> list[Words]:
        """The counts, one bitmap a digit, the lowest first; all of them fit `count` digits."""
        found, carry = [], None
        for own, waiting in zip(self._digits, self._waiting, strict=True):
            some = [bits for bits in (own, waiting, carry) if bits is not None]
            found.append(functools.reduce(np.bitwise_xor, some))
            if len(some) == 3:
                a, b, c = some
                carry = a & b | (a ^ b) & c
            else:
                carry = some[0] & some[1] if len(some) == 2 else None
        found += [] if carry is None else [carry]
        return (found + [np.zeros_like(self._either)] * count)[:count]


def turned(rows: Bits, features: Places) -> Words:
    """Rows of packed bits as bitmaps of these features over all rows: (rows, bytes) -> (features, words)."""
    bitmaps = np.zeros((len(features), -(-len(rows) // 64)), dtype=np.uint64)
    fast = compiled()
    if fast:
        fast.turn(rows, features, bitmaps)
        return bitmaps
    for at in range(0, len(rows), 64 * 64):
        part = rows[at : at + 64 * 64]
        bits = part[:, features // 8] >> (features % 8).astype(np.uint8) & 1
        packed = np.packbits(bits, axis=0, bitorder="little").T
        bitmaps[:, at // 64 : at // 64 + 64].view(np.uint8)[:, : packed.shape[1]] = packed
    return bitmaps


def shared(rows: Bits, which: Places, row: Bits) -> Places:
    """How many bits these of the rows (all, bytes) have in common with one (bytes,): (which,)."""
    fast = compiled()
    if fast:
        return fast.shared(words(rows), which, words(row[None])[0])
    found = [np.zeros(0, dtype=np.int64)]
    for at in range(0, len(which), 4096):
        both = words(rows[which[at : at + 4096]] & row)
        found.append(np.bitwise_count(both).sum(axis=1, dtype=np.int64))
    return np.concatenate(found)


def places(bits: Words, spots: Places) -> Places:
    """Which bits are set in these words, which are the words at `spots` of all."""
    (some,) = bits.nonzero()
    inside = np.unpackbits(bits[some].view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    row, bit = inside.nonzero()
    return spots[some[row]] * 64 + bit


def words(rows: Bits) -> NDArray[Any]:
    """Rows of bytes as rows of the largest words that fit."""
    width = rows.shape[1]
    kind = next(kind for kind in (np.uint64, np.uint32, np.uint16, np.uint8) if width % np.dtype(kind).itemsize == 0)
    return np.ascontiguousarray(rows).view(kind)


# -- what Numba compiles -------------------------------------------------------------------------------------------------


def _add(bitmaps: Words, which: Places, digits: Words, block: int) -> None:
    """Add the bitmaps to the digits, eight at a time: four full adders of ones, two of twos, one of fours, and a carry."""
    carry = np.empty(block, dtype=np.uint64)
    eights = len(which) // 8 * 8 if len(digits) > 3 else 0
    for at in range(0, digits.shape[1], block):
        n = min(block, digits.shape[1] - at)
        ones, twos, fours = digits[0, at : at + n], digits[1, at : at + n], digits[2, at : at + n]
        for i in range(0, eights, 8):
            a, b = bitmaps[which[i], at : at + n], bitmaps[which[i + 1], at : at + n]
            c, d = bitmaps[which[i + 2], at : at + n], bitmaps[which[i + 3], at : at + n]
            e, f = bitmaps[which[i + 4], at : at + n], bitmaps[which[i + 5], at : at + n]
            g, h = bitmaps[which[i + 6], at : at + n], bitmaps[which[i + 7], at : at + n]
            for w in range(n):
                one, two, four = ones[w], twos[w], fours[w]
                either = one ^ a[w]
                first = (one & a[w]) | (either & b[w])
                one = either ^ b[w]
                either = one ^ c[w]
                second = (one & c[w]) | (either & d[w])
                one = either ^ d[w]
                either = two ^ first
                third = (two & first) | (either & second)
                two = either ^ second
                either = one ^ e[w]
                first = (one & e[w]) | (either & f[w])
                one = either ^ f[w]
                either = one ^ g[w]
                second = (one & g[w]) | (either & h[w])
                ones[w] = either ^ h[w]
                either = two ^ first
                last = (two & first) | (either & second)
                twos[w] = either ^ second
                either = four ^ third
                carry[w] = (four & third) | (either & last)
                fours[w] = either ^ last
            for place in range(3, len(digits)):
                digit = digits[place, at : at + n]
                for w in range(n):
                    own = digit[w]
                    digit[w] = own ^ carry[w]
                    carry[w] &= own
        for i in range(eights, len(which)):
            a = bitmaps[which[i], at : at + n]
            for w in range(n):
                carry[w] = a[w]
            for place in range(len(digits)):
                digit = digits[place, at : at + n]
                for w in range(n):
                    own = digit[w]
                    digit[w] = own ^ carry[w]
                    carry[w] &= own


def _turn(rows: Bits, features: Places, bitmaps: Words) -> None:
    """Set the bits of `bitmaps` that the rows have."""
    for at in range(bitmaps.shape[1]):
        n = min(64, len(rows) - 64 * at)
        for f in range(len(features)):
            byte, bit = features[f] // 8, features[f] % 8
            word = np.uint64(0)
            for r in range(n):
                word |= np.uint64((rows[64 * at + r, byte] >> bit) & 1) << np.uint64(r)
            bitmaps[f, at] = word


def _shared(rows: Words, which: Places, row: Words) -> Places:
    """Count the bits in common by adding up pairs of bits, then of pairs, then of fours, inside each word."""
    found = np.empty(len(which), dtype=np.int64)
    for i in range(len(which)):
        count = np.int64(0)
        for w in range(len(row)):
            x = np.uint64(rows[which[i], w] & row[w])
            x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
            x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
            x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
            count += np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))
        found[i] = count
    return found
