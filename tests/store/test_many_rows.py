"""What fits a large cache into memory: ids as arrays, tables that are merged, rows in buckets."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scale
from embedcache import texts
from embedcache.spec import foreign
from embedcache.store import pairs, photo_ids, rows, union
from embedcache.store.cache import Cache
from embedcache.store.index import Table, distinct
from embedcache.store.pairs import Pairs, Run
from embedcache.store.removal import Victim
from embedcache.store.tombstones import content_mark, pair_mark
from embedcache.store.union import lacking
from embedcache.texts import Below, Growing, Repeats, Texts, few_as_tuple
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from tests.stores import fill, model, photos

NAMES = ["", "a", "ab", "ü.jpg", "日本/x", "b" * 9, "z\0"]
NONE = np.empty(0, np.int64)


def same_table(one: Table, other: Table) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("keys", "digests", "segment", "row", "ok")
    )


def few_digests(rng: np.random.Generator, n: int) -> np.ndarray:
    """Contents that often repeat, and often share their first eight bytes only."""
    found = rng.integers(0, 2, (n, 32), dtype=np.uint8)
    found[:, 1:30] = 0
    return found


def test_a_table_that_is_brought_up_to_date_is_the_one_that_is_made_from_nothing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        parts = []
        for number in range(6):
            digests = few_digests(rng, int(rng.integers(0, 6)))
            parts.append((number, digests, int(rng.integers(0, len(digests) + 1))))
        old = sorted(rng.permutation(6)[: int(rng.integers(0, 7))].tolist())
        known = [(k, *parts[number][1:]) for k, number in enumerate(old)]
        base = Table.empty().extended(known, renumbered=NONE)
        fresh = [part for part in parts if part[0] not in old]
        one_by_one = base.extended(
            iter(fresh),
            renumbered=np.array(old, np.int64),
            n_rows=sum(len(digests) for _, digests, _ in fresh),
        )
        assert same_table(one_by_one, Table.empty().extended(parts, renumbered=NONE))


def test_a_saved_table_is_mapped_and_whole_or_not_there(tmp_path: Path) -> None:
    table = Table.empty().extended([(0, photos(*range(50)), 40)], renumbered=NONE)
    table.save(tmp_path / "t", ["one"])
    raw = (tmp_path / "t").read_bytes()
    saved = Table.load(tmp_path / "t")
    assert saved is not None
    assert same_table(saved.table, table)
    assert saved.segments == ["one"]
    for at in range(0, len(raw), 7):
        wrong = bytearray(raw)
        wrong[at] ^= 1
        (tmp_path / "t").write_bytes(wrong)
        assert Table.load(tmp_path / "t") is None
    for length in (0, 5, 40, len(raw) - 1):
        (tmp_path / "t").write_bytes(raw[:length])
        assert Table.load(tmp_path / "t") is None


@pytest.mark.parametrize("colliding", [False, True])
@pytest.mark.parametrize("block", [3, 1 << 16])
def test_pairs_answer_as_a_dict_of_lists_does(
    colliding: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "BLOCK_TEXTS", block)
    monkeypatch.setattr(pairs, "BLOCK_IDS", block)
    if colliding:
        real = Texts.hashes
        monkeypatch.setattr(Texts, "hashes", lambda self: real(self) % np.uint64(3))
    rng = np.random.default_rng(1)
    for _ in range(150):
        runs: list[Run] = []
        model_: dict[str, list[bytes]] = {}
        for _ in range(int(rng.integers(0, 4))):
            ids = [NAMES[i] for i in rng.integers(0, len(NAMES), int(rng.integers(1, 9)))]
            digests = few_digests(rng, len(ids))
            runs.append(Run.of(Texts.of(ids), digests))
            for name, content in zip(ids, map(bytes, digests), strict=True):
                contents = model_.setdefault(name, [])
                if content in contents:
                    contents.remove(content)
                contents.insert(0, content)
        found = Pairs("folder", runs)
        expected = [(n, c, age == 0) for n, some in model_.items() for age, c in enumerate(some)]
        names, digests, newest = found.table()
        assert [*zip(names, map(bytes, digests), newest.tolist(), strict=True)] == expected
        asked = [*NAMES, "nobody", "a\udcff"]
        contents_, known = found.contents(asked)
        for name, content, there in zip(asked, map(bytes, contents_), known, strict=True):
            assert there == (name in model_)
            assert not there or content == model_[name][0]


def test_texts_and_repeats_are_sequences_like_any_other() -> None:
    some = Texts.of(NAMES)
    for sequence, expected in ((some, NAMES), (Repeats({"a": 2, "b": 0, "c": 3}), list("aaccc"))):
        assert isinstance(sequence, Sequence)
        assert [*sequence] == expected == [sequence[i] for i in range(len(expected))]
        assert sequence == expected
        assert sequence != expected[:-1]
        assert sequence[1:3] == expected[1:3]
        assert sequence[::-2] == expected[::-2]
        assert sequence[-1] == expected[-1]
        assert expected[0] in sequence
        assert "nobody" not in sequence
        with pytest.raises(IndexError):
            sequence[len(expected)]
    assert [*some.take(np.array([4, 0, 4]))] == [NAMES[4], "", NAMES[4]]


def test_texts_give_back_whatever_they_were_made_of() -> None:
    odd = [*NAMES, "caf\udce9.jpg", "\ud800", "\ud83d\ude00"]
    some = Texts.of(iter(odd))
    assert [*some] == odd == [some[i] for i in range(len(odd))]
    growing = Growing()
    growing.add(odd[:3])
    growing.add(odd[3:])
    assert Texts(*growing.arrays()) == odd
    assert few_as_tuple(some) == tuple(odd)


@pytest.mark.parametrize("folder", ["/x", "/x/", "", "y/z"])
@pytest.mark.parametrize("form", [tuple, Texts.of])
def test_paths_below_a_folder_are_joined_as_the_system_joins_them(
    folder: str, form: Callable[[list[str]], Sequence[str]]
) -> None:
    names = ["a.jpg", "b/c.jpg", "/else/where.jpg", "", "../d"]
    expected = [os.path.join(folder, name) for name in names]
    found = Below(folder, form(names))
    assert [*found] == expected == [found[i] for i in range(len(names))]
    assert found[1:3] == expected[1:3]
    assert [*found.take(np.array([3, 0]))] == [expected[3], expected[0]]


@pytest.mark.parametrize("colliding", [False, True])
def test_ids_are_recorded_alike_whether_all_are_in_memory_or_none(
    colliding: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if colliding:
        real = Texts.hashes
        monkeypatch.setattr(Texts, "hashes", lambda self: real(self) % np.uint64(3))
    rng = np.random.default_rng(5)
    caches = [Cache.open(tmp_path / name, create=True) for name in ("all", "none")]
    lengths = []
    for turn in range(40):
        names = [NAMES[i] for i in rng.integers(0, len(NAMES), int(rng.integers(0, 6)))]
        scope, contents = f"folder {rng.integers(0, 2)}", photos(*rng.integers(0, 4, len(names)))
        which = rng.integers(0, 4, len(names)) > 0 if turn % 3 else None
        moment = f"29990101T0000{turn:02}000000"
        for k, cache in enumerate(caches):
            with monkeypatch.context() as patch:
                if k:
                    patch.setattr(photo_ids, "KEPT_IDS", -1)
                if turn % 10 == 9:  # as after a merge: two segments of one moment
                    for tail in ("00000001", "00000002"):
                        some = [NAMES[1], NAMES[1 + int(tail)]]
                        digests = photos(turn % 4, (turn + int(tail)) % 4)
                        name = f"{moment}-{tail}"
                        cache.photo_ids.write("folder 0", some, digests, segment_id=name)
                if turn % 7 == 6:
                    mark = pair_mark("folder 1", NAMES[turn % 5], photos(turn % 3).tobytes())
                    cache.history.forget(pairs=[mark])
                if turn == 30:
                    cache.history.forget(contents=[content_mark(photos(3).tobytes())])
                cache.record_photos(scope, names, contents, which=which)
                lengths.append(sum(s.manifest.n_rows for s in cache.photo_segments()))
        tables = [
            (*zip(t.ids, t.scopes, map(bytes, t.digests), t.newest.tolist(), strict=True),)
            for t in (Cache.open(cache.path).photo_table() for cache in caches)
        ]
        assert {*tables[0]} == {*tables[1]}
    assert lengths[::2] == lengths[1::2]  # what is known was not recorded again


def test_each_content_is_found_once_where_many_are_planned() -> None:
    rng = np.random.default_rng(2)
    for n in (0, 1, 9, 40):
        digests = few_digests(rng, n)
        first, copies = distinct(digests)
        seen: dict[bytes, list[int]] = {}
        for i, content in enumerate(map(bytes, digests)):
            seen.setdefault(content, []).append(i)
        assert first.tolist() == [at[0] for at in seen.values()]
        assert copies.tolist() == [len(at) for at in seen.values()]


def test_what_is_lacking_is_the_same_in_many_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    numbers = [rng.integers(0, 60, 30).tolist() for _ in range(5)]
    sides = [(photos(*some), 20) for some in numbers]

    def status(digests: np.ndarray) -> np.ndarray:
        return (digests[:, 5] % 3).astype(np.uint8)

    def dead(digests: np.ndarray) -> np.ndarray:
        found: np.ndarray = digests[:, 6] % 5 == 0
        return found

    for wanted in (None, photos(*range(20))):
        expected = lacking(sides, status=status, dead=dead, wanted=wanted)
        with monkeypatch.context() as patch:
            patch.setattr(union, "BUCKET_ROWS", 4)
            found = lacking(sides, status=status, dead=dead, wanted=wanted)
        assert [r.tolist() for r in found.rows] == [r.tolist() for r in expected.rows]
        assert (found.already_there, found.withheld) == (
            expected.already_there,
            expected.withheld,
        )


def test_an_index_outlives_segments_that_were_joined_or_lost_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the one that is made from nothing, whichever of several rows of a content went."""
    monkeypatch.setattr(rows, "MAPPED_ROWS", 1)
    monkeypatch.setattr(rows, "INDEX_SEGMENTS", 1)
    rng = np.random.default_rng(4)
    cache = Cache.open(tmp_path / "c", create=True)
    space = cache.space(foreign("net", 8), create=True)
    there: set[int] = set()

    def check() -> None:
        kept, (segments, table) = {*there}, space.row_table()
        shutil.rmtree(cache.path / "local" / "memory", ignore_errors=True)
        fresh = Cache.open(cache.path).space(foreign("net", 8))
        assert [s.id for s in segments] == [s.id for s in fresh.segments()]
        assert same_table(fresh.row_table()[1], table)
        assert (space.status(photos(*kept)) == 1).all()

    for turn in range(24):
        some = rng.permutation(40)[:8].tolist()
        with space.writer(n_rows=8, name="net", about={}) as writer:
            writer.add(photos(*some[:6]), model(photos(*some[:6])))
            writer.fail(photos(*some[6:]), ["broken"] * 2)
        there |= {*some[:6]}
        cache.record_photos("here", [str(i) for i in some], photos(*some))
        check()
        if turn % 4 == 2:
            forget(Cache.open(cache.path), [str(some[0])])
            there.discard(some[0])
            assert space.status(photos(some[0])).tolist() == [0]
            check()
            cache.lift(photos(some[0]))
        elif turn % 8 == 5:
            compact(Cache.open(cache.path))
            check()


