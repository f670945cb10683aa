import threading
import time
from functools import partial

import pytest

from embedcache.extraction.lanes import AHEAD, Lanes


def test_answers_come_in_the_order_asked_on_the_thread_that_asks() -> None:
    seen: list[tuple[int, int]] = []
    me = threading.get_ident()
    with Lanes(3) as lanes:

        def slowly(i: int, _: int) -> int:
            time.sleep(0.002 * (i % 3))
            return i

        def then(answer: int) -> None:
            seen.append((answer, threading.get_ident()))

        for i in range(20):
            lanes.submit(partial(slowly, i), then)
        lanes.drain()
    assert seen == [(i, me) for i in range(20)]


def test_every_lane_works_and_no_more_than_a_few_batches_wait() -> None:
    used: set[int] = set()
    started: list[int] = []
    taken: list[None] = []
    both = threading.Barrier(2, timeout=10)

    def meet(lane: int) -> None:
        both.wait()
        used.add(lane)

    with Lanes(2) as lanes:
        for _ in range(2):
            lanes.submit(meet, lambda _: None)
        lanes.drain()
        assert used == {0, 1}
        for i in range(12):
            lanes.make_room()
            lanes.submit(lambda _: started.append(1), taken.append)
            assert i + 1 - len(taken) <= lanes.n + AHEAD
        lanes.drain()
    assert len(started) == len(taken) == 12


def test_submitting_runs_no_answer_and_an_answer_cannot_use_the_lanes() -> None:
    taken: list[int] = []
    with Lanes(1) as lanes:
        for i in range(20):  # far more than fits
            lanes.submit(lambda _, i=i: i, taken.append)  # type: ignore[misc]
        assert taken == []
        lanes.drain()
        assert taken == list(range(20))
        for action in (lambda: lanes.submit(lambda _: 0, taken.append), lanes.drain):
            lanes.submit(lambda _: 0, lambda _, action=action: action())  # type: ignore[misc]
            lanes.submit(lambda _: 0, taken.append)
            with pytest.raises(AssertionError, match="an answer"):
                lanes.drain()
            lanes.drain()
    assert taken == [*range(20), 0, 0]


def test_an_error_on_a_lane_is_raised_where_it_was_asked_and_the_threads_end() -> None:
    def fail(_: int) -> None:
        raise ValueError("broken photo")

    def run() -> None:
        with Lanes(2) as lanes:
            lanes.submit(fail, lambda _: None)
            lanes.submit(lambda _: time.sleep(0.05), lambda _: None)
            lanes.drain()

    before = threading.active_count()
    with pytest.raises(ValueError, match="broken photo"):
        run()
    assert threading.active_count() == before


def test_lanes_leave_the_threads_of_torch_as_they_were() -> None:
    import torch

    before = torch.get_num_threads()
    inside: list[int] = []
    with Lanes(2, threads=1) as lanes:
        lanes.submit(lambda _: torch.get_num_threads(), inside.append)
        lanes.drain()
    assert inside == [1]
    assert torch.get_num_threads() == before
