"""Freeing a whole backbone: all of it goes, here only, and nothing else does."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache.errors import CacheError, Damaged, NoSuchSpace
from embedcache.sharing.share import pull, push
from embedcache.spec import foreign
from embedcache.store import clearing
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, OK
from embedcache.store.log import create_entry
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.freeing import forget_space
from embedcache.upkeep.inventory import summarise
from embedcache.upkeep.merging import merge
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.stores import DETECTOR, fill, model, photos
from tests.upkeep.caches import SPEC, make

Run = Callable[..., tuple[int, str, str]]
OTHER = foreign("other", 4)
N = 10


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Ten photos with vectors of "net", in two segments, and of "other"; faces and ids."""
    cache = make(tmp_path / "a", *range(N))
    fill(cache.space(OTHER, create=True), photos(*range(N)), name="other")
    return cache


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def rest_is_whole(cache: Cache) -> None:
    """Whatever is not of "net" is as it was."""
    everything = photos(*range(N))
    cache = Cache.open(cache.path)
    assert (cache.space(OTHER).read(everything)[0] == model(everything, 4)).all()
    assert (cache.face_space(DETECTOR).status(everything) == OK).all()
    assert cache.digests_of([f"p{n}" for n in range(N)])[1].all()
    assert verify(cache).clean, str(verify(cache))


def holds_nothing(cache: Cache) -> None:
    """No file holds a vector of "net"."""
    everything = b"".join(p.read_bytes() for p in cache.path.rglob("*") if p.is_file())
    assert not [n for n in (*range(N), 20) if model(photos(n)).tobytes() in everything]


def status(cache: Cache) -> set[int]:
    return {*Cache.open(cache.path).space(SPEC).status(photos(*range(N))).tolist()}


def test_all_vectors_of_a_backbone_go_and_the_bytes_are_counted(cache: Cache, run: Run) -> None:
    space = cache.space(SPEC)
    with space.writer(n_rows=1, name="net", about={}) as writer:
        writer.fail(photos(50), ["not_an_image"])
    for folder in (cache.remembered("index"), cache.local / "alike"):
        folder.mkdir(exist_ok=True, parents=True)
        (folder / f"{space.digest}.table").write_bytes(b"12345678")
    before = size(cache.path)
    code, out, err = run("forget", cache.path, "--space", "net", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["rows"], found["failed"], found["segments"], found["left"]) == (N, 1, 3, 0)
    assert (found["backbone"], found["spec"]) == ("net", space.digest)
    grown = size(cache.path / "removed")
    grown += size(cache.path / "local" / "memory")
    assert found["bytes_freed"] == before - size(cache.path) + grown > N * 8 * 4
    assert status(cache) == {ABSENT}
    holds_nothing(cache)
    rest_is_whole(cache)


def test_the_answer_says_what_brings_it_again_and_what_does_not(cache: Cache, run: Run) -> None:
    code, out, err = run("forget", cache.path, "--space", "net")
    assert (code, err) == (0, "")
    assert out.startswith("removed 10 vectors of net (spec ")
    assert f"'embedcache pull URL {cache.path} --backbone other' does not" in out
    fill(cache.space(SPEC), photos(1))
    fill(cache.space(foreign("third", 2), create=True), photos(1), name="third")
    out = run("forget", cache.path, "--space", "net")[1]
    assert "(with the option again for " in out
    assert run("forget", cache.path, "--space", "third")[0] == 0
    alone = run("forget", cache.path, "--space", "other")
    assert alone[0] == 0
    assert "does not" not in alone[1]
    assert run("forget", cache.path, "p1", "--space", "other")[0] == 1
    assert run("forget", cache.path, "--space", "other", "--scope", "folder")[0] == 1
    code, _, err = run("forget", cache.path, "--space", "other")
    assert code == 1
    assert "has no vectors of 'other'" in err


