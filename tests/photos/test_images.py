"""Decoding: every kind of photo found in the wild ends as right pixels or as one typed reason."""

import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

from embedcache.photos import images, kinds
from embedcache.photos.images import DecodeError, Reason, decode, decode_each, resize_crop
from embedcache.spec import Preprocessing
from tests.photos.pictures import KINDS, distance, encode, heic, reason, smooth


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_file_gives_its_pixels(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    limit = {"JPEG": 2.0, "WEBP": 3.0, "AVIF": 3.0, "GIF": 8.0}.get(kind, 0.0)
    assert distance(decode(encode(smooth(), kind)), smooth()) <= limit


def test_heic_gives_its_pixels_where_its_plugin_is_installed() -> None:
    assert distance(decode(heic(smooth())), smooth()) < 3


def test_heic_without_its_plugin_names_the_command_that_gets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = heic(smooth())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DecodeError, match="pip install pillow-heif") as caught:
        decode(data)
    assert caught.value.reason is Reason.no_decoder


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_come_upright(kind: str, orientation: int) -> None:
    stored = Image.fromarray(smooth())
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"exif": exif}
    if kind == "TIFF":
        options = {"tiffinfo": {0x0112: orientation}}
    upright = stored.copy()
    upright.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(upright))
    assert distance(decode(encode(stored, kind, **options)), expected) < 3