def test_the_next_row_of_a_content_counts_where_the_first_ones_segment_went(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "c", create=True)
    space = cache.space(foreign("net", 8), create=True)
    first, second, _ = (fill(space, photos(*some)) for some in ([1, 2], [2, 3], [4]))
    assert first is not None
    before = space.row_table()[1]
    assert before.segment[before.find(photos(2))].tolist() == [0]
    one, *_ = space.segments()
    # As a compaction leaves it: the rows are in a later segment, and those of others before it.
    new = space.rewrite([(one, np.arange(2))], about={})
    assert new is not None
    assert space.remove([Victim(one, (new,))])
    segments, table = space.row_table()
    names = [segments[int(i)].id for i in table.segment[table.find(photos(1, 2, 3, 4))]]
    assert names[:3] == [new, second, second]


def test_pairs_are_found_by_id_and_by_content_with_what_was_forgotten(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "c", create=True)
    cache.record_photos("one", ["a", "b", "twin"], photos(1, 2, 1))
    cache.record_photos("two", ["a"], photos(3))
    one, two, three = (photos(n).tobytes() for n in (1, 2, 3))
    found = cache.photo_ids.pairs_of(ids=["a", "nobody"])
    assert found == {("one", "a", one), ("two", "a", three)}
    assert cache.photo_ids.pairs_of(contents=[one]) == {("one", "a", one), ("one", "twin", one)}
    assert cache.photo_ids.pairs_of(ids=["b"], contents=[three]) == {
        ("one", "b", two),
        ("two", "a", three),
    }
    cache.history.forget(contents=[content_mark(two)])
    assert cache.photo_ids.pairs_of(ids=["b"]) == set()
    assert cache.photo_ids.pairs_of(ids=["b"], dead=True) == {("one", "b", two)}
    assert cache.photo_table().places() == {"one": 2, "two": 1}


def test_the_benchmark_runs_at_a_small_size(tmp_path: Path) -> None:
    """The short form of benchmarks/scale.py: every step, in its own process."""
    lines = scale.main(["--rows=400", "--segments=3", "--planned=50", f"--folder={tmp_path}"])
    steps = [line for line in lines if line.startswith("| ")][1:]
    assert len(steps) == len(scale.STEPS) - 2  # without the peer
    assert not any("over 1.5 GB" in line for line in steps)
    assert any("plan a rerun of 50 |" in line for line in steps)
    assert not [*tmp_path.iterdir()]
