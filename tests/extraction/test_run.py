"""Extraction, from the outside: what is embedded, kept and reported."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedcache import texts
from embedcache.errors import NoSuchSpace, PhotosError
from embedcache.extraction import prefetch
from embedcache.extraction.clock import Clock
from embedcache.extraction.parts import WorkPart
from embedcache.extraction.run import extract
from embedcache.photos import images
from embedcache.photos.table import Photos
from embedcache.store import photo_ids, rows
from embedcache.store.cache import Cache
from embedcache.upkeep.inventory import summarise
from tests import stand_in
from tests.stand_in import counts, vectors

MakePhotos = Callable[..., Path]


def test_a_second_run_embeds_nothing_and_touches_no_pixel(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = Photos.read(make_photos(20))
    cache = Cache.open(tmp_path / "c", create=True)
    assert counts(extract(photos, cache, backbone=stand_in.backbone())) == (20, 0, 20, 0)
    monkeypatch.setattr(images, "decoding", lambda *_, **__: pytest.fail("decoded"))
    again = Cache.open(tmp_path / "c")
    found = extract(photos, again, backbone=stand_in.backbone())
    assert counts(found) == (20, 20, 0, 0)
    assert found.spaces[0].bottleneck == "read"


def test_a_run_of_many_photos_is_like_one_of_few(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many: ids and paths in arrays, recorded ids read segment by segment, an index in its file."""
    folder = make_photos(12)
    (folder / "broken.jpg").write_bytes(b"no photo")
    few = Photos.read(folder)
    plain = Cache.open(tmp_path / "few", create=True)
    expected = counts(extract(few, plain, backbone=stand_in.backbone()))
    monkeypatch.setattr(texts, "MANY", 0)
    monkeypatch.setattr(photo_ids, "KEPT_IDS", -1)
    monkeypatch.setattr(rows, "MAPPED_ROWS", 1)
    monkeypatch.setattr(rows, "INDEX_SEGMENTS", 1)
    photos, path = Photos.read(folder), tmp_path / "many"
    assert not isinstance(photos.ids, tuple)
    part = extract(photos, path, backbone=stand_in.backbone(), part=WorkPart(1, 2))
    n = part.spaces[0].embedded
    assert 0 < n < 12
    found = counts(extract(photos, path, backbone=stand_in.backbone()))
    assert (found[0], found[1] + found[2], found[3]) == (13, expected[2], expected[3])
    assert found[1] == n
    assert counts(extract(photos, path, backbone=stand_in.backbone()))[1:3] == (12, 0)
    cache = Cache.open(path)
    assert cache.photo_table().places() == {photos.scope: 13}
    some = [*range(12, 0, -1)]
    np.testing.assert_array_equal(
        vectors(cache, photos.subset(some)), vectors(plain, few.subset(some))
    )


