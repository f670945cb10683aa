"""Photos as they are in the wild, through `extract`: each has its pixels' vector or its reason."""

import io
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from embedcache.errors import PhotosError
from embedcache.extraction.run import extract
from embedcache.photos import images
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from tests import stand_in
from tests.photos.pictures import encode, heic, png_header, smooth, webp_header

MODEL = stand_in.backbone()


def ledger(cache: Cache, photos: Photos) -> dict[str, str]:
    """By id: "ok" for a photo with a vector, else its recorded reason, "" where none is."""
    digests = photos.digests()
    reasons = cache.space(MODEL.spec).reasons(digests.value)
    _, good = cache.vectors("stand-in", list(photos.ids), scope=photos.scope)
    rows = zip(photos.ids, reasons, good.tolist(), strict=True)
    return {name: "ok" if ok else reason or "" for name, reason, ok in rows}


def expected(picture: Image.Image) -> np.ndarray:
    """The vector of a picture that is upright and RGB."""
    pixels = images.resize_crop(picture, MODEL.preprocessing)
    vector: np.ndarray = MODEL.forward(pixels[None])[0]
    return vector


def pictures() -> dict[str, tuple[bytes, Image.Image]]:
    """name -> (file, what it shows, upright and RGB)."""
    rgb = Image.fromarray(smooth())
    gray = rgb.convert("L")
    found: dict[str, tuple[bytes, Image.Image]] = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = rgb.copy()
        turned.getexif()[0x0112] = orientation
        found[f"turned{orientation}.jpg"] = (
            encode(rgb, "JPEG", quality=98, exif=exif),
            ImageOps.exif_transpose(turned),
        )
    found["cmyk.jpg"] = encode(rgb.convert("CMYK"), "JPEG", quality=98), rgb
    found["gray.jpg"] = encode(gray, "JPEG", quality=98), gray.convert("RGB")
    deep = (np.asarray(gray).astype(np.uint16) << 8) + 77
    found["deep.png"] = encode(Image.fromarray(deep), "PNG"), gray.convert("RGB")
    seen = np.zeros((64, 96, 4), np.uint8)
    seen[..., 1] = 180
    seen[:, 48:, 3] = 255
    on_white = np.full((64, 96, 3), 255, np.uint8)
    on_white[:, 48:] = (0, 180, 0)
    clear = Image.fromarray(seen)
    palette = Image.new("P", (96, 64), 0)
    palette.putpalette([9, 9, 9, 0, 180, 0])
    palette.paste(1, (48, 0, 96, 64))
    found["palette.png"] = encode(palette, "PNG", transparency=0), Image.fromarray(on_white)
    found["palette.gif"] = encode(palette, "GIF", transparency=0), Image.fromarray(on_white)
    found["clear.png"] = encode(clear, "PNG"), Image.fromarray(on_white)
    found["progressive.jpg"] = encode(rgb, "JPEG", quality=98, progressive=True), rgb

    def several(kind: str, **options: Any) -> bytes:
        other = Image.new("RGB", rgb.size, (250, 0, 250))
        return encode(rgb.copy(), kind, save_all=True, append_images=[other], **options)

    found["several.mpo"] = several("MPO", quality=98), rgb
    found["animated.webp"] = several("WEBP", lossless=True), rgb
    found["animated.png"] = several("PNG"), rgb
    found["pages.tif"] = several("TIFF"), rgb
    found["still.webp"] = encode(rgb, "WEBP", lossless=True), rgb
    found["wrong.png"] = encode(rgb, "JPEG", quality=98), rgb
    found["WRONG.JPEG"] = encode(rgb, "PNG"), rgb
    if features.check("avif"):
        found["still.avif"] = encode(rgb, "AVIF", quality=95), rgb
    return found


def put(folder: Path, name: str, data: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)


def test_each_kind_of_picture_has_the_vector_of_what_it_shows(tmp_path: Path) -> None:
    kinds = pictures()
    for name, (data, _) in kinds.items():
        put(tmp_path / "in", name, data)
    photos, cache = Photos.read(tmp_path / "in"), Cache.open(tmp_path / "c", create=True)
    assert set(photos.ids) == set(kinds)
    space = extract(photos, cache, backbone=MODEL).spaces[0]
    assert space.failures == {}
    vectors, found = cache.vectors("stand-in", list(photos.ids), scope=photos.scope)
    assert found.all()
    for name, vector in zip(photos.ids, vectors, strict=True):
        wanted = expected(kinds[name][1])
        assert np.linalg.norm(vector - wanted) < 0.02 * np.linalg.norm(wanted), name


def test_a_heic_photo_has_its_vector_or_asks_for_its_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    put(tmp_path / "in", "a.heic", heic(smooth()))
    photos, cache = Photos.read(tmp_path / "in"), Cache.open(tmp_path / "c", create=True)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pillow_heif", None)
        assert extract(photos, cache, backbone=MODEL).spaces[0].failures == {"no_decoder": 1}
    # once the plugin is there the photo is tried again, without --retry-failed
    assert extract(photos, cache, backbone=MODEL).spaces[0].embedded == 1
    wanted = expected(Image.fromarray(smooth()))
    vector = cache.vectors("stand-in", ["a.heic"])[0][0]
    assert np.linalg.norm(vector - wanted) < 0.05 * np.linalg.norm(wanted)


