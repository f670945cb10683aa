"""READ on a shared copy: what is removed while it is read is looked for again, and is no damage."""

from collections.abc import Callable

import pytest

from embedcache.remotes.remote import Remote
from embedcache.sharing.share import pull, push
from embedcache.sharing.survey import verify_remote
from embedcache.store.cache import Cache
from embedcache.upkeep.forgetting import forget
from tests import fakes
from tests.sharing.members import Make, held, row_of, there
from tests.stores import photos

MOMENTS: dict[str, Callable[[str, str], bool]] = {
    "amid the listing": lambda method, key: method == "list" and key == "faces/",
    "before a manifest": lambda method, key: key.endswith("manifest.json"),
    "before a column": lambda method, key: "/digest/" in key,
    "before the rows": lambda method, key: "/embedding/" in key,
    "before the ids": lambda method, key: "/id_text/" in key,
}


def purge_of(cache: Cache, remote: Remote, *numbers: int) -> Callable[[], None]:
    """What forgets photos in `cache`, and then purges the remote."""
    cache.record_photos("f", [str(n) for n in numbers], photos(*numbers))

    def purge() -> None:
        forget(cache, [str(n) for n in numbers])
        push(cache, remote, with_ids=True, purge=True)

    return purge


@pytest.mark.parametrize("remote", ["folder", "memory"], indirect=True)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_pull_brings_what_a_purge_puts_in_the_place_of_segments(
    moment: str, remote: Remote, make: Make
) -> None:
    a, b, c = make("a", [0, 1, 2], [3, 4]), make("b", [1, 3]), make("c", [0])
    a.record_photos("f", ["0", "1"], photos(0, 1))
    push(a, remote, with_ids=True)
    meanwhile = fakes.Meanwhile(remote, MOMENTS[moment], purge_of(b, remote, 1, 3))
    came = pull(meanwhile, c, with_ids=True)
    assert meanwhile.happened
    assert came.problems == ()
    assert held(c) == {0, 2, 4}  # also where rows of 1 and 3 came before they were forgotten
    assert came.rows >= 2


@pytest.mark.parametrize("remote", ["folder", "memory"], indirect=True)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_purge_amid_another_one_is_no_damage(moment: str, remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1, 2], [3, 4]), make("b", [1, 3])
    a.record_photos("f", ["0", "1"], photos(0, 1))
    push(a, remote, with_ids=True)
    forget(a, ["1"])
    # The own segments are not here any more, so that their bytes are asked of the remote.
    meanwhile = fakes.Meanwhile(remote, MOMENTS[moment], purge_of(b, remote, 1, 3))
    did = push(a, meanwhile, with_ids=True, purge=True)
    assert did.problems == ()
    if not meanwhile.happened:
        purge_of(b, remote, 1, 3)()
    c = make("c")
    assert pull(remote, c).problems == ()
    assert held(c) == {0, 2, 4}
    assert not any(row_of(n) in there(remote) for n in (1, 3))


def test_a_purge_says_which_damaged_segment_may_hold_forgotten_rows(
    remote: Remote, make: Make
) -> None:
    a, b = make("a", [0, 1], [2, 3]), make("b", [1, 3])
    push(a, remote)
    [key, *_] = sorted(e.key for e in remote.list("spaces/") if "/digest/c" in e.key)
    raw = b"".join(remote.blocks(key))
    remote.delete(key)
    remote.write(key, lambda: iter([raw[:-1] + bytes([raw[-1] ^ 1])]), size=len(raw))
    forget_both = purge_of(b, remote, 1, 3)
    forget_both()
    did = push(b, remote, purge=True)
    assert did.problems  # one from the push, which cannot heal it, and one from the purge
    assert all(key.split("/")[3] in problem for problem in did.problems)
    assert row_of(3) not in there(remote)  # the other segment is purged all the same


@pytest.mark.parametrize("moment", ["amid the listing", "before a column", "before the rows"])
def test_verify_beside_a_purge_finds_no_damage(moment: str, remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1, 2], [3, 4]), make("b", [1, 3])
    push(a, remote)
    meanwhile = fakes.Meanwhile(remote, MOMENTS[moment], purge_of(b, remote, 1, 3))
    assert verify_remote(meanwhile).findings == ()
    assert meanwhile.happened


def test_ids_that_were_purged_or_forgotten_do_not_come_or_go_again(
    remote: Remote, make: Make
) -> None:
    a, b = make("a", [0, 1]), make("b", [0, 1])
    a.record_photos("f", ["0", "1"], photos(0, 1))
    push(a, remote, with_ids=True)
    pull(remote, b, with_ids=True)
    forget(b, ["1"])
    for _ in range(2):
        assert pull(remote, b, with_ids=True).ids == 0
    assert len(b.photo_segments()) == 1
    push(b, remote, with_ids=True, purge=True)
    for _ in range(2):  # a still holds the segment that was purged there
        assert push(a, remote, with_ids=True).ids == 0
