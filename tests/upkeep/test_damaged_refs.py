"""A damaged ref pins nobody knows what: forget goes on, other commands say what to do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache.errors import Damaged
from embedcache.sharing.share import push
from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.stores import fill, model, photos
from tests.upkeep.caches import SPEC, make, rows

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a byte": lambda raw: raw[:40] + bytes([raw[40] ^ 1]) + raw[41:],
    "cut": lambda raw: raw[:-7],
    "empty": lambda raw: b"",
}


@pytest.fixture(params=DAMAGE)
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Cache:
    """A cache with two segments, a good ref of both, and a damaged one."""
    cache = make(tmp_path / "a", 1, 2, 3, 4)
    write_ref(cache, "good")
    write_ref(cache, "hurt")
    path = cache.path / "refs" / "hurt.json"
    (tmp_path / "backup").write_bytes(path.read_bytes())
    path.write_bytes(DAMAGE[request.param](path.read_bytes()))
    return cache


def bytes_of(photo: int, cache: Path) -> list[Path]:
    row = model(photos(photo)).tobytes()
    return [path for path in cache.rglob("*") if path.is_file() and row in path.read_bytes()]


def test_forget_goes_on_beside_a_damaged_ref_and_names_it(cache: Cache) -> None:
    done = forget(cache, ["p1"])
    assert bytes_of(1, cache.path) == []
    assert done.refs == ("good",)
    [note] = done.notes
    assert f"{cache.path}/refs/hurt.json" in note
    assert f"'embedcache verify --repair {cache.path}'" in note
    read, found = Cache.open(cache.path, ref="good").space(SPEC).read(photos(1, 2, 3, 4))
    assert found.tolist() == [False, True, True, True]
    assert (read[1:] == model(photos(2, 3, 4))).all()


def test_a_ref_restored_from_a_backup_reads_what_it_pinned_less_what_was_forgotten(
    cache: Cache, tmp_path: Path
) -> None:
    forget(cache, ["p1"])
    fill(cache.space(SPEC), photos(9))
    with pytest.raises(Damaged):
        compact(cache)
    (tmp_path / "backup").rename(cache.path / "refs" / "hurt.json")
    compact(cache)
    assert verify(cache).clean
    found = Cache.open(cache.path, ref="hurt").space(SPEC).read(photos(1, 2, 3, 4, 9))[1]
    assert found.tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("command", ["compact", "push", "open"])
def test_commands_that_need_all_refs_name_the_file_and_the_command(
    command: str, cache: Cache, tmp_path: Path
) -> None:
    fill(cache.space(SPEC), photos(7))
    commands: dict[str, Callable[[], object]] = {
        "compact": lambda: compact(cache),
        "push": lambda: push(cache, str(tmp_path / "shared")),
        "open": lambda: Cache.open(cache.path, ref="hurt"),
    }
    before = rows(cache.space(SPEC))
    with pytest.raises(Exception, match=r"refs/hurt.json: .*\. Restore it .*verify --repair"):
        commands[command]()
    assert rows(cache.space(SPEC)) == before
    verify(cache, repair=True)
    assert verify(cache).clean
    if command == "compact":
        compact(cache)


def test_repair_mends_a_segment_beside_a_damaged_ref(cache: Cache) -> None:
    [first, _] = cache.space(SPEC).segments()
    shard = first.folder / "embedding/c/0/0"
    shard.write_bytes(b"\0" + shard.read_bytes()[1:])
    verify(cache, repair=True)
    assert verify(cache).clean
    assert cache.space(SPEC).read(photos(2, 3, 4))[1].all()
