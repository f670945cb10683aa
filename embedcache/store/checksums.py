"""CRC32C of bytes and of rows, what it says of one wrong byte, and sha256 of files."""

import os
from collections.abc import Iterator
from functools import cache
from hashlib import sha256

import google_crc32c
import numpy as np
from numpy.typing import NDArray

U32 = NDArray[np.uint32]
CRC_BYTES = 4
_POLYNOMIAL = 0x82F63B78  # of CRC32C, reflected
_STRIDE = 4096


def crc32c(data: bytes | NDArray[np.generic], *, after: int = 0) -> int:
    """CRC32C of bytes, or of a C-contiguous array's bytes; after: that of what comes before."""
    return int(google_crc32c.extend(after, data))


def crc_of_rows(rows: NDArray[np.generic]) -> U32:
    """The CRC32C of each row of a C-contiguous matrix, (n,)."""
    # Rows as single items: a fifth less time than making an array of each.
    items = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).reshape(-1)
    return np.fromiter(map(google_crc32c.value, items), np.uint32, len(rows))


def hash_file(fd: int) -> tuple[str, int]:
    """sha256 and size of an open file, in bounded memory."""
    digest, offset = sha256(), 0
    while block := os.pread(fd, 4 << 20, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest(), offset


def one_wrong_byte(data: NDArray[np.uint8], crc: int) -> Iterator[tuple[int, int]]:
    """Where one byte of (n,) `data` may be wrong, if `crc` is right: (position, what to xor it by).

    A CRC is linear: how it differs tells for each position which change would explain that. Where
    more than one byte is wrong this may still propose a few places; the caller has better proof.
    """
    difference = np.uint32(crc32c(data) ^ crc)
    if not difference or not len(data):
        return
    # A byte that is wrong is a state of the register that has since seen as many zeros as bytes
    # come after it. Steps of one byte back, side by side from every _STRIDE-th position.
    step = min(_STRIDE, len(data))
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(step):
        bits = _one_byte_back(bits)
    states = [difference]
    for _ in range(-(-len(data) // step) - 1):
        ones = np.flatnonzero(states[-1] >> np.arange(32, dtype=np.uint32) & np.uint32(1))
        states.append(np.bitwise_xor.reduce(bits[ones]))
    front = np.array(states, np.uint32)
    for i in range(1, step + 1):
        front = _one_byte_back(front)
        for block in np.flatnonzero(front < 256).tolist():
            position = len(data) - (block * step + i)
            if position >= 0:
                yield position, int(front[block])


def _one_byte_back(states: U32) -> U32:
    """The CRC register's states before each took in a zero byte."""
    forward, back = _tables()
    first = back[states >> np.uint32(24)]
    before: U32 = (states ^ forward[first]) << np.uint32(8) | first
    return before


@cache
def _tables() -> tuple[U32, U32]:
    """What a byte does to the register, and which byte that was by the highest byte of it."""
    forward = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        forward = forward >> np.uint32(1) ^ np.uint32(_POLYNOMIAL) * (forward & np.uint32(1))
    back = np.empty(256, np.uint32)
    back[forward >> np.uint32(24)] = np.arange(256, dtype=np.uint32)
    return forward, back
