"""JPEGs that torchvision decodes: Pillow's pixels, or none."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedcache.photos import images, turbo


def jpeg(size: tuple[int, int] = (61, 43), mode: str = "RGB", **options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size).convert(mode).save(buffer, "jpeg", **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(exif=exif)


PLAIN = {
    "4:2:0": jpeg(subsampling="4:2:0"),
    "4:4:4": jpeg(subsampling="4:4:4"),
    "progressive": jpeg(progressive=True),
    "gray": jpeg(mode="L"),
    "upright by its EXIF": turned(1),
    "a film behind its end": jpeg() + b"film" * 100,
    "one pixel": jpeg((1, 1)),
}
OTHERS = {"turned": turned(6), "CMYK": jpeg(mode="CMYK"), "no JPEG": b"P5 1 1 255 a", "empty": b""}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_jpegs_have_pillows_pixels(name: str) -> None:
    expected = images.decode(PLAIN[name])
    assert images.upright_size(PLAIN[name]) == expected.size
    found = turbo.decode(PLAIN[name])
    assert found is not None
    np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_left_to_pillow(name: str) -> None:
    assert images.upright_size(OTHERS[name]) is None


@pytest.mark.parametrize("cut", [20, 200, 2])
def test_a_jpeg_that_is_cut_short_has_no_pixels_here(cut: int) -> None:
    assert turbo.decode(jpeg((300, 200))[:-cut]) is None


def test_a_library_with_other_pixels_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    before = turbo.decoded
    monkeypatch.setattr(
        turbo, "decoded", lambda data: None if (found := before(data)) is None else found ^ 1
    )
    turbo.equals_pillow.cache_clear()
    try:
        assert turbo.decode(jpeg()) is None
    finally:
        turbo.equals_pillow.cache_clear()