def test_broken_exif_does_not_lose_the_photo() -> None:
    data = encode(smooth(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert distance(decode(data), smooth()) < 2


def test_cmyk_inks_are_inverted_only_under_adobes_marker() -> None:
    cmyk = Image.fromarray(smooth()).convert("CMYK")
    with_marker = encode(cmyk, "JPEG", quality=95)
    start = with_marker.index(b"\xff\xee")
    length = struct.unpack(">H", with_marker[start + 2 : start + 4])[0]
    assert b"Adobe" in with_marker[start : start + 2 + length]
    assert distance(decode(with_marker), smooth()) < 3

    # The same inks stored straight, as a file without the marker means them.
    inverted = encode(Image.fromarray(255 - np.asarray(cmyk), "CMYK"), "JPEG", quality=95)
    start = inverted.index(b"\xff\xee")
    without = inverted[:start] + inverted[start + 2 + length :]
    assert distance(decode(without), smooth()) < 3


def test_grayscale_and_bilevel_become_rgb() -> None:
    gray = smooth()[..., 0]
    expected = np.repeat(gray[..., None], 3, axis=-1)
    assert distance(decode(encode(gray, "PNG")), expected) == 0
    assert distance(decode(encode(gray, "JPEG", quality=95)), expected) < 2
    bilevel = Image.fromarray(gray > 127)
    assert set(np.unique(np.asarray(decode(encode(bilevel, "PNG"))))) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_samples_keep_their_high_byte(kind: str) -> None:
    gray = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    expected = np.repeat((gray >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    assert distance(decode(encode(Image.fromarray(gray), kind)), expected) == 0


def test_transparency_is_laid_on_white() -> None:
    colour = np.zeros((8, 8, 4), np.uint8)
    colour[:, :, 0] = 200
    colour[:4, :, 3] = 255
    colour[4, :, 3] = 128
    expected = np.full((8, 8, 3), 255, np.uint8)
    expected[:4] = (200, 0, 0)
    expected[4] = (227, 127, 127)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        found = np.asarray(decode(encode(Image.fromarray(colour), kind, **options)))
        assert np.abs(found.astype(int) - expected).max() <= 1, kind

    gray_alpha = Image.fromarray(np.stack([colour[..., 0], colour[..., 3]], -1), "LA")
    assert np.asarray(decode(encode(gray_alpha, "PNG")))[7, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_transparency_is_laid_on_white(kind: str) -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30, 90, 80, 70])
    palette.paste(0, (0, 0, 4, 8))
    found = np.asarray(decode(encode(palette, kind, transparency=0)))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[0, 7].tolist() == [10, 20, 30]


def test_a_colour_key_is_transparent() -> None:
    pixels = np.full((4, 4, 3), 9, np.uint8)
    pixels[0] = (1, 2, 3)
    found = np.asarray(decode(encode(pixels, "PNG", transparency=(1, 2, 3))))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[1, 0].tolist() == [9, 9, 9]


def test_progressive_jpeg_gives_the_pixels_of_the_baseline_one() -> None:
    progressive = decode(encode(smooth(), "JPEG", progressive=True))
    assert distance(progressive, np.asarray(decode(encode(smooth(), "JPEG")))) == 0


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_the_first_frame_counts(kind: str) -> None:
    first = Image.new("RGB", (32, 24), (200, 30, 40))
    second = Image.new("RGB", (32, 24), (10, 220, 30))
    found = np.asarray(decode(encode(first, kind, save_all=True, append_images=[second])))
    assert np.abs(found.astype(int) - (200, 30, 40)).max() <= 6


def test_the_suffix_is_ignored_and_other_kinds_are_refused() -> None:
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") is Reason.not_an_image
    assert reason(b"%PDF-1.7\n") is Reason.not_an_image
    assert reason(b"<svg xmlns='http://www.w3.org/2000/svg'/>") is Reason.not_an_image
    assert reason(b"hello, I am a text file called photo.jpg") is Reason.not_an_image
    assert reason(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom") is Reason.not_an_image
    assert reason(encode(smooth(), "ICO")) is Reason.not_an_image


def test_an_empty_and_a_huge_file_have_their_own_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(b"") is Reason.empty_file
    monkeypatch.setattr(kinds, "MAX_FILE_BYTES", 10)
    assert reason(encode(smooth(), "PNG")) is Reason.too_large_file


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("part", [0.35, 0.7, 0.97])
def test_a_file_without_its_end_is_truncated(kind: str, part: float) -> None:
    noisy = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    data = encode(noisy, kind)
    assert reason(data[: int(len(data) * part)]) in (Reason.truncated, Reason.damaged)
    if kind in ("JPEG", "PNG", "GIF", "WEBP", "AVIF"):  # these can tell
        assert reason(data[: int(len(data) * part)]) is Reason.truncated


def test_damage_in_the_middle_is_not_called_truncation() -> None:
    data = bytearray(encode(smooth(), "PNG"))
    middle = data.index(b"IDAT") + 12
    data[middle : middle + 20] = b"\xff" * 20
    assert reason(bytes(data)) is Reason.damaged


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (b"iCCP", b"scanner\0\0" + zlib.compress(bytes(3_000_000))),
        (b"zTXt", b"History\0\0" + zlib.compress(b"a" * 3_000_000)),
        (b"iTXt", b"History\0\x01\0\0\0" + zlib.compress(b"a" * 3_000_000)),
        (b"tEXt", b"History\0" + b"a" * 3_000_000),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"a" * 3_000_000)),
        (b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0" + zlib.compress(b"a" * 3_000_000)),
    ],
)
def test_a_large_text_or_profile_does_not_lose_a_png(name: bytes, body: bytes) -> None:
    plain = encode(smooth(), "PNG")
    at = plain.index(b"IDAT") - 4
    data = plain[:at] + png_chunk(name, body) + plain[at:]
    assert distance(decode(data), smooth()) == 0
    after = plain[:-12] + png_chunk(name, body) + plain[-12:]
    assert distance(decode(after), smooth()) == 0


def test_an_orientation_beside_a_large_profile_is_still_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encode(smooth(), "PNG", exif=exif)
    at = plain.index(b"IDAT") - 4
    large = png_chunk(b"iCCP", b"scanner\0\0" + zlib.compress(bytes(3_000_000)))
    assert decode(plain[:at] + large + plain[at:]).size == (64, 96)
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    plain = encode(smooth(), "PNG")
    at = plain.index(b"IDAT") - 4
    assert decode(plain[:at] + png_chunk(b"iTXt", xmp) + large + plain[at:]).size == (64, 96)


def tiff_of_samples(samples: NDArray[np.uint16], photometric: int) -> bytes:
    data = bytearray(encode(Image.fromarray(samples), "TIFF"))
    at = data.index(struct.pack("<HHI", 262, 3, 1))
    data[at + 8 : at + 10] = struct.pack("<H", photometric)
    return bytes(data)


def test_a_tiff_whose_lowest_value_is_white_is_no_negative() -> None:
    gray = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    black_is_zero = decode(tiff_of_samples(gray, 1))
    white_is_zero = decode(tiff_of_samples(65535 - gray, 0))
    assert np.array_equal(np.asarray(black_is_zero), np.asarray(white_is_zero))
    assert np.asarray(black_is_zero)[0, 0].tolist() == [0, 0, 0]
    eight = encode(smooth()[..., 0], "TIFF")
    at = eight.index(struct.pack("<HHI", 262, 3, 1)) + 8
    negative = eight[:at] + struct.pack("<H", 0) + eight[at + 2 :]
    assert np.array_equal(np.asarray(decode(negative)), 255 - np.asarray(decode(eight)))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"P1\n# a comment\n2 2\n1 0\n0 1\n", [[0, 255], [255, 0]]),
        (b"P2\n2 2\n255\n0 64\n128 255\n", [[0, 64], [128, 255]]),
        (b"P3\n1 2\n255\n9 9 9\n40 40 40\n", [[9], [40]]),
        (b"P4\n8 1\n\x0f", [[255] * 4 + [0] * 4]),
        (b"P5 2 1 255 \x05\x07", [[5, 7]]),
    ],
)
def test_each_netpbm_kind_gives_its_pixels(data: bytes, expected: list[list[int]]) -> None:
    assert np.asarray(decode(data))[..., 0].tolist() == expected
    assert reason(b"P3 is a name, not a picture") in (Reason.damaged, Reason.truncated)
    assert reason(b"P9\n2 2\n") is Reason.not_an_image


