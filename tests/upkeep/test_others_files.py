"""What somebody else put inside a cache is moved out of the way, and never deleted."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from embedcache import disk
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.store.log import UNKNOWN, Entry, Gone, create_entry
from embedcache.store.space import Space
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.exchange import import_vectors
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.verify import verify
from tests.stores import model, photos
from tests.upkeep.caches import SPEC, make

# A note, a Zarr array that another program wrote into the group, a chunk that no manifest names.
THEIRS = ("notes.txt", "umap/c/0/0", "umap/zarr.json", "digest/c/0/1", ".DS_Store")


def put(folder: Path, *names: str) -> list[str]:
    """Somebody's files in a folder; what they say."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {folder.name}/{name}")
    return [f"mine: {folder.name}/{name}" for name in names]


def found(cache: Path) -> list[str]:
    """What the files of others below a cache say, wherever they are now."""
    texts = [path.read_bytes() for path in cache.rglob("*") if path.is_file()]
    return sorted(text.decode() for text in texts if text.startswith(b"mine: "))


def bytes_of(photo: int, cache: Path) -> list[Path]:
    row = model(photos(photo)).tobytes()
    return [path for path in cache.rglob("*") if path.is_file() and row in path.read_bytes()]


def cut_draft(space: Space, *names: str) -> list[str]:
    """A draft of a writer that died, with somebody's files in it; what these say."""

    def cut_off() -> None:
        with space.writer(n_rows=2, name="net", about={}) as writer:
            writer.add(photos(7, 8), model(photos(7, 8), space.dim))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    [draft] = [path.parent for path in space.segments_folder.glob("*/writing")]
    return put(draft, *names)


def test_forget_moves_what_others_put_into_a_segment_to_damaged(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2, 3, segments=1)
    [segment] = cache.space(SPEC).segments()
    theirs = put(segment.folder, *THEIRS)
    (segment.folder / "link").symlink_to(tmp_path)
    done = forget(cache, ["p1"])
    assert found(cache.path) == sorted(theirs)
    assert not segment.folder.exists()
    assert bytes_of(1, cache.path) == []
    home = cache.path / "damaged" / f"spaces-{SPEC.digest}-segments-{segment.id}"
    assert (home / "umap" / "c" / "0" / "0").is_file()
    assert (home / "link").is_symlink()
    assert [note for note in done.notes if str(home) in note and "did not write" in note]
    assert verify(cache).clean, str(verify(cache))


# Names that embedcache gives files elsewhere, but not in a segment that is finished.
ALIKE = (
    *("lease.json", "abandoned.json", "journal", "entry.json", "claimed", ".mine.part"),
    *("writing/journal", "writing/lease.json", "segments/zarr.json", "embedding/c/0/0.partial"),
    *(
        "embedding/c/7/0",
        ".manifest.json.0123abcd",
        ".old-0123abcd/journal",
        "c/zarr.json",
    ),
)


@pytest.mark.parametrize("name", ALIKE)
def test_a_name_like_ours_that_the_manifest_does_not_name_is_somebody_elses(
    tmp_path: Path, name: str
) -> None:
    cache = make(tmp_path / "a", 1, 2, 3, segments=1)
    [segment] = cache.space(SPEC).segments()
    theirs = put(segment.folder, name)
    forget(cache, ["p1"])
    assert found(cache.path) == theirs
    assert bytes_of(1, cache.path) == []


def test_what_a_writer_leaves_beside_a_manifest_is_deleted(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2, 3, segments=1)
    space = cache.space(SPEC)
    [segment] = space.segments()
    with space.writer(n_rows=1, name="net", about={}) as writer:
        writer.add(photos(9), model(photos(9)))
        [writing] = space.segments_folder.glob("*/writing")
        shutil.copytree(writing, segment.folder / "writing")
        writer.commit()
    put(segment.folder, f".manifest.json.{disk.mark_of_process()}")
    forget(cache, ["p1"])
    assert not (cache.path / "damaged").exists()
    assert verify(cache).clean, str(verify(cache))


def test_compact_moves_what_others_put_into_a_segment_to_damaged(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2, 3, 4, segments=2)
    theirs = [text for one in cache.space(SPEC).segments() for text in put(one.folder, *THEIRS)]
    done = compact(cache)
    assert found(cache.path) == sorted(theirs)
    assert len(cache.space(SPEC).segments()) == 1
    assert len(done.set_aside) == 2
    assert "did not write" in str(done)
    assert compact(cache).set_aside == ()


def test_a_dead_writers_folder_goes_without_what_others_put_there(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2, segments=1)
    space = cache.space(SPEC)
    theirs = cut_draft(space, "notes.txt", "writing/notes.txt", "embedding/c/notes.txt")
    compact(cache)
    assert found(cache.path) == sorted(theirs)
    assert cache.space(SPEC).read(photos(7, 8))[1].all()
    assert list(space.segments_folder.glob("*/writing")) == []
    assert verify(cache).clean, str(verify(cache))


