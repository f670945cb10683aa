"""Protocol buffers of TensorFlow graphs, written by hand, for tests of what reads them."""

import numpy as np
import numpy.typing as npt

FLOAT = 1


def number(value: int) -> bytes:
    """A varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(n: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return number(n << 3 | 2) + number(len(content)) + content


def tensor(
    values: npt.NDArray[np.float32],
    *,
    shape: tuple[int, ...] | None = None,
    packed: bool = True,
    dtype: int = FLOAT,
) -> bytes:
    """A TensorProto: with its bytes in tensor_content, or (not packed) as float_val."""
    sizes = values.shape if shape is None else shape
    dims = b"".join(field(2, number(1 << 3) + number(size)) for size in sizes)
    content = values.astype("<f4").tobytes()
    return number(1 << 3) + number(dtype) + field(2, dims) + field(4 if packed else 5, content)


def node(name: str, operation: str, value: bytes | None = None) -> bytes:
    """A NodeDef; a constant has a tensor as its value."""
    attributes = b""
    if value is not None:
        attributes = field(5, field(1, b"dtype") + field(2, number(6 << 3) + number(FLOAT)))
        attributes += field(5, field(1, b"value") + field(2, field(8, value)))
    return field(1, name.encode()) + field(2, operation.encode()) + attributes


def graph(*nodes: bytes) -> bytes:
    """A GraphDef."""
    return b"".join(field(1, one) for one in nodes)