def test_vectors_are_those_of_the_photos_whatever_the_batch(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos = Photos.read(make_photos(11))
    model = stand_in.backbone()
    expected = np.concatenate(
        [
            model.forward(images.resize_crop(Image.open(path), model.preprocessing)[None])
            for path in photos.paths
        ]
    )
    for batch_size, workers in ((1, 1), (4, 3), (64, 2)):
        cache = Cache.open(tmp_path / f"c{batch_size}", create=True)
        extract(photos, cache, backbone=model, batch_size=batch_size, workers=workers)
        np.testing.assert_array_equal(vectors(cache, photos), expected)


def test_equal_contents_are_embedded_once_and_a_renamed_file_costs_nothing(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder = make_photos(3)
    shutil.copy(folder / "p000.jpg", folder / "twin.jpg")
    cache = Cache.open(tmp_path / "c", create=True)
    assert counts(extract(Photos.read(folder), cache, backbone=stand_in.backbone())) == (4, 1, 3, 0)
    (folder / "p001.jpg").rename(folder / "renamed.jpg")
    photos = Photos.read(folder)
    assert counts(extract(photos, cache, backbone=stand_in.backbone())) == (4, 4, 0, 0)
    np.testing.assert_array_equal(
        vectors(cache, photos)[photos.ids.index("twin.jpg")],
        vectors(cache, photos)[photos.ids.index("p000.jpg")],
    )


def test_an_id_stands_for_the_newest_bytes_of_its_file(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder = make_photos(2)
    cache = Cache.open(tmp_path / "c", create=True)
    extract(Photos.read(folder), cache, backbone=stand_in.backbone())
    before = vectors(cache, Photos.read(folder))
    Image.new("RGB", (40, 40), (200, 30, 30)).save(folder / "p000.jpg")
    photos = Photos.read(folder)
    assert counts(extract(photos, cache, backbone=stand_in.backbone())) == (2, 1, 1, 0)
    after = vectors(cache, photos)
    assert not np.array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], before[1])


def spoil(folder: Path) -> None:
    (folder / "broken.jpg").write_bytes((folder / "p000.jpg").read_bytes()[:400])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")


def test_photos_that_fail_are_counted_by_reason_and_do_not_stop_the_run(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder = make_photos(5)
    spoil(folder)
    photos, cache = Photos.read(folder), Cache.open(tmp_path / "c", create=True)
    found = extract(photos, cache, backbone=stand_in.backbone())
    assert counts(found) == (9, 0, 5, 4)
    assert found.spaces[0].failures == {
        "truncated": 1,
        "empty_file": 1,
        "not_an_image": 1,
        "vanished": 1,
    }
    again = extract(photos, cache, backbone=stand_in.backbone())
    assert counts(again) == (9, 5, 0, 4)
    assert again.spaces[0].failures == found.spaces[0].failures


def test_failed_photos_are_tried_again_on_request(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = Photos.read(make_photos(3))
    cache = Cache.open(tmp_path / "c", create=True)
    real = images.decoding

    def refuse(*_: object, **__: object) -> list[Image.Image]:
        raise images.DecodeError(images.Reason.unsupported, "not today")

    monkeypatch.setattr(images, "decoding", refuse)
    extract(photos, cache, backbone=stand_in.backbone())
    monkeypatch.setattr(images, "decoding", real)
    assert counts(extract(photos, cache, backbone=stand_in.backbone())) == (3, 0, 0, 3)
    retried = extract(photos, cache, backbone=stand_in.backbone(), retry_failed=True)
    assert counts(retried) == (3, 0, 3, 0)
    assert counts(extract(photos, cache, backbone=stand_in.backbone())) == (3, 3, 0, 0)


def test_a_reason_of_the_file_system_is_not_recorded(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = Photos.read(make_photos(3))
    cache = Cache.open(tmp_path / "c", create=True)
    monkeypatch.setattr(prefetch, "read_file", lambda path: b"other bytes")
    found = extract(photos, cache, backbone=stand_in.backbone())
    assert found.spaces[0].failures == {"changed": 3}
    monkeypatch.undo()
    assert counts(extract(photos, cache, backbone=stand_in.backbone())) == (3, 0, 3, 0)


def test_strict_stops_at_a_failure_and_keeps_what_was_done(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder = make_photos(5)
    (folder / "p003.jpg").write_text("no image")
    photos, cache = Photos.read(folder), Cache.open(tmp_path / "c", create=True)
    with pytest.raises(PhotosError, match=r"p003\.jpg: not_an_image"):
        extract(photos, cache, backbone=stand_in.backbone(), batch_size=1, strict=True)
    found = extract(photos, cache, backbone=stand_in.backbone())
    assert counts(found) == (5, 3, 1, 1)


def test_a_stopped_run_commits_what_is_done(make_photos: MakePhotos, tmp_path: Path) -> None:
    photos = Photos.read(make_photos(12))
    cache = Cache.open(tmp_path / "c", create=True)
    seen: list[int] = []
    found = extract(
        photos,
        cache,
        backbone=stand_in.backbone(),
        batch_size=4,
        progress=lambda p: seen.append(p.done),
        stop=lambda: len(seen) >= 9,
    )
    assert found.interrupted
    assert (found.spaces[0].embedded, found.spaces[0].left) == (8, 4)
    assert "Rerun the command to resume" in str(found)
    assert counts(extract(photos, cache, backbone=stand_in.backbone())) == (12, 8, 4, 0)


def test_a_run_stopped_while_it_reads_for_the_plan_keeps_what_it_learned(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos = Photos.read(make_photos(12))
    cache = Cache.open(tmp_path / "c", create=True)
    doing: list[str] = []
    model = stand_in.backbone(before=lambda n: pytest.fail("embedded"))
    found = extract(
        photos, cache, backbone=model, progress=lambda p: doing.append(p.doing), stop=lambda: True
    )
    assert found.interrupted
    assert counts(found) == (12, 0, 0, 0)
    assert found.spaces[0].left == 12
    assert set(doing) == {"reading"}
    assert counts(extract(photos, cache, backbone=stand_in.backbone())) == (12, 0, 12, 0)


def test_backbones_of_one_run_share_one_decode(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = Photos.read(make_photos(6))
    cache = Cache.open(tmp_path / "c", create=True)
    calls: list[int] = []
    real = images.decoding

    def count(data: bytes, at_least: list[int | None], **options: int) -> Any:
        calls.append(len(at_least))
        return real(data, at_least, **options)

    monkeypatch.setattr(images, "decoding", count)
    both = [stand_in.backbone("one"), stand_in.backbone("three", dim=5)]
    found = extract(photos, cache, backbone=both)
    assert [space.embedded for space in found.spaces] == [6, 6]
    assert calls == [2] * 6
    assert vectors(cache, photos, "one").shape == (6, 8)
    assert vectors(cache, photos, "three").shape == (6, 5)


@pytest.mark.parametrize(("bottleneck", "advised"), [("decode", True), ("forward", False)])
def test_reduced_decoding_is_advised_where_large_jpegs_are_the_bottleneck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bottleneck: str, advised: bool
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    side = 4 * stand_in.SIZE
    for name, size in (("a.jpg", side), ("b.jpg", side + 9), ("c.jpg", side - 1), ("d.png", side)):
        Image.new("RGB", (size, 200), (size, 0, len(name))).save(folder / name)
    monkeypatch.setattr(Clock, "bottleneck", lambda *_: bottleneck)
    cache = Cache.open(tmp_path / "c", create=True)
    found = extract(Photos.read(folder), cache, backbone=stand_in.backbone())
    assert found.n_reducible == 2
    assert ("2 large JPEGs, at least four times" in str(found)) == advised


def test_only_photos_with_one_face_are_embedded_by_a_face_backbone(
    make_photos: MakePhotos, tmp_path: Path, detector: stand_in.Detector
) -> None:
    photos = Photos.read(make_photos(24))
    cache = Cache.open(tmp_path / "c", create=True)
    n_faces = [detector.count(Image.open(path)) for path in photos.paths]
    found = extract(photos, cache, backbone=stand_in.backbone("faces", face=True))
    [faces] = cache.face_spaces()
    assert [segment.manifest.about["device"] for segment in faces.segments()] == ["cpu"]
    assert set(n_faces) == {0, 1, 2}
    assert found.spaces[0].embedded == n_faces.count(1)
    assert found.spaces[0].failures == {
        "no_face": n_faces.count(0),
        "several_faces": n_faces.count(2),
    }
    assert detector.n_seen == 24


def test_detected_faces_serve_later_backbones_without_a_second_detection(
    make_photos: MakePhotos, tmp_path: Path, detector: stand_in.Detector
) -> None:
    photos = Photos.read(make_photos(24))
    cache = Cache.open(tmp_path / "c", create=True)
    first = extract(photos, cache, backbone=stand_in.backbone("faces", face=True))
    later = extract(photos, cache, backbone=stand_in.backbone("other", face=True))
    assert detector.n_seen == 24
    assert counts(later) == counts(first)
    one = [
        i
        for i, p in zip(photos.ids, photos.paths, strict=True)
        if detector.count(Image.open(p)) == 1
    ]
    a, found = cache.vectors("other", one, scope=photos.scope)
    assert found.all()
    # A crop from a stored box equals a crop made right after detection.
    fresh = Cache.open(tmp_path / "fresh", create=True)
    extract(photos, fresh, backbone=stand_in.backbone("other", face=True))
    np.testing.assert_array_equal(a, fresh.vectors("other", one, scope=photos.scope)[0])


CHILD = """
    import sys, time
    from embedcache import Cache, Photos, extract
    from tests import stand_in

    def slowly(n):
        print(n, flush=True)
        time.sleep(0.05)

    extract(Photos.read(sys.argv[1]), Cache.open(sys.argv[2], create=True),
            backbone=stand_in.backbone(before=slowly), batch_size=2, workers=1)
"""


def test_a_killed_run_is_finished_by_the_next_and_equals_an_uninterrupted_one(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder = make_photos(40)
    photos = Photos.read(folder)
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(folder), str(tmp_path / "c")]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        for _ in range(8):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    forwarded: list[int] = []
    cache = Cache.open(tmp_path / "c")
    found = extract(photos, cache, backbone=stand_in.backbone(before=forwarded.append))
    space = found.spaces[0]
    assert space.hit + space.embedded == 40
    assert sum(forwarded) == space.embedded
    whole = Cache.open(tmp_path / "whole", create=True)
    extract(photos, whole, backbone=stand_in.backbone())
    np.testing.assert_array_equal(vectors(cache, photos), vectors(whole, photos))
    assert counts(extract(photos, cache, backbone=stand_in.backbone())) == (40, 40, 0, 0)


def test_a_backbone_named_twice_runs_once(make_photos: MakePhotos, tmp_path: Path) -> None:
    photos = Photos.read(make_photos(4))
    forwarded: list[int] = []
    model = stand_in.backbone(before=forwarded.append)
    cache = Cache.open(tmp_path / "c", create=True)
    assert len(extract(photos, cache, backbone=[model, model]).spaces) == 1
    assert sum(forwarded) == 4


KILLED = """
    import os, signal, sys
    from dataclasses import replace
    from embedcache import Cache, Photos, extract
    from tests import stand_in

    def kill(n):
        os.kill(os.getpid(), signal.SIGKILL)

    def named(name, place, **options):
        return replace(stand_in.backbone("net", before=kill, **options), name=name, place=place)

    extract(Photos.read(sys.argv[1]), Cache.open(sys.argv[2], create=True), workers=1,
            backbone=[named("local-dir:one", "local-dir:/a/one"),
                      named("facenet:two.pt", "facenet:/b/two.pt", dim=4)])
"""


def test_a_run_that_is_killed_at_its_first_batch_leaves_its_backbones_names(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command += [str(make_photos(4)), str(tmp_path / "c")]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    cache = Cache.open(tmp_path / "c")
    assert {space.names for space in cache.spaces()} == {("local-dir:one",), ("facenet:two.pt",)}
    assert cache.find("local-dir:/elsewhere/one").dim == 8
    shown = str(summarise(cache, photos=True))
    assert "local-dir:one  8-d  spec" in shown
    assert "facenet:two.pt  4-d  spec" in shown
    with pytest.raises(NoSuchSpace, match=r"it holds (facenet:two\.pt|local-dir:one)#"):
        cache.find("three")
    (tmp_path / "c" / "local" / "backbones.json").write_text("[" * 100_000)
    assert {space.names for space in Cache.open(tmp_path / "c").spaces()} == {()}