def test_the_empty_space_disturbs_nobody_and_fills_again(cache: Cache, tmp_path: Path) -> None:
    forget_space(cache, "net")
    assert [counts.ok for _, _, counts in summarise(cache).spaces] in ([0, N], [N, 0])
    assert "0 distinct photos" in str(summarise(cache, photos=True))
    write_ref(cache, "then")
    assert not push(cache, str(tmp_path / "remote")).problems
    fresh = Cache.open(tmp_path / "fresh", create=True)
    assert not pull(str(tmp_path / "remote"), fresh).problems
    assert [space.names for space in fresh.spaces()] == [("other",)]
    assert not pull(str(tmp_path / "remote"), cache).problems
    fill(cache.space(SPEC, create=True), photos(1, 2))
    assert cache.find("net").status(photos(1, 2, 3)).tolist() == [OK, OK, ABSENT]
    compact(cache)
    forget(cache, ["p1"])
    assert cache.find("net").status(photos(1, 2)).tolist() == [ABSENT, OK]
    assert verify(cache).clean


def test_a_name_means_the_vectors_that_are_left_where_others_of_that_name_were_freed(
    cache: Cache,
) -> None:
    again = foreign("net", 12)
    fill(cache.space(again, create=True), photos(1), name="net")
    cache.remember_places({SPEC.digest: "net", again.digest: "net"})
    for freed, left in ((SPEC, again), (again, SPEC)):
        with pytest.raises(NoSuchSpace, match="holds 2 sets of vectors of 'net'"):
            Cache.open(cache.path).find("net")
        forget_space(Cache.open(cache.path), f"net#{freed.digest[:8]}")
        assert Cache.open(cache.path).find("net").digest == left.digest
        fill(Cache.open(cache.path).space(freed), photos(1))


def test_copies_keep_it_and_bring_it_again_when_asked(cache: Cache, tmp_path: Path) -> None:
    remote = str(tmp_path / "remote")
    push(cache, remote)
    copy = Cache.open(shutil.copytree(cache.path, tmp_path / "copy"))
    forget_space(cache, "net")
    assert not push(cache, remote, purge=True).problems
    assert not pull(remote, cache, backbones=["other"]).problems
    assert status(cache) == {ABSENT}
    told = pull(remote, cache)
    assert not told.problems
    assert told.rows == N
    assert status(cache) == {OK}
    assert not [s for s in cache.space(SPEC).segments() if s.id in cache.history.log().gone]
    forget_space(cache, "net")
    assert status(cache) == {ABSENT}
    assert merge(cache, [copy]).rows == N
    assert status(cache) == {OK}
    assert merge(copy, [cache]).rows == 0
    assert status(copy) == {OK}
    rest_is_whole(cache)
    rest_is_whole(copy)


def test_a_ref_of_a_copy_reads_what_came_again(cache: Cache, tmp_path: Path) -> None:
    copy = Cache.open(shutil.copytree(cache.path, tmp_path / "copy"))
    write_ref(copy, "table-2")
    push(copy, str(tmp_path / "remote"))
    forget_space(cache, "net")
    assert not pull(str(tmp_path / "remote"), cache).problems
    there = Cache.open(cache.path, ref="table-2")
    assert (there.space(SPEC).status(photos(*range(N))) == OK).all()
    rest_is_whole(cache)


def test_refs_that_pin_it_are_named_and_nothing_is_touched(cache: Cache, run: Run) -> None:
    for name in ("table-1", "table-2"):
        write_ref(cache, name)
    writer = cache.space(SPEC).writer(n_rows=1, name="net", about={})
    writer.add(photos(20), model(photos(20)))
    writer.abandon()
    before = {p: p.read_bytes() for p in cache.path.rglob("*") if p.is_file()}
    code, out, err = run("forget", cache.path, "--space", "net")
    assert (code, out) == (1, "")
    assert "refs table-1, table-2 pin vectors of net" in err
    assert f"'embedcache pull {cache.path} NEW --with-ids --backbone other'" in err
    assert {p: p.read_bytes() for p in cache.path.rglob("*") if p.is_file()} == before
    for name in ("table-1", "table-2"):
        (cache.path / "refs" / f"{name}.json").unlink()
    assert forget_space(cache, "net").rows == N
    holds_nothing(cache)
    rest_is_whole(cache)


