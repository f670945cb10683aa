"""The constants of a frozen TensorFlow graph, read without TensorFlow.

    constants(path)     {node name: float32 array}; the arrays are views of the mapped file

A frozen graph is one protocol buffer, `GraphDef`, whose `Const` nodes hold the weights. This module
reads the few fields that lead to them and skips the rest. A size in the file is believed only where
it fits into what encloses it, so a damaged or hostile file costs no more memory than its own bytes.
"""

import mmap
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedcache.errors import WeightsError
from embedcache.wording import reason

MAX_GRAPH_BYTES = 1 << 30
MAX_DIMENSIONS = 8
MAX_VALUES = 1 << 28
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_DT_FLOAT = 1

F32 = npt.NDArray[np.float32]


class _Malformed(Exception):
    """The bytes are not the message they should be."""


def constants(path: Path) -> dict[str, F32]:
    """Every float32 constant of the graph in `path`, by the name of its node.

    Returns read-only arrays in the graph's own layout (kernels: height, width, in, out). Constants
    of other types are left out. Raises WeightsError for a file that is not a whole GraphDef.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if not 0 < size <= MAX_GRAPH_BYTES:
                raise _Malformed(f"it has {size:,} bytes")
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        found: dict[str, F32] = {}
        for field, value in _fields(data):
            if field == 1 and (constant := _constant(_message(value))):
                found[constant[0]] = constant[1]
    except (OSError, _Malformed) as error:
        raise WeightsError(
            f"{path} cannot be read as a TensorFlow graph: {reason(error)}"
        ) from None
    if not found:
        raise WeightsError(f"{path} holds no weights: a frozen TensorFlow graph was expected")
    return found


def _constant(node: memoryview) -> tuple[str, F32] | None:
    """Name and value of a NodeDef that is a float32 constant; None for any other node."""
    name, operation, value = "", b"", None
    for field, content in _fields(node):
        if field == 1:
            name = _text(content)
        elif field == 2:
            operation = bytes(_message(content))
        elif field == 5:
            entry = dict(_fields(_message(content)))
            if bytes(_message(entry.get(1, b""))) == b"value":
                value = dict(_fields(_message(entry.get(2, b"")))).get(8)
    if operation != b"Const" or value is None:
        return None
    tensor = _tensor(_message(value), name)
    return None if tensor is None else (name, tensor)


def _tensor(message: memoryview, name: str) -> F32 | None:
    """A TensorProto's values; None where they are not float32."""
    is_float, shape, content, values = False, [], None, []
    for field, value in _fields(message):
        if field == 1:
            is_float = value == _DT_FLOAT
        elif field == 2:
            shape = _shape(_message(value))
        elif field == 4:
            content = _message(value)
        elif field == 5:
            values.append(_message(value))
    if not is_float:
        return None
    n_values = prod(shape)
    if len(shape) > MAX_DIMENSIONS or n_values > MAX_VALUES:
        raise _Malformed(f"{name} claims the shape {shape}")
    packed = content if content is not None else b"".join(values)
    if len(packed) == 4 * n_values:
        return np.frombuffer(packed, "<f4").reshape(shape)
    if content is None and len(packed) == 4:  # one value stands for all
        return np.broadcast_to(np.frombuffer(packed, "<f4"), shape)
    raise _Malformed(f"{name} has {len(packed):,} bytes for the shape {shape}")


def _shape(message: memoryview) -> list[int]:
    """The sizes of a TensorShapeProto."""
    sizes = []
    for field, value in _fields(message):
        if field == 2:
            size = dict(_fields(_message(value))).get(1, 0)
            if not isinstance(size, int):
                raise _Malformed("a size is not a number")
            sizes.append(size)
    return sizes


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of a message, in order; the value is a number or a field's bytes."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == _VARINT:
            number, at = _varint(message, at)
            yield tag >> 3, number
            continue
        if wire == _BYTES:
            length, at = _varint(message, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise _Malformed(f"wire type {wire} at byte {at}")
        if length > end - at:
            raise _Malformed(f"a field of {length:,} bytes where {end - at:,} are left")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _Malformed(f"no end of a number before byte {at}")


def _message(value: int | memoryview | bytes) -> memoryview:
    if isinstance(value, int):
        raise _Malformed("a number where a message was expected")
    return memoryview(value)


def _text(value: int | memoryview) -> str:
    try:
        return str(_message(value), "utf-8")
    except UnicodeDecodeError:
        raise _Malformed("a node's name is not UTF-8") from None
