"""What somebody else put into a shared copy, or into a new cache, is not deleted."""

from pathlib import Path

import pytest

from embedcache.errors import CacheError
from embedcache.remotes.remote import Remote
from embedcache.sharing.connecting import destination
from embedcache.sharing.share import pull, push
from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.verify import verify
from tests.sharing.members import SPEC, Make, held
from tests.stores import photos

THEIRS = ("umap/c/0/0", "umap/zarr.json", "notes", "readme.json")


def said(remote: Remote, folder: Path) -> list[str]:
    """What the files of others say, wherever they are now."""
    raws = [b"".join(remote.blocks(entry.key)) for entry in remote.list("")]
    raws += [path.read_bytes() for path in folder.glob("**/.*/**/*") if path.is_file()]
    return sorted(raw.decode() for raw in raws if raw.startswith(b"mine: "))


def test_a_purge_leaves_what_others_put_into_a_segment(
    remote: Remote, make: Make, tmp_path: Path
) -> None:
    a, b = make("a", [0, 1, 2], [3]), make("b")
    a.record_photos("f", ["1"], photos(1))
    push(a, remote)
    segment = a.space(SPEC).segments()[0]
    for name in THEIRS:
        key, raw = f"spaces/{SPEC.digest}/segments/{segment.id}/{name}", f"mine: {name}".encode()
        assert remote.create(key, raw)
    forget(a, ["1"])
    for _ in range(2):
        [note] = [note for note in push(a, remote, purge=True).notes if "did not write" in note]
        assert segment.id in note
    assert said(remote, tmp_path / "shared") == sorted(f"mine: {name}" for name in THEIRS)
    assert pull(remote, b).problems == ()
    assert held(b) == {0, 2, 3}


def test_a_shared_folder_gives_them_back_to_compact(make: Make, tmp_path: Path) -> None:
    a, folder = make("a", [0, 1, 2]), tmp_path / "shared"
    a.record_photos("f", ["1"], photos(1))
    push(a, str(folder))
    [segment] = a.space(SPEC).segments()
    place = folder / "spaces" / SPEC.digest / "segments" / segment.id / "umap"
    place.mkdir()
    (place / ".plan").write_text("mine: plan")
    (place / "plan").symlink_to(tmp_path)
    forget(a, ["1"])
    push(a, str(folder), purge=True)
    compact(Cache.open(folder))
    home = folder / "damaged"
    assert [path.read_text() for path in home.rglob(".plan")] == ["mine: plan"]
    assert [path.is_symlink() for path in home.rglob("plan")] == [True]
    assert verify(folder).clean, str(verify(folder))


@pytest.mark.parametrize("name", ["notes.txt", ".notes", "plans/x"])
def test_a_pull_that_fails_leaves_what_others_put_into_its_new_cache(
    name: str, tmp_path: Path
) -> None:
    new = tmp_path / "new" / name

    def stopped() -> None:
        with destination(tmp_path / "new"):
            new.parent.mkdir(exist_ok=True)
            new.write_text("mine")
            raise CacheError("stopped")

    with pytest.raises(CacheError, match="stopped"):
        stopped()
    assert new.read_text() == "mine"
