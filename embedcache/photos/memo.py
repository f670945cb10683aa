"""Digests of files that were read before, by path, size and mtime_ns, in one npz file (no pickle).

The file is read and written in blocks, so that what is remembered of ten million files is never in
memory at once. Its arrays: `paths`, UTF-8 with a zero byte between two; `sizes` and `mtimes`, int64
(n,); `digests`, uint8 (n, 32).
"""

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from embedcache import disk, locks
from embedcache.errors import CacheError, Damaged
from embedcache.texts import Growing, Texts, last_of, met, places, some_of

MEMO = "digests.npz"
CLOCK_RESOLUTION_NS = 2_000_000_000
"""A file that changed this recently before it was read may change again within one tick of its
clock (FAT counts in two seconds), so its digest is not remembered."""

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

BLOCK_BYTES = 1 << 19  # of paths, read or written at a time
BLOCK_FILES = 1 << 13  # hashed at a time
_NAMES = ("paths", "sizes", "mtimes", "digests")
_NOT_WHOLE = (
    *(OSError, ValueError, KeyError, EOFError, Damaged),
    *(zipfile.BadZipFile, RuntimeError, struct.error, zlib.error),  # as zipfile says it
)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What was known of n files before they were looked at: their sizes and mtime_ns, both -1 for a
    file that is not known, (n,), and digests, (n, 32)."""

    sizes: I64
    mtimes: I64
    digests: U8


@dataclass(frozen=True, slots=True)
class _Block:
    """Some rows of the file. raw: the paths' bytes with a zero byte after each."""

    raw: U8
    names: Texts
    sizes: I64
    mtimes: I64
    digests: U8


class DigestMemo:
    """The digests that are remembered in a file, and those that were learned since.

    A lost or damaged file costs time and nothing else, so it is read leniently. Processes that
    write it at the same time merge what they learned, one after another.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._learned: dict[bytes, tuple[int, int, bytes]] = {}

    def recall(self, paths: Sequence[str]) -> Remembered:
        """What is remembered of n files."""
        n = len(paths)
        unknown = np.full(n, -1, np.int64)
        found = Remembered(unknown, unknown.copy(), np.zeros((n, 32), np.uint8))
        if self.path is None or not n or not os.path.lexists(self.path):
            return found
        hashes = np.empty(n, np.uint64)
        for start in range(0, n, BLOCK_FILES):
            part = slice(start, start + BLOCK_FILES)
            hashes[part] = _texts(paths[part]).hashes()
        rows = np.argsort(hashes, kind="stable").astype(np.uint32)
        hashes = hashes[rows]
        with self._stored() as stored:
            for block in _blocks(stored):
                order, theirs, at = met(hashes, block.names.hashes())
                at = at[np.flatnonzero(np.diff(at, prepend=-1))]
                at = places(at, np.searchsorted(hashes, hashes[at], "right") - at)
                at = at[np.argsort(rows[at])]  # paths one after another are read faster
                mine = rows[at].astype(np.int64)
                asked, every = _texts(some_of(paths, mine)), np.arange(len(at))
                row = last_of(block.names, theirs, order, asked, hashes[at], every)
                mine, row = mine[row >= 0], row[row >= 0]
                found.sizes[mine], found.mtimes[mine] = block.sizes[row], block.mtimes[row]
                found.digests[mine] = block.digests[row]
        return found

    def files_of(self, contents: U8) -> list[tuple[str, int]]:
        """The files that had one of (n, 32) contents when they were last read: (path, place).

        place: which of the contents. A file may have gone or changed since.
        """
        place = {row.tobytes(): k for k, row in enumerate(contents)}
        return [(name, place[content]) for name, content in self.files() if content in place]

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Every path that is remembered, with the digest that its file had."""
        with self._stored() as stored:
            for block in _blocks(stored):
                names = block.raw.tobytes().decode("utf-8", "surrogateescape").split("\0")
                yield from zip(names[:-1], map(bytes, block.digests), strict=True)

    def put(self, name: str, size: int, mtime_ns: int, digest: bytes, read_ns: int) -> None:
        """Remember `digest`, unless the file was so new at `read_ns` that it may change unnoticed.

        size, mtime_ns: from before the file was read.
        """
        if read_ns - mtime_ns > CLOCK_RESOLUTION_NS:
            self._learned[_encoded(name)] = (size, mtime_ns, digest)

    @property
    def has_learned(self) -> bool:
        """Whether there is something to write."""
        return bool(self._learned)

    def write(self) -> None:
        """Store what was learned; a full disk or a read-only folder is no error here."""
        if self.path is None or not self._learned:
            return
        lock = self.path.with_name(f".{self.path.name}.lock")
        with suppress(OSError), _locked(lock), self._stored() as old:
            kept = [self._not_learned(block) for block in _blocks(old)]
            with disk.replacing(self.path) as file, zipfile.ZipFile(file, "w") as new:
                for name in _NAMES:
                    self._write(new, name, old, kept)
            self._learned = {}

    @contextmanager
    def _stored(self) -> Iterator[zipfile.ZipFile | None]:
        """The file, every byte of it checked; None where it is not there, or not whole."""
        with ExitStack() as stack:
            stored = None
            if self.path is not None:
                with suppress(*_NOT_WHOLE):
                    opened = stack.enter_context(os.fdopen(disk.open_plain(str(self.path)), "rb"))
                    there = stack.enter_context(zipfile.ZipFile(opened))
                    stored = there if _is_whole(there) else None
            yield stored

    def _not_learned(self, block: _Block) -> tuple[Bool, int]:
        """Which rows of a block are still true, and how many bytes of `raw` they take."""
        fresh = Growing()
        fresh.add_bytes([*self._learned])
        stay: Bool = ~np.isin(block.names.hashes(), Texts(*fresh.arrays()).hashes())
        offsets, text = block.names.offsets, block.names.text
        for i in np.flatnonzero(~stay).tolist():
            stay[i] = text[offsets[i] : offsets[i + 1]].tobytes() not in self._learned
        return stay, int(_with_ends(stay, block).sum())

    def _write(
        self,
        new: zipfile.ZipFile,
        name: str,
        old: zipfile.ZipFile | None,
        kept: Sequence[tuple[Bool, int]],
    ) -> None:
        """Write one of the arrays: the rows `kept` of each old block, and the learned."""
        sizes, mtimes, digests = zip(*self._learned.values(), strict=True)
        learned: NDArray[Any] = {
            "paths": np.frombuffer(b"\0".join(self._learned), np.uint8),
            "sizes": np.array(sizes, "<i8"),
            "mtimes": np.array(mtimes, "<i8"),
            "digests": np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
        }[name]
        n_kept = sum(n_bytes if name == "paths" else int(stay.sum()) for stay, n_bytes in kept)
        header = {
            "descr": np.lib.format.dtype_to_descr(learned.dtype),
            "fortran_order": False,
            "shape": (n_kept + len(learned), *learned.shape[1:]),
        }
        with new.open(f"{name}.npy", "w", force_zip64=True) as out:
            np.lib.format.write_array_header_1_0(out, header)
            for block, (stay, _) in zip(_blocks(old), kept, strict=True):
                if name == "paths":
                    out.write(block.raw[_with_ends(stay, block)].tobytes())
                else:
                    out.write(getattr(block, name)[stay].tobytes())
            out.write(learned.tobytes())


