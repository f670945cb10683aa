"""The queue of parts: everything is handed out, again where a worker is lost, and not for ever."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedcache.errors import RemoteError
from embedcache.extraction.handing import HandedWork
from embedcache.extraction.part_queue import (
    AWAITED_SECONDS,
    FIRST_PHOTOS,
    LEAST_PHOTOS,
    LOST_SECONDS,
    MOST_ENDS,
    MOST_STARTS,
    PART_SECONDS,
    SHARE,
    PartQueue,
)
from embedcache.extraction.work import WITH_NEIGHBOURS


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def drain(queue: PartQueue, worker: str) -> list[int]:
    """All rows that a worker gets until there is nothing more."""
    rows: list[int] = []
    while True:
        part, more = queue.next(worker)
        if part is None:
            assert not more
            return rows
        rows += part.rows.tolist()
        queue.done(worker, part.number)


def test_every_row_is_handed_out_once() -> None:
    queue = PartQueue(10_001, n_workers=3)
    assert drain(queue, "a") == list(range(10_001))
    assert queue.status().finished


def test_a_fast_worker_is_handed_more_and_the_last_parts_are_small() -> None:
    clock = Clock()
    queue = PartQueue(100_000, n_workers=2, now=clock)
    sizes: dict[str, list[int]] = {"fast": [], "slow": []}
    for _ in range(3):
        for worker, rate in (("fast", 50.0), ("slow", 5.0)):
            part, _ = queue.next(worker)
            assert part is not None
            sizes[worker].append(len(part.rows))
            clock.seconds += len(part.rows) / rate
            queue.done(worker, part.number)
    assert sizes["fast"][0] == sizes["slow"][0] == FIRST_PHOTOS
    assert sizes["fast"][1] == 50 * PART_SECONDS
    assert sizes["slow"][1] == 5 * PART_SECONDS
    assert max(sizes["fast"]) <= 100_000 / SHARE
    last = 0
    while (part := queue.next("fast")[0]) is not None:
        last = len(part.rows)
        queue.done("fast", part.number)
    assert last <= LEAST_PHOTOS


def test_a_worker_that_begins_anew_or_falls_silent_gives_its_part_back() -> None:
    clock = Clock()
    queue = PartQueue(4, n_workers=2, now=clock)
    first, _ = queue.next("a")
    assert first is not None
    queue.begin("a")
    again, _ = queue.next("b")
    assert again is not None
    assert np.array_equal(again.rows, first.rows)
    clock.seconds += LOST_SECONDS + 1
    third, _ = queue.next("a")
    assert third is not None
    assert np.array_equal(third.rows, first.rows[:2])  # the second time in halves


def test_who_waits_is_told_whether_a_part_may_come_back() -> None:
    queue = PartQueue(1, n_workers=2)
    part, _ = queue.next("a")
    assert part is not None
    assert queue.next("b") == (None, True)
    queue.done("a", part.number)
    assert queue.next("b") == (None, False)


@pytest.mark.parametrize("guilty", [{37}, {0, 63}, {10, 11, 40}, set(range(5))])
def test_only_the_photos_that_end_their_workers_are_given_up(guilty: set[int]) -> None:
    n, queue, done, ends = 100, PartQueue(100, n_workers=1), [], 0
    assert queue.begin("a")
    while (part := queue.next("a")[0]) is not None:
        if guilty & set(part.rows.tolist()):
            ends += 1
            assert queue.begin("a")
        else:
            done += part.rows.tolist()
            queue.done("a", part.number)
    assert set(queue.status().given_up) == guilty
    assert sorted(done) == sorted(set(range(n)) - guilty)
    assert queue.status().finished
    assert ends <= 8 * len(guilty)


def test_a_photo_whose_worker_ends_by_chance_is_tried_again() -> None:
    queue = PartQueue(1, n_workers=1)
    assert queue.next("a")[0] is not None
    assert queue.lost("a")
    assert drain(queue, "a") == [0]
    assert queue.status().given_up == ()


def test_a_worker_that_always_ends_is_not_started_without_end() -> None:
    queue = PartQueue(10_000, n_workers=1)
    assert [queue.begin("early") for _ in range(MOST_STARTS + 1)] == [True] * MOST_STARTS + [False]
    assert not queue.lost("early")
    assert not queue.lost("never seen")
    n_begun = 0
    while queue.begin("always"):
        n_begun += 1
        assert queue.next("always")[0] is not None
    assert n_begun == MOST_ENDS + 1
    assert drain(queue, "well")


def test_an_answer_that_comes_too_late_does_no_harm() -> None:
    clock = Clock()
    queue = PartQueue(1, n_workers=2, now=clock)
    part, _ = queue.next("a")
    assert part is not None
    clock.seconds += LOST_SECONDS + 1
    again, _ = queue.next("b")
    assert again is not None
    queue.done("a", part.number)
    assert not queue.status().finished
    queue.done("b", again.number)
    assert queue.status().finished


def test_a_stop_reaches_workers_and_hands_out_nothing_more() -> None:
    queue = PartQueue(100, n_workers=1)
    assert not queue.beat("a", 0, 0)
    queue.stop()
    assert queue.beat("a", 1, 0)
    assert queue.next("a") == (None, False)


def test_a_part_whose_only_worker_falls_silent_is_taken_back() -> None:
    clock = Clock()
    queue = PartQueue(1, n_workers=1, now=clock)
    assert queue.status().quiet_seconds is None
    assert queue.begin("a")
    assert queue.next("a")[0] is not None
    clock.seconds += LOST_SECONDS - 1  # a long part
    assert not queue.beat("a", 0, 0)
    clock.seconds += LOST_SECONDS + 1
    assert queue.status().quiet_seconds == LOST_SECONDS + 1
    assert drain(queue, "in its place") == [0]


def test_photos_that_a_machine_cannot_read_go_to_another() -> None:
    queue = PartQueue(200, n_workers=2)
    assert queue.begin("blind", "a")
    assert queue.begin("sees", "b")
    while (part := queue.next("blind")[0]) is not None:
        queue.beat("blind", 200, 0)
        rows = [row for row in part.rows.tolist() if row % 4 == 0]
        queue.done("blind", part.number, (150,), dict.fromkeys(rows, "vanished"))
    assert queue.next("blind") == (None, True)  # the other one may end
    assert queue.status().done == 150
    assert drain(queue, "sees") == list(range(0, 200, 4))
    queue.beat("sees", 50, 0)
    queue.done("sees", None, (50,))
    assert queue.never_read() == []
    status = queue.status()
    assert (status.finished, status.done, queue.embedded()) == (True, 200, (200,))


def test_photos_that_no_machine_can_read_are_named_with_all_that_tried() -> None:
    clock = Clock()
    queue = PartQueue(3, n_workers=3, now=clock)
    for worker, machine in (("a", "x"), ("b", "x"), ("c", "y")):
        if worker == "c":  # a machine that begins late is waited for
            assert queue.next("b") == (None, True)
        assert queue.begin(worker, machine)
        if worker != "b":  # is on a machine that has tried
            part, _ = queue.next(worker)
            assert part is not None
            queue.done(worker, part.number, (), dict.fromkeys(part.rows.tolist(), "vanished"))
    assert queue.status().finished
    found = {(one.row, one.reason, one.machines) for one in queue.never_read()}
    assert found == {(row, "vanished", frozenset("xy")) for row in range(3)}


def test_a_machine_that_never_comes_is_not_waited_for_without_end() -> None:
    clock = Clock()
    queue = PartQueue(1, n_workers=2, now=clock)
    assert queue.begin("a", "x")
    part, _ = queue.next("a")
    assert part is not None
    queue.done("a", part.number, (), {0: "vanished"})
    assert not queue.status().finished
    clock.seconds += AWAITED_SECONDS + 1
    queue.beat("a", 1, 0)
    assert queue.status().finished
    assert queue.status().done == 1


def test_what_workers_embedded_is_counted_also_of_one_that_began_anew() -> None:
    queue = PartQueue(10, n_workers=1)
    assert queue.begin("a")
    queue.done("a", None, (3, 2))
    assert queue.begin("a")
    queue.done("a", None, (1, 0))
    queue.done("b", None, (4, 4))
    assert queue.embedded() == (8, 6)


def test_beside_other_runs_parts_are_small_and_of_buckets_that_nobody_claims() -> None:
    buckets = np.arange(6400, dtype=np.int64).astype(np.uint8)
    queue = PartQueue(6400, n_workers=1, buckets=buckets)
    claimed = set(range(128))
    rows: list[int] = []
    while len(rows) < 3200:
        part, _ = queue.next("a", claimed)
        assert part is not None
        assert len(part.rows) <= WITH_NEIGHBOURS.size(6400 - len(rows))
        rows += part.rows.tolist()
        queue.done("a", part.number)
    assert not claimed & set(buckets[rows[:3100]].tolist())
    rows += drain(queue, "a")  # the others have ended
    assert sorted(rows) == list(range(6400))


def test_rows_that_the_remote_does_not_take_are_not_done() -> None:
    given: list[int] = []
    upstream = SimpleNamespace(name="s3://b/t", takes=True, give=lambda: given.append(1))
    work: Any = SimpleNamespace(upstream=upstream)
    HandedWork.give(work)
    upstream.takes = False
    with pytest.raises(RemoteError, match="s3://b/t takes no rows of a machine"):
        HandedWork.give(work)
    assert len(given) == 2