def spoiled() -> dict[str, tuple[bytes, str]]:
    """name -> (file, the reason that the ledger must give)."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    found = {
        "nothing.jpg": (b"", "empty_file"),
        "text.jpg": (b"hello", "not_an_image"),
        "page.png": (b"%PDF-1.7\n", "not_an_image"),
        "drawing.tif": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not_an_image"),
        "bomb.png": (png_header(60_000, 60_000), "too_many_pixels"),
        "bomb.webp": (webp_header(16_000, 16_000), "too_many_pixels"),
        "depth.tif": (encode(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "unsupported"),
    }
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        data = encode(noise, kind)
        found[f"half.{kind.lower()}"] = data[: len(data) // 2], "truncated"
    crooked = bytearray(encode(noise, "PNG"))
    crooked[len(crooked) // 2] ^= 255
    found["crooked.png"] = bytes(crooked), "damaged"
    return found


def test_each_kind_of_bad_file_is_in_the_ledger_with_its_reason(tmp_path: Path) -> None:
    kinds = spoiled()
    for name, (data, _) in kinds.items():
        put(tmp_path / "in", name, data)
    put(tmp_path / "in", "good.jpg", encode(smooth(), "JPEG"))
    photos, cache = Photos.read(tmp_path / "in"), Cache.open(tmp_path / "c", create=True)
    found = extract(photos, cache, backbone=MODEL)
    wanted = {name: reason for name, (_, reason) in kinds.items()}
    assert ledger(cache, photos) == {**wanted, "good.jpg": "ok"}
    assert (found.spaces[0].embedded, found.spaces[0].failed) == (1, len(kinds))
    for name, (_, reason) in kinds.items():
        shutil.rmtree(tmp_path / "one", ignore_errors=True)
        put(tmp_path / "one", name, kinds[name][0])
        fresh = Cache.open(tmp_path / f"c-{name}", create=True)
        with pytest.raises(PhotosError, match=rf"{name}: {reason} \(`strict`\)"):
            extract(Photos.read(tmp_path / "one"), fresh, backbone=MODEL, strict=True)


def test_files_that_are_not_regular_are_reported_and_block_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    put(folder, "good.jpg", encode(smooth(), "JPEG"))
    put(folder, "closed.jpg", b"x")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "album.jpg").mkdir()
    put(folder / "album.jpg", "inside.jpg", encode(smooth(), "PNG"))
    (folder / "loop").symlink_to(folder)
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(folder)  # a socket's path is short
        server.bind("socket.jpg")
        real = os.open

        def refuse(path: Any, *rest: Any, **named: Any) -> int:
            if str(path).endswith("closed.jpg"):
                raise PermissionError(13, "Permission denied")
            return real(path, *rest, **named)

        monkeypatch.setattr(os, "open", refuse)
        photos, cache = Photos.read(folder), Cache.open(tmp_path / "c", create=True)
        found = extract(photos, cache, backbone=MODEL)
    assert set(photos.ids) == {
        *("album.jpg/inside.jpg", "closed.jpg", "gone.jpg", "good.jpg"),
        *("itself.jpg", "pipe.jpg", "socket.jpg"),
    }
    reasons = {photos.ids[i]: reason for i, reason in photos.digests().reasons.items()}
    assert reasons == {
        "closed.jpg": "unreadable",
        "gone.jpg": "vanished",
        "itself.jpg": "unreadable",
        "pipe.jpg": "unreadable",
        "socket.jpg": "unreadable",
    }
    assert found.spaces[0].embedded == 2
    assert found.spaces[0].failures == {"unreadable": 4, "vanished": 1}


@pytest.mark.parametrize("fate", ["vanished", "unreadable", "changed"])
def test_a_photo_may_disappear_or_change_between_plan_and_reading(
    make_photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    folder = make_photos(6)
    photos, cache = Photos.read(folder), Cache.open(tmp_path / "c", create=True)
    victim = folder / "p003.jpg"
    original = victim.read_bytes()
    real = Cache.record_photos

    def planned(self: Cache, *rest: Any, **named: Any) -> None:
        real(self, *rest, **named)
        victim.unlink()
        if fate == "unreadable":
            victim.mkdir()
        if fate == "changed":
            victim.write_bytes(original + b"\0")

    monkeypatch.setattr(Cache, "record_photos", planned)
    space = extract(photos, cache, backbone=MODEL).spaces[0]
    assert space.failures == {fate: 1}
    assert space.embedded == 5
    monkeypatch.undo()
    if fate == "unreadable":
        victim.rmdir()
    victim.write_bytes(original)
    space = extract(photos, cache, backbone=MODEL).spaces[0]  # tried again, without --retry-failed
    assert (space.hit, space.embedded, space.failed) == (5, 1, 0)


def test_duplicates_and_equal_names_in_nested_folders(tmp_path: Path) -> None:
    one, two = encode(smooth(), "PNG"), encode(smooth(90, 40), "PNG")
    put(tmp_path / "in", "a.png", one)
    for place, data in (("x", one), ("y", two)):
        put(tmp_path / "in" / place, "a.png", data)
    put(tmp_path / "in" / "x", "b.png", two)
    photos, cache = Photos.read(tmp_path / "in"), Cache.open(tmp_path / "c", create=True)
    space = extract(photos, cache, backbone=MODEL).spaces[0]
    assert (space.wanted, space.hit, space.embedded) == (4, 2, 2)
    vectors, found = cache.vectors("stand-in", ["a.png", "x/a.png", "x/b.png", "y/a.png"])
    assert found.all()
    assert (vectors[0] == vectors[1]).all()
    assert (vectors[2] == vectors[3]).all()
    assert not (vectors[0] == vectors[2]).all()


def test_names_in_any_encoding_reach_the_cache(tmp_path: Path) -> None:
    names = [
        *("日本.jpg".encode(), "шум.jpg".encode("koi8-r"), "é.jpg".encode("latin-1")),
        *(
            "😀.jpg".encode(),
            "日本.jpg".encode("shift-jis"),
            b"new\nline.jpg",
            b"tab\t quote'\".jpg",
        ),
        *(b"-dash.jpg", b"percent%20.jpg", b"back\\slash.jpg", b"n" * 250 + b".jpg"),
    ]
    (tmp_path / "in").mkdir()
    for i, name in enumerate(names):
        with open(os.fsencode(tmp_path / "in") + b"/" + name, "wb") as file:
            file.write(encode(smooth(60 + i, 50), "PNG"))
    photos, cache = Photos.read(tmp_path / "in"), Cache.open(tmp_path / "c", create=True)
    assert len(set(photos.ids)) == len(names)
    assert extract(photos, cache, backbone=MODEL).spaces[0].embedded == len(names)
    again = Cache.open(tmp_path / "c")
    vectors, found = again.vectors("stand-in", list(photos.ids), scope=photos.scope)
    assert found.all()
    for path, vector in zip(photos.paths, vectors, strict=True):
        with open(path, "rb") as file:
            np.testing.assert_array_equal(vector, expected(images.decode(file.read())))
    again_found = extract(Photos.read(tmp_path / "in"), again, backbone=MODEL)
    assert again_found.spaces[0].hit == len(names)


def test_reduced_decoding_is_another_spec_and_never_below_twice_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_weights: Path
) -> None:
    from embedcache.backbones.loading import load

    put(tmp_path / "in", "large.jpg", encode(smooth(1200, 900), "JPEG"))
    put(tmp_path / "in", "turned.jpg", encode(smooth(900, 1200), "JPEG"))
    put(tmp_path / "in", "medium.jpg", encode(smooth(500, 430), "JPEG"))
    name = f"local-dir:{tiny_weights}"
    full, reduced = (load(name, device="cpu", decode=d) for d in ("full", "reduced"))
    assert full.spec.digest != reduced.spec.digest
    sizes: dict[str, list[tuple[int, int]]] = {"full": [], "reduced": []}
    real = images.decoding
    side = ["full"]

    @contextmanager
    def watch(data: bytes, at_least: Any) -> Iterator[list[Image.Image]]:
        with real(data, at_least) as decoded:
            sizes[side[0]] += [image.size for image in decoded]
            yield decoded

    monkeypatch.setattr(images, "decoding", watch)
    photos, cache = Photos.read(tmp_path / "in"), Cache.open(tmp_path / "c", create=True)
    for side[0], model in (("full", full), ("reduced", reduced)):
        assert extract(photos, cache, backbone=model).spaces[0].embedded == 3
    assert sorted(sizes["full"]) == [(500, 430), (900, 1200), (1200, 900)]
    # the network resizes to 101: half of 430 still is more than twice that, a quarter of 900 too
    assert sorted(sizes["reduced"]) == [(225, 300), (250, 215), (300, 225)]
    assert len(cache.spaces()) == 2


def test_an_image_is_never_decoded_before_its_size_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bombs of every kind that carries its size in a header: no pixel is loaded."""
    monkeypatch.setattr(images, "_pixels", lambda *_: pytest.fail("decoded"))
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF"):
        if kind == "AVIF" and not features.check("avif"):
            continue
        data = encode(smooth(200, 100), kind)
        with pytest.raises(images.DecodeError) as caught:
            images.decode(data, max_pixels=200 * 100 - 1)
        assert caught.value.reason is images.Reason.too_many_pixels, kind
    buffer = io.BytesIO(heic(smooth(200, 100)))
    with pytest.raises(images.DecodeError, match="too_many_pixels"):
        images.decode(buffer.getvalue(), max_pixels=200 * 100 - 1)
