"""The columns of each kind of segment: names, types, lengths, and texts as offsets and bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import Damaged

U8 = NDArray[np.uint8]
Columns = dict[str, NDArray[Any]]
OK, FAILED = 1, 2


def column_path(name: str, n_dims: int) -> str:
    """Where a small array's one chunk lies in its segment."""
    return f"{name}/c" + "/0" * n_dims


def join_text(texts: list[str]) -> tuple[NDArray[np.int64], U8]:
    """(offsets (n+1,), UTF-8 bytes) of n texts."""
    encoded = [text.encode("utf-8", "backslashreplace") for text in texts]
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    return offsets, np.frombuffer(b"".join(encoded), dtype=np.uint8)


def split_text(offsets: NDArray[np.int64], text: U8, where: Path) -> list[str]:
    """Undo `join_text`; Damaged for offsets that do not fit or bytes that are not UTF-8."""
    check_text(offsets, text, where)
    raw, cuts = text.tobytes(), offsets.tolist()
    return [raw[a:b].decode() for a, b in pairwise(cuts)]


def check_text(offsets: NDArray[np.int64], text: U8, where: Path) -> None:
    """Damaged for offsets that do not fit their text, or bytes that are not UTF-8."""
    if offsets[0] != 0 or offsets[-1] != len(text) or bool((np.diff(offsets) < 0).any()):
        raise Damaged(f"{where}: its text offsets do not fit its text")
    inside = text[offsets[offsets < len(text)]] & 0xC0 == 0x80  # a text that begins in a character
    try:
        text.tobytes().decode()
    except UnicodeDecodeError:
        inside = np.ones(1, np.bool_)
    if inside.any():
        raise Damaged(f"{where} holds text that is not UTF-8: refused") from None


ABSENT = 0

Kind = Literal["vectors", "faces", "photos"]


@dataclass(frozen=True, slots=True)
class Column:
    """A small array of a segment: one Zarr chunk. dtype is Zarr's name; tail the inner shape."""

    dtype: str
    tail: tuple[int, ...] = ()


_LEDGER = {"reason_offset": Column("int64"), "reason_text": Column("uint8")}
COLUMNS: dict[str, dict[str, Column]] = {
    "vectors": {
        "digest": Column("uint8", (32,)),
        "status": Column("uint8"),
        "row_crc": Column("uint32"),
        **_LEDGER,
    },
    "faces": {
        "digest": Column("uint8", (32,)),
        "status": Column("uint8"),
        "face_offset": Column("int64"),
        "box": Column("float32", (4,)),
        "probability": Column("float32"),
        "landmark": Column("float32", (5, 2)),
        **_LEDGER,
    },
    "photos": {
        "digest": Column("uint8", (32,)),
        "id_offset": Column("int64"),
        "id_text": Column("uint8"),
    },
}
ITEM_BYTES = {"uint8": 1, "uint32": 4, "int64": 8, "float32": 4}


def column_bytes(kind: Kind, lengths: Mapping[str, int]) -> int:
    """What the columns of a segment take, from their lengths."""
    columns = COLUMNS[kind].items()
    return sum(lengths[name] * ITEM_BYTES[c.dtype] * product(c.tail) for name, c in columns)


def product(shape: tuple[int, ...]) -> int:
    n = 1
    for side in shape:
        n *= side
    return n
