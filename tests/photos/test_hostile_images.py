"""Files made to take memory or time, and damaged ones: each is refused with one reason."""

import random
import struct
import threading

import numpy as np
import pytest
from PIL import Image

from embedcache.photos import images
from embedcache.photos.images import DecodeError, Reason, decode
from tests.photos.pictures import KINDS, distance, encode, png_header, reason, smooth, webp_header


def test_pixels_of_all_threads_together_stay_within_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "MEMORY_BYTES", 25 * 96 * 64)
    data = encode(smooth(), "PNG")  # 12 bytes per pixel: two at a time
    inside, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with images.decoding(data, [None]) as found:
            with lock:
                inside += 1
                most = max(most, inside)
            threading.Event().wait(0.05)
            assert distance(found[0], smooth()) == 0
            with lock:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2
    monkeypatch.setattr(images, "MEMORY_BYTES", 1)  # larger than all of it: one at a time
    assert decode(data).size == (96, 64)


def test_bombs_are_refused_by_their_headers() -> None:
    assert reason(png_header(60_000, 60_000)) is Reason.too_many_pixels
    assert reason(png_header(14_000, 10_000)) is Reason.too_many_pixels
    assert reason(webp_header(16_000, 16_000)) is Reason.too_many_pixels
    gif = bytearray(encode(smooth(), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    assert reason(bytes(gif)) is Reason.too_many_pixels
    jpeg = bytearray(encode(smooth(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    assert reason(bytes(jpeg)) is Reason.too_many_pixels


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    plain = encode(smooth(), "JPEG", progressive=True)
    start = plain.rindex(b"\xff\xda")
    scan = plain[start:-2]
    assert reason(plain[:-2] + 200 * scan + b"\xff\xd9") is Reason.too_many_scans
    assert decode(plain[:-2] + 20 * scan + b"\xff\xd9").size == decode(plain).size


def test_bytes_like_scans_outside_the_picture_are_ignored() -> None:
    plain = encode(smooth(), "JPEG")
    film = 1000 * b"\xff\xda\x00\x02"
    aside = b"\xff\xe5" + struct.pack(">H", len(film) + 2) + film
    np.testing.assert_array_equal(decode(plain + film), decode(plain))
    np.testing.assert_array_equal(decode(plain[:2] + aside + plain[2:]), decode(plain))


def seeds() -> list[bytes]:
    noisy = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = [encode(noisy, kind) for kind in KINDS]
    found.append(encode(noisy, "JPEG", progressive=True, exif=exif))
    found.append(encode(noisy, "WEBP", lossless=True, exif=exif))
    found.append(encode(noisy, "TIFF", compression="tiff_lzw"))
    found.append(encode(noisy, "TIFF", compression="jpeg"))
    found.append(encode(Image.fromarray(noisy).convert("CMYK"), "JPEG"))
    found.append(encode(Image.fromarray(noisy).quantize(16), "PNG", transparency=3))
    found.append(encode(Image.fromarray(noisy), "MPO", save_all=True, append_images=[]))
    return found


def survive(rounds: int, seed: int) -> int:
    """Decode damaged files; return how many still gave pixels. Only DecodeError may leave."""
    randomness = random.Random(seed)
    good = 0
    for data in seeds():
        for _ in range(rounds):
            broken = bytearray(data)
            for _ in range(randomness.choice((1, 1, 3, 20))):
                # most damage goes where the headers are
                place = randomness.randrange(randomness.choice((40, 200, len(broken))))
                broken[min(place, len(broken) - 1)] = randomness.choice(
                    (0, 1, 0x7F, 0xFF, randomness.randrange(256))
                )
            if randomness.random() < 0.3:
                del broken[randomness.randrange(len(broken)) :]
            try:
                image = decode(bytes(broken), at_least=randomness.choice((None, 3)))
            except DecodeError:
                pass
            else:
                assert image.mode == "RGB"
                good += 1
    return good


def test_a_damaged_file_raises_decode_error_and_nothing_else() -> None:
    assert survive(rounds=60, seed=0) > 0


@pytest.mark.torture
def test_many_damaged_files_raise_decode_error_and_nothing_else() -> None:
    survive(rounds=5_000, seed=1)