def test_a_ref_of_other_vectors_only_is_no_hindrance(cache: Cache) -> None:
    forget_space(cache, "net")
    write_ref(cache, "without")
    fill(cache.space(SPEC), photos(*range(N)))
    assert forget_space(cache, "net").rows == N
    at = Cache.open(cache.path, ref="without")
    assert (at.space(OTHER).status(photos(*range(N))) == OK).all()
    rest_is_whole(cache)


def test_a_damaged_ref_makes_it_refuse(cache: Cache) -> None:
    write_ref(cache, "table")
    path = cache.path / "refs" / "table.json"
    path.write_bytes(path.read_bytes().replace(b"ref", b"reF"))
    with pytest.raises(Damaged, match="table"):
        forget_space(cache, "net")
    assert status(cache) == {OK}


def test_what_a_dead_writer_left_goes_too(cache: Cache) -> None:
    for n in (20, 21):
        writer = cache.space(SPEC).writer(n_rows=1, name="net", about={})
        writer.add(photos(n), model(photos(n)))
        writer.abandon()
    told = forget_space(cache, "net")
    assert (told.rows, told.left) == (N, 0)
    left = [p.name for p in cache.space(SPEC).segments_folder.iterdir()]
    assert left == ["zarr.json"]
    assert told.bytes_freed > 0
    rest_is_whole(cache)


def test_a_living_writer_goes_on_and_is_named(cache: Cache) -> None:
    with cache.space(SPEC).writer(n_rows=1, name="net", about={}) as writer:
        writer.add(photos(20), model(photos(20)))
        told = forget_space(cache, "net")
        assert any("is being written by" in note for note in told.notes)
        writer.commit()
    assert cache.find("net").status(photos(20, 1)).tolist() == [OK, ABSENT]
    assert verify(cache).clean