def _with_ends(stay: Bool, block: _Block) -> Bool:
    """Which bytes of a block's `raw` belong to some of its rows."""
    return np.repeat(stay, np.diff(block.names.offsets) + 1)


def _blocks(stored: zipfile.ZipFile | None) -> Iterator[_Block]:
    """The rows of a file that is whole, block by block; none of no file."""
    if stored is None:
        return
    with ExitStack() as stack:
        paths, *others = (stack.enter_context(_opened(stored, name)[0]) for name in _NAMES)
        rest, last = b"", False
        while not last:
            some = paths.read(BLOCK_BYTES)
            last = not some
            text = rest + (some or b"\0")
            cut = text.rfind(b"\0") + 1
            raw, rest = np.frombuffer(text[:cut], np.uint8), text[cut:]
            names = _separated(raw)
            k = len(names)
            sizes, mtimes = (np.frombuffer(one.read(8 * k), "<i8") for one in others[:2])
            digests = np.frombuffer(others[2].read(32 * k), np.uint8).reshape(-1, 32)
            yield _Block(raw, names, sizes, mtimes, digests)


def absolute(path: str, here: str) -> str:
    """The path's name in the memo, of a process whose folder is `here`."""
    return path if path[:1] == os.sep else os.path.join(here, path)


def _encoded(path: str) -> bytes:
    """A path as the memo has it."""
    return path.encode("utf-8", "surrogateescape")


def _texts(paths: Sequence[str]) -> Texts:
    """Paths as the memo has them: absolute. One that cannot be a path is empty."""
    here = os.getcwd()
    names = [path if path[:1] == os.sep else os.path.join(here, path) for path in paths]
    text = "\0".join([*names, ""])
    if text.count("\0") > len(names):
        text = "\0".join([*("" if "\0" in name else name for name in names), ""])
    return _separated(np.frombuffer(_encoded(text), np.uint8))


def _separated(raw: U8) -> Texts:
    """Texts that have a zero byte after each."""
    ends = np.flatnonzero(raw == 0)
    offsets = np.append(np.int64(0), ends - np.arange(len(ends)))
    return Texts(offsets, raw[raw != 0])


def _is_whole(stored: zipfile.ZipFile) -> bool:
    """Whether the arrays fit each other; reads every byte, so that zipfile checks it."""
    n_zeros, lengths = 0, []
    for name in _NAMES:
        file, shape, fits = _opened(stored, name)
        with file:
            lengths.append(shape[0] if shape else -1)
            if not fits:
                return False
            while some := file.read(BLOCK_BYTES):
                n_zeros += some.count(b"\0") if name == "paths" else 0
    return lengths[1:] == [n_zeros + 1] * 3


def _opened(stored: zipfile.ZipFile, name: str) -> tuple[IO[bytes], tuple[int, ...], bool]:
    """One of the arrays: its bytes as a file, its shape, and whether it is what the memo stores."""
    file = stored.open(f"{name}.npy")
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{name} has another header")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    inner = (32,) if name == "digests" else ()
    fits = (
        dtype == np.dtype("<i8" if name in ("sizes", "mtimes") else "u1")
        and len(shape) == 1 + len(inner)
        and shape[1:] == inner
        and not (is_fortran and inner)
        and stored.getinfo(f"{name}.npy").file_size - file.tell()
        == math.prod(shape) * dtype.itemsize
    )
    return file, shape, fits


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; without the lock it costs what two writers would merge."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK  # it may be no file of ours
    with os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0) as file:
        with suppress(OSError, CacheError):
            locks.take(file.fileno(), path)
        yield
