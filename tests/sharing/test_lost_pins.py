"""Refs go to a shared copy that has lost segments of theirs: exactly their rows are sent again."""

import shutil
from pathlib import Path

import pytest

from embedcache.errors import RemoteError
from embedcache.sharing import announcing
from embedcache.sharing.share import pull, push
from embedcache.store.cache import Cache
from embedcache.store.log import Entry, Gone, append, read_log
from embedcache.store.segment import Segment
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.sharing.members import SPEC, Make, held
from tests.stores import fill, photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shared"


def first(folder: Path) -> Segment:
    return Cache.open(folder).space(SPEC).segments()[0]


def lose(folder: Path, *, whole: bool) -> None:
    """Damage the first segment of a shared folder, and repair: it is lost, or one row of it is."""
    name = "digest/c/0/0" if whole else "embedding/c/0/0"
    path = first(folder).folder / name
    raw = path.read_bytes()
    path.write_bytes(bytes(len(raw)) if whole else bytes([raw[0] ^ 8]) + raw[1:])
    verify(folder, repair=True)
    assert verify(folder).clean


def at_ref(cache: Path | str, ref: str) -> set[int]:
    return held_at(Cache.open(cache, ref=ref))


def held_at(cache: Cache) -> set[int]:
    everything = photos(*range(40))
    return {i for i, ok in enumerate(cache.space(SPEC).read(everything)[1]) if ok}


@pytest.mark.parametrize("whole", [True, False])
def test_a_ref_whose_segment_was_lost_there_is_sent_with_its_rows(
    whole: bool, folder: Path, make: Make
) -> None:
    a = make("a", [0, 1, 2], [3, 4])
    write_ref(a, "old")
    push(a, str(folder))
    lose(folder, whole=whole)
    write_ref(a, "new")
    done = push(a, str(folder))
    assert not done.problems
    assert set(done.refs) == ({"old", "new"} if whole else {"new"})
    assert at_ref(folder, "new") == {0, 1, 2, 3, 4}
    assert verify(folder).clean
    again = push(a, str(folder))
    assert (again.rows, again.refs, again.problems) == (0, (), ())
    b = make("b")
    assert not pull(str(folder), b).problems
    assert held(b) == {0, 1, 2, 3, 4}
    # Of segments that share rows a pull of everything brings what is lacking, and says so of refs.
    assert not pull(str(folder), b, ref="new").problems
    assert at_ref(b.path, "new") == {0, 1, 2, 3, 4}


def test_a_ref_stays_exact_where_others_hold_its_lost_rows_among_more(
    folder: Path, make: Make
) -> None:
    a = make("a", [0, 1, 2])
    push(a, str(folder))
    lose(folder, whole=True)
    push(make("b", [0, 1, 2, 9]), str(folder))
    write_ref(a, "paper")
    done = push(a, str(folder))
    assert done.refs == ("paper",)
    assert at_ref(folder, "paper") == {0, 1, 2}


def test_a_ref_of_segments_that_were_joined_there_is_sent(folder: Path, make: Make) -> None:
    a = make("a", [0, 1], [2, 3])
    push(a, str(folder))
    fill(Cache.open(folder).space(SPEC), photos(20))
    compact(Cache.open(folder))
    write_ref(a, "paper")
    done = push(a, str(folder))
    assert not done.problems
    assert at_ref(folder, "paper") == {0, 1, 2, 3}
    assert verify(folder).clean


def test_a_push_that_was_cut_before_its_ref_sends_no_row_twice(
    folder: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = make("a", [0, 1, 2])
    push(a, str(folder))
    lose(folder, whole=True)
    write_ref(a, "paper")

    def cut(*arguments: object) -> bool:
        raise RemoteError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(announcing, "_enter", cut)
        with pytest.raises(RemoteError, match="cut"):
            push(a, str(folder))
    done = push(a, str(folder))
    assert (done.rows, done.refs) == (0, ("paper",))
    assert at_ref(folder, "paper") == {0, 1, 2}


def test_a_dry_run_says_the_same(folder: Path, make: Make) -> None:
    a = make("a", [0, 1, 2])
    write_ref(a, "paper")
    push(a, str(folder))
    lose(folder, whole=True)
    dry, done = push(a, str(folder), dry_run=True), push(a, str(folder))
    assert (dry.rows, dry.refs, dry.problems) == (done.rows, done.refs, done.problems)


def test_a_lost_segment_comes_back_without_what_was_forgotten(folder: Path, make: Make) -> None:
    a = make("a", [0, 1, 2])
    a.record_photos("f", ["p0"], photos(0))
    write_ref(a, "paper")
    push(a, str(folder))
    forget(a, ["p0"])
    lose(folder, whole=True)
    done = push(a, str(folder))
    assert not done.problems
    assert at_ref(folder, "paper") == {1, 2}


def test_a_ref_that_pins_forgotten_rows_says_so(folder: Path, make: Make) -> None:
    """They are forgotten there, and still stored here."""
    a, b = make("a", [0, 1, 2]), make("b", [0])
    b.record_photos("f", ["p0"], photos(0))
    forget(b, ["p0"])
    push(b, str(folder))
    write_ref(a, "paper")
    [problem] = push(a, str(folder)).problems
    assert "pins segments with forgotten photos" in problem


def take_away(cache: Cache, segment: Segment, *, into: tuple[str, ...] | None = None) -> None:
    """Enter in a cache's log that a segment was removed, as damage to a pinned one ends."""
    gone = Entry(segments={f"{SPEC.digest}/{segment.id}": Gone(segment.digest, into)})
    append(cache.path, read_log(cache.path), lambda log: gone)
    shutil.rmtree(segment.folder)


@pytest.mark.parametrize("how", ["it", "what took its place", "one of two"])
def test_a_ref_of_rows_that_were_lost_here_is_not_sent_as_one_that_pins_nothing(
    how: str, folder: Path, make: Make
) -> None:
    a = make("a", [0, 1, 2], [3])
    write_ref(a, "paper")
    gone, other = a.space(SPEC).segments()
    if how == "what took its place":
        [new] = make("b", [0, 1]).space(SPEC).segments()
        take_away(a, gone, into=(new.id,))
        shutil.copytree(new.folder, other.folder.with_name(new.id))
        gone = next(one for one in Cache.open(a.path).space(SPEC).segments() if one.id == new.id)
    take_away(a, gone)
    if how == "it":
        take_away(a, other, into=())
    [problem] = push(Cache.open(a.path), str(folder)).problems
    assert "ref paper was not pushed" in problem
    assert "neither" in problem
    assert not [*folder.glob("refs/*.json")]
    b = make("c")
    assert pull(str(folder), b).problems == ()
