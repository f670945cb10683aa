"""Which of several faces is cropped: the rules, and a run that follows them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedcache.backbones.loading import Backbone
from embedcache.backbones.names import Name
from embedcache.errors import CacheError
from embedcache.extraction.run import extract
from embedcache.faces.detector import choose
from embedcache.photos.table import Photos
from embedcache.spec import CROPS, FaceCrop, Select
from embedcache.store.cache import Cache
from embedcache.store.naming import plain_name
from tests import stand_in

SMALL, LARGE, CENTRAL = (60, 60, 70, 70), (0, 0, 50, 50), (80, 80, 120, 120)


@pytest.mark.parametrize(
    ("select", "boxes", "expected"),
    [
        ("largest", [SMALL, LARGE, CENTRAL], LARGE),
        ("central", [SMALL, LARGE, CENTRAL], CENTRAL),
        ("central", [(98, 98, 102, 102), LARGE, CENTRAL], CENTRAL),  # not a speck in the middle
        ("central", [LARGE], LARGE),
        ("only", [SMALL], SMALL),
    ],
)
def test_one_of_several_boxes_is_chosen(
    select: Select, boxes: list[tuple[float, ...]], expected: tuple[float, ...]
) -> None:
    for order in (boxes, boxes[::-1]):
        found = choose(order, select=select, size=(200, 200))
        assert found.tolist() == list(expected)


def test_a_face_crop_knows_its_selections_only() -> None:
    with pytest.raises(CacheError, match="only, largest, central; got 'first'"):
        FaceCrop(detector="0" * 64, select="first", margin=0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("crop", CROPS)
def test_every_crop_is_part_of_a_recorded_name(crop: str) -> None:
    name = Name.parse(f"local-dir:/any/net@{crop}")
    assert (name.select, name.recorded) == (CROPS[crop], f"local-dir:net@{crop}")
    assert plain_name(f"local-dir:/any/net@{crop}") == f"local-dir:net@{crop}"
    facenet = Name.parse(f"facenet:casia-webface@{crop}")
    assert plain_name(f"facenet:casia-webface@{crop}") == facenet.recorded
    assert facenet.select == CROPS[crop]
    assert Name.parse(facenet.recorded) == Name.parse(facenet.place) == facenet


def with_faces(n: int, folder: Path) -> None:
    """A photo in which the stand-in detector sees n faces."""
    pixels = np.full((40, 40, 3), 90, np.uint8)
    pixels[:, :, 1] = np.arange(40) * 5
    pixels[0, 0, 0] = 90 + n
    Image.fromarray(pixels).save(folder / f"{n}.png")


def of(select: Select) -> Backbone:
    plain = stand_in.backbone(f"net@{select}", face=True)
    assert plain.spec.face is not None
    return replace(plain, spec=replace(plain.spec, face=replace(plain.spec.face, select=select)))


def test_a_run_embeds_photos_with_several_faces_where_one_is_chosen(
    tmp_path: Path, detector: stand_in.Detector
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(3):
        with_faces(n, folder)
    photos = Photos.read(folder)
    cache = Cache.open(tmp_path / "c", create=True)
    selections: tuple[Select, ...] = ("only", "largest", "central")
    for again in range(2):  # the second time the faces are known
        found = extract(photos, cache, backbone=[of(select) for select in selections])
        for select, space in zip(selections, found.spaces, strict=True):
            assert space.embedded + space.hit == (1 if select == "only" else 2), again
            assert ("several_faces" in space.failures) == (select == "only")
            assert space.failures["no_face"] == 1
    assert detector.n_seen == 3
    fresh = Cache.open(tmp_path / "d", create=True)
    extract(photos, fresh, backbone=of("only"))
    extract(photos, fresh, backbone=of("largest"))  # only with boxes from the cache
    assert detector.n_seen == 6
    a, b = (c.vectors("net@largest", list(photos.ids), scope=photos.scope) for c in (cache, fresh))
    np.testing.assert_array_equal(a[0], b[0])
    assert a[1].tolist() == [False, True, True]
