"""Pictures that tests of decoding share, and how they are encoded and judged."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from embedcache.photos.images import DecodeError, Reason, decode

Pixels = NDArray[np.uint8]


def smooth(width: int = 96, height: int = 64) -> Pixels:
    """A picture that lossy codecs keep well and whose eight orientations all differ."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack(
        [255 * x / width, 255 * y / height, 255 * (x + 2 * y) / (width + 2 * height)], axis=-1
    ).astype(np.uint8)


def encode(pixels: Pixels | Image.Image, kind: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def heic(pixels: Pixels, **options: Any) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(buffer, quality=95, **options)
    return buffer.getvalue()


def distance(image: Image.Image, pixels: Pixels) -> float:
    assert image.mode == "RGB"
    found = np.asarray(image)
    assert found.shape == pixels.shape
    return float(np.abs(found.astype(int) - pixels).mean())


def reason(data: bytes, **options: Any) -> Reason:
    with pytest.raises(DecodeError) as caught:
        decode(data, **options)
    assert caught.value.detail
    return caught.value.reason


KINDS = ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF"]


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 10_000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def webp_header(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size
    return b"RIFF" + struct.pack("<I", len(body)) + body