def test_a_bigtiff_gives_its_pixels() -> None:
    assert distance(decode(encode(smooth(), "TIFF", big_tiff=True)), smooth()) == 0


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"quality": 30}])
def test_a_jpeg_that_lacks_only_its_end_marker_is_decoded(options: dict[str, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    data = encode(noise, "JPEG", **options)
    assert data.endswith(b"\xff\xd9")
    assert np.array_equal(np.asarray(decode(data[:-2])), np.asarray(decode(data)))
    assert reason(data[:-40]) is Reason.truncated
    progressive = encode(noise, "JPEG", progressive=True)
    assert reason(progressive[: len(progressive) // 2]) is Reason.truncated


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_the_webp_header_is_read_as_the_decoder_reads_it(options: dict[str, bool]) -> None:
    data = encode(smooth(97, 61), "WEBP", **options)
    assert kinds.webp_size(data) == (97, 61)
    assert reason(data, max_pixels=97 * 61 - 1) is Reason.too_many_pixels
    assert decode(data, max_pixels=97 * 61).size == (97, 61)


def test_pixels_without_a_defined_rgb_are_unsupported() -> None:
    depth = Image.fromarray(np.ones((8, 8), np.float32))
    assert reason(encode(depth, "TIFF")) is Reason.unsupported
    lab = Image.new("LAB", (8, 8))
    assert reason(encode(lab, "TIFF")) is Reason.unsupported


@pytest.mark.parametrize(("at_least", "scale"), [(None, 1), (299, 1), (150, 2), (75, 4), (20, 8)])
def test_a_large_jpeg_is_decoded_at_the_smallest_scale_of_twice_the_need(
    at_least: int | None, scale: int
) -> None:
    data = encode(smooth(900, 601), "JPEG")
    found = decode(data, at_least=at_least)
    assert found.size == (-(-900 // scale), -(-601 // scale))
    if at_least is not None and scale > 1:
        assert min(found.size) >= 2 * at_least


def test_the_pixels_of_a_need_do_not_depend_on_other_needs() -> None:
    data = encode(smooth(900, 601), "JPEG")
    together = decode_each(data, [75, None, 70, 150])
    assert together[0] is together[2]
    for need, image in zip([75, None, 70, 150], together, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(decode(data, at_least=need)))
    once = decode_each(encode(smooth(), "PNG"), [10, None])
    assert once[0] is once[1]


def plan(
    size: tuple[int, int],
    crop_fraction: float,
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic",
    resize: Literal["squash", "shortest"] = "shortest",
) -> Preprocessing:
    return Preprocessing(
        size=size,
        resize=resize,
        crop_fraction=crop_fraction,
        interpolation=interpolation,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        decode=images.VERSION,
    )


@pytest.mark.parametrize(
    "photo", [(500, 375), (375, 500), (50, 41), (299, 299), (641, 300), (7, 3)]
)
@pytest.mark.parametrize(
    "preprocessing",
    [
        plan((299, 299), 0.875),
        plan((224, 224), 0.9, "bilinear"),
        plan((64, 64), 1.0, "lanczos"),
        plan((64, 64), 0.95, "nearest"),
        plan((96, 64), 0.9),
        plan((48, 130), 0.875, "bilinear"),
        plan((64, 64), 1.0, "bicubic", "squash"),
        plan((60, 90), 0.875, "bilinear", "squash"),
    ],
)
def test_resize_and_crop_equal_timms_evaluation_transform(
    photo: tuple[int, int], preprocessing: Preprocessing
) -> None:
    data = pytest.importorskip("timm.data")
    image = Image.fromarray(
        np.random.default_rng(1).integers(0, 255, (photo[1], photo[0], 3), dtype=np.uint8)
    )
    transform = data.create_transform(
        (3, *preprocessing.size),
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_fraction,
        crop_mode="squash" if preprocessing.resize == "squash" else "center",
        normalize=False,
    )
    expected = transform(image).numpy().transpose(1, 2, 0)
    assert np.array_equal(resize_crop(image, preprocessing), expected)


def test_a_long_strip_is_resized_in_its_centre_without_taking_memory() -> None:
    strip = Image.fromarray(smooth(900, 60))  # 15 : 1
    found = resize_crop(strip, plan((64, 64), 0.9))
    whole = strip.resize((int(71 * 900 / 60), 71), Image.Resampling.BICUBIC)
    left, top = round((whole.width - 64) / 2), round((71 - 64) / 2)
    expected = np.asarray(whole.crop((left, top, left + 64, top + 64)))
    assert np.abs(found.astype(int) - expected).max() <= 1
    # the full strip would be 299 x 9 million pixels
    assert resize_crop(Image.new("RGB", (30_000, 1)), plan((299, 299), 1.0)).shape == (299, 299, 3)


def test_pillow_warnings_are_silent_in_all_threads_and_the_filters_are_restored() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x04\0\xff\xff\xff\xff\xff\xff\xff\x7f\0\0"
    data = encode(smooth(), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        errors: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(20):
                    assert decode(data).size == (96, 64)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert list(warnings.filters) == before
    # the same bytes do make Pillow warn
    with pytest.raises(UserWarning, match="Tag data larger than file"):
        Image.open(io.BytesIO(data)).getexif()


def test_decoding_loads_no_torch() -> None:
    code = "import sys, embedcache.photos.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
