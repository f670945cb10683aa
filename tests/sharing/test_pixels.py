"""Kept pixels on a shared copy: only where they are named, and gone with the photo."""

from dataclasses import replace

import numpy as np
import pytest

from embedcache.errors import CacheError
from embedcache.remotes.remote import Remote
from embedcache.sharing.share import pull, push
from embedcache.sharing.survey import survey, verify_remote
from embedcache.spec import Preprocessing, pixels
from embedcache.store.cache import Cache
from embedcache.store.layout import APART
from embedcache.store.space import Space
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests import fakes
from tests.preprocessings import INCEPTION
from tests.sharing.members import SPEC, Make, held
from tests.stores import bytes_of, photos

INPUT: Preprocessing = replace(INCEPTION, size=(160, 160))
KEPT = pixels(INPUT)
NAME = "pixels:160"


def keep(cache: Cache, *numbers: int) -> Space:
    space = cache.space(KEPT, create=True)
    with space.writer(n_rows=len(numbers), name=NAME, about={"device": "cpu"}) as writer:
        writer.add(photos(*numbers), bytes_of(photos(*numbers), KEPT.dim))
    return space


def kept(cache: Cache, *numbers: int) -> list[bool]:
    rows, found = cache.space(KEPT, create=True).read(photos(*numbers))
    assert np.array_equal(rows[found], bytes_of(photos(*numbers), KEPT.dim)[found])
    return [bool(there) for there in found]


def test_pixels_are_sent_and_taken_only_where_they_are_named(remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1, 2]), make("b")
    keep(a, 0, 1, 2)
    assert push(a, remote).rows == 3
    assert [space.names for space in survey(remote).spaces] == [("net",)]
    assert push(a, remote, backbones=[NAME]).rows == 3
    shared = {space.root: space for space in survey(remote).spaces}
    assert shared[APART].names == (NAME,)
    assert verify_remote(remote).clean
    assert pull(remote, b).rows == 3
    assert held(b) == {0, 1, 2}
    assert not [space for space in b.spaces() if space.spec == KEPT]
    assert pull(remote, b, backbones=[NAME]).rows == 3
    assert kept(b, 0, 1, 2) == [True] * 3
    assert verify(b).clean


def test_rows_of_pixels_travel_by_their_ranges_too(remote: Remote, make: Make) -> None:
    a, b = make("a"), make("b")
    keep(a, *range(40))
    keep(b, *range(1, 30))
    push(a, remote, backbones=[NAME])
    counted = fakes.counted(remote)
    assert pull(counted, b, backbones=[NAME]).rows == 11
    assert counted.n_bytes < 20 * KEPT.row_bytes
    assert kept(b, *range(40)) == [True] * 40
    keep(b, 50, 51)
    assert push(b, remote, backbones=[NAME]).rows == 2
    assert verify_remote(remote).clean


def test_pixels_of_a_photo_that_is_forgotten_leave_the_shared_copy(
    remote: Remote, make: Make
) -> None:
    a, b = make("a", [0, 1]), make("b")
    keep(a, 0, 1)
    a.record_photos("here", ["zero", "one"], photos(0, 1))
    push(a, remote, backbones=[NAME])
    pull(remote, b, backbones=[NAME])
    forget(a, ["one"])
    assert kept(a, 0, 1) == [True, False]
    push(a, remote)
    c = make("c")
    pull(remote, c, backbones=[NAME])
    assert kept(c, 0, 1) == [True, False]
    pull(remote, b)
    assert kept(b, 0, 1) == [True, False]


def test_a_ref_of_a_cache_with_pixels_can_be_shared(remote: Remote, make: Make) -> None:
    a = make("a", [0, 1])
    keep(a, 0, 1)
    write_ref(a, "then")
    assert push(a, remote).problems == ()
    b = make("b")
    pull(remote, b, ref="then")
    assert held(b) == {0, 1}


def test_segments_of_floats_are_refused_among_pixels_and_pixels_among_floats(make: Make) -> None:
    remote, a = fakes.Held(), make("a", [0])
    keep(a, 0)
    push(a, remote)
    push(a, remote, backbones=[NAME])
    ours, theirs = f"spaces/{SPEC.digest}", f"{APART}/{KEPT.digest}"
    moved = {
        key.replace(theirs, ours): raw
        for key, raw in remote.objects.items()
        if key.startswith(f"{theirs}/segments/2")
    }
    remote.objects |= moved
    came = pull(remote, make("b"))
    assert (came.rows, len(came.problems)) == (1, 1)


def test_a_writer_of_pixels_takes_bytes_only(make: Make) -> None:
    space = make("a").space(KEPT, create=True)
    with (
        pytest.raises(ValueError, match="pixels are bytes"),
        space.writer(n_rows=1, name=NAME, about={}) as writer,
    ):
        writer.add(photos(0), bytes_of(photos(0), KEPT.dim).astype(np.float32))
    with pytest.raises(ValueError, match="out is uint8"):
        space.read(photos(0), out=np.empty((1, KEPT.dim), np.float32))


def test_a_row_is_read_by_itself_and_not_with_its_chunk(make: Make) -> None:
    a = make("a")
    space = keep(a, *range(20))
    [segment] = space.segments()
    assert segment.manifest.geometry is not None
    assert segment.manifest.geometry.rows_per_chunk > 5
    path = segment.folder / "embedding" / "c" / "0" / "0"
    raw = bytearray(path.read_bytes())
    raw[3 * KEPT.row_bytes] ^= 1
    path.write_bytes(raw)
    space = Cache.open(a.path).space(KEPT)
    assert np.array_equal(space.read(photos(2, 4))[0], bytes_of(photos(2, 4), KEPT.dim))
    with pytest.raises(CacheError, match="fails its CRC32C"):
        space.read(photos(3))