def _before_entry(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Let another process `act` right before this one creates the entry of that number."""
    waiting = [act]

    def slowly(folder: Path, n: int, entry: Any) -> bool:
        if n >= number and waiting:
            waiting.pop()()
        return create_entry(folder, n, entry)

    monkeypatch.setattr(clearing, "create_entry", slowly)


def _joined(cache: Cache) -> str | None:
    """What `compact` publishes before it removes anything."""
    space = Cache.open(cache.path).space(SPEC)
    chosen = [(s, np.arange(s.manifest.n_rows)) for s in space.segments()]
    return space.rewrite(chosen, about={"device": "cpu", "compacted_segments": len(chosen)})


def test_what_others_made_of_these_rows_meanwhile_goes_too(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    _before_entry(monkeypatch, 1, lambda: _joined(cache))
    told = forget_space(cache, "net")
    assert (told.left, told.segments) == (0, 3)
    assert status(cache) == {ABSENT}
    holds_nothing(cache)
    rest_is_whole(cache)


def test_what_is_written_meanwhile_stays_and_is_counted(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = photos(0, 1)  # the same photos, the same bytes
    _before_entry(monkeypatch, 1, lambda: fill(Cache.open(cache.path).space(SPEC), again))
    told = forget_space(cache, "net")
    assert told.left == 2
    assert any("2 vectors of net were written meanwhile" in note for note in told.notes)
    assert status(cache) == {ABSENT, OK}
    assert forget_space(cache, "net").rows == 2
    rest_is_whole(cache)


def test_a_ref_that_comes_first_is_named_and_keeps_all(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    _before_entry(monkeypatch, 1, lambda: write_ref(Cache.open(cache.path), "first"))
    with pytest.raises(CacheError, match="ref first pins vectors of net"):
        forget_space(cache, "net")
    assert status(cache) == {OK}
    rest_is_whole(cache)


def test_what_compaction_has_joined_before_the_entry_goes(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    _before_entry(monkeypatch, 1, lambda: compact(Cache.open(cache.path)))
    assert forget_space(cache, "net").left == 0
    assert status(cache) == {ABSENT}
    rest_is_whole(cache)


def test_many_segments_take_several_entries(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clearing, "MAX_SEGMENTS", 1)
    before = cache.history.log().n
    assert forget_space(cache, "net").segments == 2
    assert cache.history.log().n == before + 2
    rest_is_whole(cache)


def test_damaged_vectors_can_be_freed(cache: Cache) -> None:
    for path in (cache.space(SPEC).segments_folder).rglob("embedding/c/0/0"):
        path.write_bytes(b"\0" * path.stat().st_size)
    assert forget_space(cache, "net").left == 0
    rest_is_whole(cache)


def test_what_others_put_into_a_segment_is_set_aside(cache: Cache) -> None:
    first = cache.space(SPEC).segments()[0]
    (first.folder / "notes.txt").write_text("mine")
    told = forget_space(cache, "net")
    assert any("did not write" in note for note in told.notes)
    assert [p.read_text() for p in (cache.path / "damaged").rglob("notes.txt")] == ["mine"]


def test_two_of_one_name_are_told_apart_also_by_a_rerun(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = cache.space(foreign("twin", 3), create=True)
    fill(twin, photos(1), name="net")
    with pytest.raises(NoSuchSpace, match="2 sets of vectors"):
        forget_space(cache, "net")
    name = f"net#{cache.space(SPEC).digest[:8]}"
    with monkeypatch.context() as patch:
        patch.setattr("embedcache.upkeep.freeing.finish", lambda of: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            forget_space(cache, name)
    told = forget_space(cache, name)
    assert (told.backbone, told.spec) == ("net", cache.space(SPEC).digest)
    assert told.bytes_freed > N * 8 * 4
    assert cache.find("net").digest == twin.digest
    holds_nothing(cache)
    rest_is_whole(cache)


@pytest.mark.parametrize("call", ["rename", "unlink", "rmdir", "mkdir"])
def test_cut_off_anywhere_a_rerun_ends_it(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = make(tmp_path / "template", *range(N))
    fill(template.space(OTHER, create=True), photos(*range(N)), name="other")
    writer = template.space(SPEC).writer(n_rows=1, name="net", about={})
    writer.add(photos(20), model(photos(20)))
    writer.abandon()
    real = getattr(os, call)
    for k in range(1_000):
        cache = Cache.open(shutil.copytree(template.path, tmp_path / f"{call}{k}"))
        calls = iter(range(k))

        def cut(*args: Any, calls: Any = calls, **named: Any) -> Any:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return real(*args, **named)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, cut)
            try:
                forget_space(cache, "net")
            except KeyboardInterrupt:
                done = False
            else:
                done = True
        if not done:
            try:
                forget_space(Cache.open(cache.path), "net")
            except NoSuchSpace:  # it was over, but for the last folder
                assert status(cache) == {ABSENT}
        holds_nothing(cache)
        rest_is_whole(cache)
        shutil.rmtree(cache.path)
        if done:
            assert k > 0 or call == "mkdir"
            return
    raise AssertionError("it never ended")


def test_the_refs_that_pin_it_are_deleted_by_the_command_that_the_message_names(
    cache: Cache, run: Run
) -> None:
    write_ref(cache, "one")
    write_ref(cache, "two")
    with pytest.raises(CacheError, match="refs one, two pin vectors of net") as refused:
        forget_space(cache, "net")
    advised = str(refused.value).partition("'embedcache ")[2].partition("'")[0].split()
    status, out, err = run(*advised, "--json")
    assert status == 0, err
    assert json.loads(out) == {"deleted": ["one", "two"]}
    assert verify(cache).clean, str(verify(cache))
    forget_space(Cache.open(cache.path), "net")
    holds_nothing(cache)
    rest_is_whole(cache)


def test_a_name_that_is_no_ref_deletes_none(cache: Cache, run: Run) -> None:
    write_ref(cache, "one")
    status, _, err = run("ref", cache.path, "one", "gone", "--delete")
    assert status == 1
    assert "has no ref 'gone'; it has one" in err
    assert (cache.path / "refs" / "one.json").exists()
    status, _, err = run("ref", cache.path, "two", "three")
    assert status == 1
    assert "a ref has one name" in err