def test_litter_goes_without_what_others_put_there(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2, segments=1)
    segments = cache.space(SPEC).segments_folder
    theirs = put(segments / ".old-0123abcd-00000000-7-7", "notes.txt", "embedding/c/0/0")[:1]
    theirs += put(cache.path / "spaces" / ".old-0123abce-00000000-7-7", "notes.txt")
    compact(cache)
    assert found(cache.path) == sorted(theirs)
    assert list(segments.glob(".*")) == []


def test_what_was_set_aside_before_stays_when_the_same_name_comes_again(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, segments=1)
    theirs: list[str] = []
    for kind in ("first", "second", "third"):
        segments = cache.path / "photos" / "segments"
        (segments / "notes.txt").write_text(f"mine: {kind} file")
        (segments / "plans").mkdir()
        (segments / "plans" / "x").write_text(f"mine: {kind} folder")
        theirs += [f"mine: {kind} file", f"mine: {kind} folder"]
        report = verify(cache, repair=True)
        moved = [one.moved for one in report.findings]
        assert all((cache.path / path).exists() for path in moved)
    assert found(cache.path) == sorted(theirs)
    assert verify(cache).clean


def test_a_segment_whose_manifest_is_damaged_goes_to_damaged_also_after_a_kill(
    tmp_path: Path,
) -> None:
    """`verify --repair` enters it in the log first and moves it second."""
    cache = make(tmp_path / "a", 1, 2, segments=1)
    space = cache.space(SPEC)
    [segment] = space.segments()
    (segment.folder / "manifest.json").write_bytes(b"mine: no manifest")
    gone = {f"{space.key}/{segment.id}": Gone(UNKNOWN, None)}
    assert create_entry(cache.path, cache.history.log().n + 1, Entry(segments=gone))
    compact(Cache.open(cache.path))
    assert found(cache.path) == ["mine: no manifest"]
    assert len(bytes_of(1, cache.path)) == 1


def test_an_import_says_what_it_moved_out_of_a_dead_writers_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make(tmp_path / "a", 1, 2, segments=1)
    theirs = cut_draft(cache.space(foreign("mine", 8), create=True), "notes.txt", "plans/b.txt")
    np.save(tmp_path / "v.npy", model(photos(1)))
    (tmp_path / "ids.csv").write_text("id\np1\n")
    import_vectors(
        *(cache, tmp_path / "v.npy", tmp_path / "ids.csv"),
        ids=["p1"],
        digests=photos(1),
        name="mine",
    )
    [text] = caplog.messages
    assert f"{cache.path / 'damaged'}{os.sep}spaces-" in text
    assert "has 2 files that embedcache did not write" in text
    assert found(cache.path) == sorted(theirs)
    assert cache.find("mine").read(photos(1, 7, 8))[1].all()


def test_recording_ids_says_what_it_moved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = make(tmp_path / "a", 1, 2, segments=1)
    litter = cache.path / "photos" / "segments" / ".old-0123abcd-00000000-7-7"
    theirs = put(litter, "notes.txt")
    cache.record_photos("folder", ["p1", "p2"], photos(1, 2))
    assert caplog.messages == []
    cache.record_photos("folder", ["p9"], photos(9))
    [text] = caplog.messages
    assert "has 1 file that embedcache did not write" in text
    assert found(cache.path) == theirs


HIDDEN = [".in-progress", ".new-notes.txt", ".push-config.yml", ".old-20261126.tar.gz", ".now.todo"]
HIDDEN += [".entry-form.docx", ".settings.json.20261126", ".old-20260101/a.txt", ".draft-of-mine"]


def test_hidden_names_that_resemble_ours_are_somebody_elses(tmp_path: Path) -> None:
    cache = make(tmp_path / "c", 0, 1)
    [space] = cache.spaces()
    mine = []
    for folder in (cache.path, cache.path / "refs", cache.path / "spaces", space.segments_folder):
        folder.mkdir(exist_ok=True)
        mine += put(folder, *HIDDEN)
    for path in cache.path.rglob(".*"):
        os.utime(path, (1e9, 1e9))
    compact(cache)
    forget(Cache.open(cache.path), ["p0"])
    assert found(cache.path) == sorted(mine)
    assert all(path.read_text().startswith("mine") for path in space.segments_folder.glob(".in-*"))


@pytest.mark.parametrize("linked", [False, True])
def test_what_stands_where_a_removed_segment_was_moves_to_damaged(
    linked: bool, tmp_path: Path
) -> None:
    """A link is never followed: what it leads to may be named as a segment's files are."""
    cache = make(tmp_path / "a", 1, 2, 3)
    [*_, gone] = cache.space(SPEC).segments()
    compact(cache)
    elsewhere = tmp_path / "elsewhere"
    texts = put(elsewhere, "zarr.json", "digest/c/0/0", "notes.txt")
    if linked:
        gone.folder.symlink_to(elsewhere)
    else:
        gone.folder.write_text("mine: a file")
    assert verify(cache).findings
    compact(cache)
    assert verify(cache).clean
    assert found(elsewhere) == sorted(texts)
    [aside] = (cache.path / "damaged").iterdir()
    assert linked == aside.is_symlink()
    assert linked or aside.read_text() == "mine: a file"
