"""Faces: the batched detector finds what facenet-pytorch finds, and crops are to the pixel."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from embedcache.errors import WeightsError
from embedcache.faces import host, layers, mtcnn
from embedcache.faces.detector import Detector, crop
from embedcache.spec import canonical_json

pytest.importorskip("facenet_pytorch")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector()


@pytest.fixture(scope="module")
def package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it reads its weights the old way
        from facenet_pytorch import MTCNN

        return MTCNN(keep_all=True)


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    data = pytest.importorskip("skimage.data")
    return Image.fromarray(data.astronaut())


@pytest.fixture(scope="module")
def photos(astronaut: Image.Image) -> list[Image.Image]:
    """No, one, two and many faces, at sizes of which few are equal."""
    two = Image.new("RGB", (700, 400), (90, 120, 90))
    two.paste(astronaut.crop((120, 0, 360, 300)), (40, 60))
    two.paste(
        astronaut.crop((120, 0, 360, 300)).transpose(Image.Transpose.FLIP_LEFT_RIGHT), (400, 20)
    )
    many = Image.new("RGB", (480, 480))
    for i in range(16):
        many.paste(
            astronaut.crop((140, 0, 340, 240)).resize((100, 120)), (i % 4 * 120, i // 4 * 120)
        )
    noise = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    return [
        astronaut,
        astronaut.resize((200, 200)),
        two,
        Image.new("RGB", (512, 512), "white"),
        astronaut.rotate(25),
        many,
        Image.fromarray(noise),
        astronaut.crop((150, 0, 331, 222)),
        astronaut.resize((1101, 1003)),
    ]


def test_boxes_equal_the_packages_own_on_single_photos(
    detector: Detector, package: Any, photos: list[Image.Image]
) -> None:
    found = detector.detect(photos)
    assert len(found) == len(photos)
    assert found.counts[0] == 1
    assert found.counts[2] == 2
    assert found.counts[5] >= 12
    for i, photo in enumerate(photos):
        box, probability, landmark = package.detect(photo, landmarks=True)
        assert found.counts[i] == (0 if box is None else len(box))
        if box is not None:
            mine = found.of(i)
            assert np.allclose(mine.box, box.astype(float), atol=0.01)
            assert np.allclose(mine.probability, probability.astype(float), atol=1e-4)
            assert np.allclose(mine.landmark, landmark.astype(float), atol=0.01)


def test_a_photos_faces_do_not_depend_on_its_neighbours(
    detector: Detector, photos: list[Image.Image]
) -> None:
    together = detector.detect([*photos, photos[0], photos[3], photos[0]])
    for i, photo in enumerate(photos):
        alone = detector.detect([photo])
        assert alone.counts[0] == together.counts[i]
        assert np.allclose(alone.box, together.of(i).box, atol=0.01)


def test_photos_past_the_memory_of_one_batch_come_back_in_their_order(
    detector: Detector, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    once = detector.detect(photos)
    monkeypatch.setattr("embedcache.faces.detector._BATCH_PIXELS", 400_000)
    again = detector.detect(photos)
    assert again.counts.tolist() == once.counts.tolist()
    assert np.allclose(again.box, once.box, atol=0.01)


def test_large_levels_in_bands_give_the_same_cells(
    detector: Detector, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    once = detector.detect(photos)
    monkeypatch.setattr(detector._networks, "cell_pixels", 20_000)
    banded = detector.detect(photos)
    assert banded.counts.tolist() == once.counts.tolist()
    assert np.allclose(banded.box, once.box, atol=0.01)


@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 500), (11, 11), (19, 400), (20, 20), (21, 20), (2000, 21), (23, 3000), (40, 37)],
)
def test_tiny_and_extreme_shapes_have_no_faces_and_raise_nothing(
    detector: Detector, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    assert detector.detect([Image.fromarray(pixels)]).counts.tolist() == [0]


def test_no_photos_have_no_faces(detector: Detector) -> None:
    assert len(detector.detect([])) == 0


def test_a_larger_least_face_skips_small_faces_and_is_another_detector(
    detector: Detector, astronaut: Image.Image
) -> None:
    small = astronaut.resize((256, 256))
    coarse = Detector(min_face_size=120)
    assert detector.detect([small]).counts.tolist() == [1]
    assert coarse.detect([small]).counts.tolist() == [0]
    assert coarse.digest != detector.digest
    with pytest.raises(ValueError, match="at least 12"):
        Detector(min_face_size=4)


def test_the_document_says_what_changes_a_box(detector: Detector) -> None:
    document = detector.document
    assert document["thresholds"] == [0.6, 0.7, 0.7]
    assert document["min_face_size"] == 20
    weights = document["weights"]
    assert isinstance(weights, dict)
    assert sorted(weights) == ["onet", "pnet", "rnet"]
    assert canonical_json(document)
    assert len(detector.digest) == 64
    assert Detector().digest == detector.digest


def test_without_the_package_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "facenet_pytorch.models", None)
    with pytest.raises(WeightsError, match=r"pip install --no-deps facenet-pytorch==2\.6\.0"):
        Detector()


# --- resizing -------------------------------------------------------------------------------------


def packed(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    red, green, blue = (pixels[..., i].astype(np.uint32) for i in range(3))
    return (red | green << 8 | blue << 16).astype(np.uint32)


@pytest.mark.parametrize("size", [(11, 11), (12, 11), (11, 12), (30, 1), (1, 2)])
def test_pooling_by_slices_is_torchs(size: tuple[int, int]) -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, *size)))
    assert torch.equal(layers.pool(x), torch.nn.functional.max_pool2d(x, 2, 2, ceil_mode=True))


@pytest.mark.parametrize("size", [(22, 22), (11, 9), (46, 23), (3, 4), (21, 10)])
def test_pooling_of_three_by_slices_is_torchs(size: tuple[int, int]) -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, *size)))
    assert torch.equal(layers.pool3(x), torch.nn.functional.max_pool2d(x, 3, 2, ceil_mode=True))


@pytest.mark.parametrize("format_", [torch.channels_last, torch.contiguous_format])
def test_slopes_row_by_row_are_torchs_prelu(format_: torch.memory_format) -> None:
    slopes = torch.nn.PReLU(10)
    torch.nn.init.uniform_(slopes.weight, -1.5, 1.5)
    x = torch.randn(3, 10, 7, 5).to(memory_format=format_)
    with torch.inference_mode():
        assert torch.equal(layers.with_slopes(x, slopes), slopes(x))


@pytest.mark.parametrize("size", [(12, 12), (13, 40), (61, 50)])
def test_cells_that_pass_are_the_packages(detector: Detector, size: tuple[int, int]) -> None:
    pnet = detector._networks.pnet
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    with torch.inference_mode():
        shift, score = (out.numpy() for out in pnet(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    least = float(np.quantile(score[:, 1], 0.5))
    row, y, x, found, moved = detector._networks.propose(pixels, least)
    expected = score[:, 1] >= least - 1e-6
    assert np.abs(score[row, 1, y, x] - found).max(initial=0) < 1e-6
    assert np.abs(shift[row, :, y, x] - moved).max(initial=0) < 1e-5
    assert expected[row, y, x].all()
    assert len(row) >= (score[:, 1] >= least + 1e-6).sum()


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_threads_share_photos_and_find_the_same(
    detector: Detector, photos: list[Image.Image], n_threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        found = detector.detect(photos)
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    for i, photo in enumerate(photos):
        assert np.allclose(found.of(i).box, detector.detect([photo]).box, atol=0.01)


def area(pixels: np.ndarray[Any, np.dtype[np.uint8]], height: int, width: int) -> Any:
    """What facenet-pytorch does, on one photo."""
    tensor = torch.as_tensor(pixels[None]).permute(0, 3, 1, 2).float()
    resized = interpolate(tensor, size=(height, width), mode="area")
    return ((resized - 127.5) * 0.0078125)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", [(61, 90), (500, 333), (1400, 1203), (24, 2000)])
def test_averages_are_torchs_to_the_last_bit(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    integral = host.Integral(packed(pixels))
    assert integral.bits == (32 if size == (1400, 1203) else 21)
    for height, width in [(13, 13), (size[0] // 2, size[1] // 2 + 1), (14, size[1] // 2)]:
        level = np.empty((height, width, 3), np.float32)
        integral.level(level)
        assert np.array_equal(level, area(pixels, height, width))
    boxes = np.array([[0, 0, size[1], size[0]], [3, 5, 20, 21], [size[1] - 1, 0, size[1], 24]])
    for side in (24, 48):
        crops = np.empty((len(boxes), side, side, 3), np.float32)
        integral.crops(boxes, crops)
        for box, found in zip(boxes, crops, strict=True):
            part = pixels[box[1] : box[3], box[0] : box[2]]
            assert np.array_equal(found, area(part, side, side))


def test_white_photos_of_any_size_do_not_overflow_their_fields() -> None:
    white = np.float32((255 - 127.5) * 0.0078125)
    for height, width in [(1030, 1030), (4000, 1000), (30, 9000)]:
        integral = host.Integral(packed(np.full((height, width, 3), 255, np.uint8)))
        scale = mtcnn.Settings().scales(height, width)[-1]
        level = np.empty((int(height * scale + 1), int(width * scale + 1), 3), np.float32)
        integral.level(level)
        assert (level == white).all()
        whole = np.empty((1, 24, 24, 3), np.float32)
        integral.crops(np.array([[0, 0, width, height]]), whole)
        assert (whole == white).all()


# --- crops ----------------------------------------------------------------------------------------

BOXES = [(50, 30, 150, 170), (10.7, 20.2, 99.9, 64.5), (-12, -7.5, 80, 90), (400, 300, 600.5, 700)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("margin", [0, 14, 40])
def test_a_crop_equals_the_packages_to_the_pixel(
    astronaut: Image.Image, box: tuple[float, float, float, float], margin: int
) -> None:
    from facenet_pytorch.models.utils.detect_face import extract_face

    edges = np.array(box, np.float32)
    expected = extract_face(astronaut, edges, image_size=160, margin=margin)
    # the package states the margin in pixels of the result
    found = crop(
        astronaut, edges, margin=margin / (160 - margin), size=(160, 160), interpolation="bilinear"
    )
    gap = np.abs(found - expected.numpy().transpose(1, 2, 0))
    assert gap.max() <= 1  # Pillow since 13 resizes columns first where that is less work
    if int(PIL.__version__.split(".")[0]) < 13:
        assert gap.max() == 0


def test_a_box_outside_the_photo_or_without_area_still_gives_pixels(astronaut: Image.Image) -> None:
    for box in [(600, 600, 700, 700), (-90, -90, -10, -10), (5, 5, 5, 5), (511.6, 0, 511.9, 9)]:
        found = crop(astronaut, box, margin=0.0, size=(32, 20), interpolation="bicubic")
        assert found.shape == (32, 20, 3)
        assert found.dtype == np.uint8


def test_crops_load_no_torch() -> None:
    code = "import sys, embedcache.faces.detector; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- real photos ----------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.skipif("EMBEDCACHE_REAL_DATA" not in os.environ, reason="needs real photos")
def test_real_photos_have_the_packages_faces(detector: Detector, package: Any) -> None:
    folder = Path(os.environ["EMBEDCACHE_REAL_DATA"]) / "data" / "mebeauty" / "photos"
    chosen = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())[::40]]
    chosen = [photo for photo in chosen if photo.width * photo.height < 2_000_000]
    found = detector.detect(chosen)
    expected = [package.detect(photo)[0] for photo in chosen]
    assert found.counts.tolist() == [0 if box is None else len(box) for box in expected]
    boxes = np.concatenate([box.astype(np.float32) for box in expected if box is not None])
    assert np.allclose(found.box, boxes, atol=0.05)
