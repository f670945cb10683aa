"""Pixels as tensors on a device: the same inputs of the networks, the same faces.

The tensors are on the CPU in most tests, and on a CUDA device where there is one.
"""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedcache.faces import host, mtcnn, on_device
from embedcache.faces.detector import Detector
from embedcache.faces.networks import Networks
from embedcache.faces.on_device import DevicePixels
from embedcache.faces.pixels import Level, in_bands
from embedcache.store.faces import Faces

pytest.importorskip("facenet_pytorch")

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ),
]


def resident(device: str) -> Detector:
    detector = Detector(device)
    detector._networks = Networks(device, resident=True)
    return detector


@pytest.fixture(scope="module", params=DEVICES)
def there(request: pytest.FixtureRequest) -> Detector:
    return resident(request.param)


@pytest.fixture(scope="module")
def here() -> Detector:
    return Detector("cpu")


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Faces at sizes odd and even, equal and unequal, wide and high; noise; nothing; too small."""
    data = pytest.importorskip("skimage.data")
    astronaut = Image.fromarray(data.astronaut())
    noise = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    many = Image.new("RGB", (480, 481))
    for i in range(16):
        face = astronaut.crop((140, 0, 340, 240)).resize((100 - i, 120))
        many.paste(face, (i % 4 * 120, i // 4 * 120))
    sizes = [(200, 200), (333, 500), (501, 333), (255, 512), (97, 101), (90, 700)]
    return [
        astronaut,
        *(astronaut.resize(size) for size in sizes),
        Image.new("RGB", (512, 512), "white"),
        many,
        astronaut.rotate(25),
        Image.fromarray(noise),
        Image.new("RGB", (19, 300)),
        astronaut.crop((150, 0, 331, 222)),
        astronaut.resize((1101, 1003)),
        astronaut.convert("L").convert("RGB"),
    ]


def assert_same_faces(found: Faces, expected: Faces) -> None:
    assert found.counts.tolist() == expected.counts.tolist()
    assert np.allclose(found.box, expected.box, atol=0.01)
    assert np.allclose(found.probability, expected.probability, atol=1e-4)
    assert np.allclose(found.landmark, expected.landmark, atol=0.01)


def test_faces_equal_those_of_the_cpus_form(
    there: Detector, here: Detector, photos: list[Image.Image]
) -> None:
    expected = here.detect(photos)
    assert expected.counts.max() >= 12
    assert_same_faces(there.detect(photos), expected)


def test_a_photos_faces_do_not_depend_on_its_neighbours(
    there: Detector, photos: list[Image.Image]
) -> None:
    together = there.detect([*photos, photos[3], photos[0]])
    alone = Faces.concatenate([there.detect([photo]) for photo in [*photos, photos[3], photos[0]]])
    assert_same_faces(together, alone)


def test_large_levels_in_bands_and_few_candidates_a_pass_give_the_same_faces(
    there: Detector, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    once = there.detect(photos)
    monkeypatch.setattr(there._networks, "cell_pixels", 20_000)
    monkeypatch.setattr(there._networks, "n_crops", {24: 17, 48: 3})
    assert_same_faces(there.detect(photos), once)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (19, 400), (20, 20), (2000, 21), (23, 3000)])
def test_tiny_and_extreme_shapes_have_no_faces_and_raise_nothing(
    there: Detector, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    assert there.detect([Image.fromarray(pixels)]).counts.tolist() == [0]
    assert len(there.detect([])) == 0


# --- inputs of the networks -----------------------------------------------------------------------


def random_photos(seed: int) -> list[Image.Image]:
    draw = np.random.default_rng(seed)
    sizes = [(61, 90), (90, 61), (300, 411), (24, 1500), (301, 410), (300, 411), (12, 13)]
    photos = [draw.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    return [Image.fromarray(photo) for photo in photos]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("most", [90_000, 4_000])
def test_levels_equal_the_numpy_forms_to_the_last_bit(device: str, most: int) -> None:
    photos = random_photos(1)
    networks = Networks(device, resident=True)
    networks.cell_pixels = most
    pixels = DevicePixels(photos, networks)
    levels = [
        Level(i, 0, 1.0, int(photo.height * scale + 1), int(photo.width * scale + 1))
        for i, photo in enumerate(photos)
        for scale in (0.6, 0.43, 12 / photo.height)
        if photo.width * scale >= 12
    ]
    table, owner = pixels._bands(levels)
    passes, rows = pixels._passes(table)
    bands = torch.from_numpy(table).to(device)
    seen = 0
    for n, height, width in passes:
        some, rows = rows[:n], rows[n:]
        found = pixels.levels(bands[some], height, width).permute(0, 2, 3, 1).cpu().numpy()
        assert np.isfinite(found).all()
        for row, one in zip(some, found, strict=True):
            level = levels[owner[row]]
            expected = np.empty((level.height, level.width, 3), np.float32)
            host.Integral(host.packed(photos[level.photo])).level(expected)
            first, n_rows = table[row, 6:]
            part = expected[first : first + n_rows]
            assert np.array_equal(one[:n_rows, : level.width], part)
            seen += part.size
    bands_of = [in_bands(level, most) for level in levels]
    assert seen == 3 * sum(
        (end - first) * level.width
        for level, bands in zip(levels, bands_of, strict=True)
        for first, end in bands
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [24, 48])
def test_crops_equal_the_numpy_forms_to_the_last_bit(device: str, size: int) -> None:
    photos = random_photos(2)
    pixels = DevicePixels(photos, Networks(device, resident=True))
    draw = np.random.default_rng(size)
    photo = np.sort(draw.integers(0, len(photos), 60))
    edges = pixels.sizes[photo]
    low = (draw.random((60, 2)) * edges).astype(np.int64)
    high = low + 1 + (draw.random((60, 2)) * (edges - low)).astype(np.int64)
    corners = np.concatenate([low, np.minimum(high, edges)], axis=1)
    corners[:3] = [[0, 0, *edge] for edge in edges[:3]]
    parts = torch.from_numpy(pixels.parts(photo, corners, 64)).to(device)
    found = pixels.crops(parts, size).permute(0, 2, 3, 1).cpu().numpy()
    assert len(found) == 64
    assert np.isfinite(found).all()
    for first, end in host.runs_of(photo):
        expected = np.empty((end - first, size, size, 3), np.float32)
        integral = host.Integral(host.packed(photos[photo[first]]))
        integral.crops(corners[first:end], expected)
        assert np.array_equal(found[first:end], expected)


def test_sums_past_32_bits_still_give_exact_averages() -> None:
    white = Image.new("RGB", (4200, 4100), "white")  # 255 * 4200 * 4100 > 2**32
    pixels = DevicePixels([white], Networks("cpu", resident=True))
    parts = torch.from_numpy(pixels.parts(np.array([0]), np.array([[0, 0, 4200, 4100]]), 1))
    assert (pixels.crops(parts, 24) == (255 - 127.5) * 0.0078125).all()


def test_a_padded_level_has_the_cells_of_the_level_alone() -> None:
    networks = Networks("cpu", resident=True)
    draw = torch.Generator().manual_seed(0)
    pixels = torch.rand((4, 3, 31, 40), generator=draw) * 2 - 1
    height, width = torch.tensor([31, 12, 23, 0]), torch.tensor([17, 40, 24, 0])
    with torch.inference_mode():
        shifts, scores = networks.padded_pnet(pixels, height, width)
        for i, (h, w) in enumerate(zip(height.tolist(), width.tolist(), strict=True)):
            if not h:
                continue
            shift, score = networks.pnet(pixels[i : i + 1, :, :h, :w])
            y, x = score.shape[2:]
            assert torch.allclose(scores[i, :y, :x], score[0, 1], atol=1e-6)
            assert torch.allclose(shifts[i, :, :y, :x], shift[0], atol=1e-6)
            scores[i, :y, :x] = -1
        assert (scores == -1).all()
    assert torch.isfinite(shifts).all()


@pytest.mark.parametrize("n", [1, 7, 15, 16, 17, 31, 100, 500, 4097])
def test_a_rounded_size_is_an_eighth_more_at_most(n: int) -> None:
    rounded = on_device._rounded(n)
    assert n <= rounded <= n + n // 8
    assert len({on_device._rounded(k) for k in range(n, 2 * n)}) <= 9 + (n < 16) * 8


# --- suppression ----------------------------------------------------------------------------------


@pytest.mark.parametrize("furthest", [600, 8_000_000])
def test_levels_side_by_side_suppress_as_level_by_level(furthest: int) -> None:
    draw = np.random.default_rng(furthest)
    level = np.sort(draw.integers(0, 12, 900))
    low = draw.integers(-3, furthest, (900, 2)) // np.array([1, furthest // 200]) // 4 * 4
    box = np.concatenate([low, low + draw.integers(0, 60, (900, 1))], axis=1).astype(np.float32)
    score = (draw.integers(0, 50, 900) / 50).astype(np.float32)  # many ties
    kept = mtcnn._suppress_by_level(box, score, level // 4, level)
    assert np.array_equal(kept, mtcnn._suppress(box, score, level, 0.5))
    assert len(mtcnn._suppress_by_level(box[:0], score[:0], level[:0], level[:0])) == 0


def test_the_form_follows_the_device(photos: list[Image.Image], monkeypatch: Any) -> None:
    assert not Networks("cpu").resident
    networks = Networks("cpu", resident=True)
    monkeypatch.setattr(mtcnn, "HostPixels", None)
    found = mtcnn.find(photos[:1], networks, mtcnn.Settings())
    assert len(found[0].box) == 1
