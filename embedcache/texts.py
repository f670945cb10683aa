"""Many short texts in one array: a sequence that makes each `str` when it is asked for, and hashes
to look them up by.

Ten million ids as objects of Python take 1.5 GB, and in this form 250 MB.
"""

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice, pairwise
from typing import Any, Self, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
Bool = NDArray[np.bool_]

BLOCK_TEXTS = 1 << 13  # taken apart, hashed or compared at a time
BLOCK_COPIED = 1 << 11  # whose bytes are picked at a time: 24 bytes of memory for each
MANY = 1 << 20  # more texts than that are kept in one array
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that nothing is lost by it
_FIRST_BYTES = np.array([2 ** (8 * n) - 1 for n in range(9)], np.uint64)


class _MadeWhenAsked(Sequence[str]):
    """Texts that are made when they are asked for: a slice is a list, and any sequence of the same
    texts is equal."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(other) == len(self) and all(map(str.__eq__, self, other))

    @overload
    def __getitem__(self, at: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: SupportsIndex | slice) -> str | list[str]:
        if not isinstance(at, slice):
            return self._one(range(len(self))[at])
        rows = range(len(self))[at]
        in_a_run = rows and rows.step == 1
        return self._run(rows.start, rows.stop) if in_a_run else [*map(self._one, rows)]

    def _one(self, i: int) -> str:
        """The i-th text; 0 <= i < n."""
        raise NotImplementedError

    def _run(self, start: int, stop: int) -> list[str]:
        """The texts from one to before another."""
        return [self._one(i) for i in range(start, stop)]


class Texts(_MadeWhenAsked):
    """n texts: text: their UTF-8 bytes. offsets: (n + 1,) int64, where each begins, and the end."""

    def __init__(self, offsets: I64, text: U8) -> None:
        self.offsets = offsets
        self.text = text

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """These texts, taken one after another; a lone surrogate becomes bytes that no stored text
        has."""
        made, rest = Growing(), iter(texts)
        while some := list(islice(rest, BLOCK_TEXTS)):
            made.add(some)
        return cls(*made.arrays())

    @classmethod
    def joined(cls, parts: "Sequence[Texts]") -> Self:
        """The texts of several, one after another."""
        offsets = np.zeros(sum(map(len, parts)) + 1, np.int64)
        text = np.empty(sum(len(part.text) for part in parts), np.uint8)
        n = at = 0
        for part in parts:
            offsets[n : n + len(part) + 1] = part.offsets + at
            text[at : at + len(part.text)] = part.text
            n, at = n + len(part), at + len(part.text)
        return cls(offsets, text)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def _one(self, i: int) -> str:
        raw = self.text[self.offsets[i] : self.offsets[i + 1]].tobytes()
        return raw.decode("utf-8", "surrogatepass")

    def _run(self, start: int, stop: int) -> list[str]:
        return [*Texts(self.offsets[start : stop + 1], self.text)]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK_TEXTS):
            cuts = self.offsets[start : start + BLOCK_TEXTS + 1]
            raw = self.text[cuts[0] : cuts[-1]].tobytes()
            ends = (cuts - cuts[0]).tolist()
            yield from (raw[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(ends))

    def __repr__(self) -> str:
        return f"<Texts: {len(self):,}>"

    def take(self, rows: I64) -> "Texts":
        """Some of the texts, in this order."""
        sizes = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(sizes, out=offsets[1:])
        text = np.empty(offsets[-1], np.uint8)
        for start in range(0, len(rows), BLOCK_COPIED):
            part = slice(start, start + BLOCK_COPIED)
            cuts = offsets[start : start + BLOCK_COPIED + 1]
            text[cuts[0] : cuts[-1]] = self.text[places(self.offsets[rows[part]], sizes[part])]
        return Texts(offsets, text)

    def hashes(self) -> U64:
        """A number for each text, (n,); two texts rarely have the same."""
        found = np.empty(len(self), np.uint64)
        for start in range(0, len(self), BLOCK_TEXTS):
            cuts = self.offsets[start : start + BLOCK_TEXTS + 1]
            raw = np.concatenate([self.text[cuts[0] : cuts[-1]], np.zeros(8, np.uint8)])
            words = np.ndarray(len(raw) - 7, "<u8", raw, strides=(1,))  # from each byte on
            found[start : start + BLOCK_TEXTS] = _hashed(words, cuts[:-1] - cuts[0], np.diff(cuts))
        return found

    def same(self, rows: I64, other: "Texts", others: I64) -> Bool:
        """Which of k texts are the same as k of another, byte by byte, (k,)."""
        sizes = self.offsets[rows + 1] - self.offsets[rows]
        equal: Bool = sizes == other.offsets[others + 1] - other.offsets[others]
        at = np.flatnonzero(equal)
        for start in range(0, len(at), BLOCK_COPIED):
            some = at[start : start + BLOCK_COPIED]
            mine = self.text[places(self.offsets[rows[some]], sizes[some])]
            theirs = other.text[places(other.offsets[others[some]], sizes[some])]
            wrong = np.concatenate([[0], np.cumsum(mine != theirs)])
            ends = np.concatenate([[0], np.cumsum(sizes[some])])
            equal[some] = wrong[ends[1:]] == wrong[ends[:-1]]
        return equal


class Growing:
    """Texts to which more are added."""

    def __init__(self) -> None:
        self._sizes = [np.zeros(1, np.int64)]
        self._text = bytearray()

    def add(self, texts: Sequence[str]) -> None:
        self.add_bytes([text.encode("utf-8", "surrogatepass") for text in texts])

    def add_bytes(self, encoded: Sequence[bytes]) -> None:
        self._sizes.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        self._text += b"".join(encoded)

    def arrays(self) -> tuple[I64, U8]:
        """offsets and text of `Texts`; nothing may be added afterwards."""
        offsets = np.concatenate(self._sizes)
        self._sizes = []
        np.cumsum(offsets, out=offsets)
        return offsets, np.frombuffer(self._text, np.uint8)


class Below(_MadeWhenAsked):
    """n paths: texts that are relative to a folder, or absolute."""

    def __init__(self, folder: str, texts: Sequence[str]) -> None:
        self._prefix = os.path.join(folder, "")
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def _one(self, i: int) -> str:
        return self._path(self._texts[i])

    def _run(self, start: int, stop: int) -> list[str]:
        return [self._path(text) for text in self._texts[start:stop]]

    def __iter__(self) -> Iterator[str]:
        return map(self._path, self._texts)

    def __repr__(self) -> str:
        return f"<Below {self._prefix}: {len(self):,}>"

    def take(self, rows: I64) -> "Below":
        """Some of the paths, in this order."""
        return Below(self._prefix, some_of(self._texts, rows))

    def _path(self, text: str) -> str:
        return text if text[:1] == os.sep else self._prefix + text


def repeated(texts: Texts) -> I64:
    """The rows whose text occurs more than once, ascending; rarely a few others."""
    hashes = texts.hashes()
    in_order = np.sort(hashes)
    again = in_order[1:][in_order[1:] == in_order[:-1]]
    return np.flatnonzero(np.isin(hashes, again)) if len(again) else np.empty(0, np.int64)


def met(ascending: U64, hashes: U64) -> tuple[I64, U64, I64]:
    """Those of n hashes that are among some others, which ascend: (their rows in the order of their
    hashes, the hashes, where each begins among the others)."""
    order = np.argsort(hashes, kind="stable")  # in this order neighbours share cache lines
    hashes = hashes[order]
    at = np.minimum(np.searchsorted(ascending, hashes), max(0, len(ascending) - 1))
    some = np.flatnonzero(ascending[at] == hashes) if len(ascending) else at[:0]
    return order[some], hashes[some], at[some]


def last_of(
    texts: Texts, hashes: U64, rows: NDArray[Any], asked: Texts, wanted: U64, at: I64
) -> I64:
    """The last row of each of k texts, asked[at], whose hashes are `wanted`; -1 for none: (k,).

    hashes, rows: of some texts the hash, ascending, and whose it is; of one hash ascending.
    """
    found = np.full(len(at), -1, np.int64)
    place = np.searchsorted(hashes, wanted, "right") - 1
    pending = np.arange(len(at))
    while len(pending := pending[place[pending] >= 0]):
        pending = pending[hashes[place[pending]] == wanted[pending]]
        here = rows[place[pending]].astype(np.int64)
        same = texts.same(here, asked, at[pending])
        found[pending[same]] = here[same]
        pending = pending[~same]  # another text with this hash
        place[pending] -= 1
    return found


def few_as_tuple(texts: Sequence[str]) -> Sequence[str]:
    """A tuple, where there are not many; else the texts as they are."""
    return texts if len(texts) > MANY else tuple(texts)


def some_of(texts: Sequence[str], rows: I64) -> Sequence[str]:
    """Some of the texts, in this order, in the form in which they are."""
    if isinstance(texts, Texts | Below):
        return texts.take(rows)
    return tuple([texts[i] for i in rows.tolist()])


class Repeats(_MadeWhenAsked):
    """A few texts, each so many times in a row: {text: how often}."""

    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts
        self._names = list(counts)
        self._ends = [*accumulate(counts.values())]

    def spans(self) -> Iterator[tuple[str, slice]]:
        """Each text, and where it stands."""
        for name, end in zip(self._names, self._ends, strict=True):
            yield name, slice(end - self._counts[name], end)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _one(self, i: int) -> str:
        return self._names[bisect_right(self._ends, i)]

    def __iter__(self) -> Iterator[str]:
        for name, n in self._counts.items():
            for _ in range(n):
                yield name

    def __repr__(self) -> str:
        return f"<Repeats: {self._counts}>"


def _hashed(words: U64, starts: I64, sizes: I64) -> U64:
    """A number for each of n texts. words: the eight bytes from each byte on."""
    found = sizes.astype(np.uint64) * _FACTOR
    for done in range(0, int(sizes.max(initial=0)), 8):
        at = np.flatnonzero(sizes > done)
        n_bytes = np.minimum(sizes[at] - done, 8)
        mixed = (found[at] ^ (words[starts[at] + done] & _FIRST_BYTES[n_bytes])) * _FACTOR
        found[at] = mixed ^ mixed >> np.uint64(32)
    return found


def places(starts: I64, sizes: I64) -> NDArray[Any]:
    """The numbers from each of n starts on, so many of each, one after another."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + sizes, sizes)
