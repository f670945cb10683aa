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
            lanes.submit(lambda _: started.append(1), taken.append)
            assert i + 1 - len(taken) <= lanes.n + AHEAD
        lanes.drain()
    assert len(started) == len(taken) == 12


def test_an_answer_may_ask_for_more() -> None:
    total: list[int] = []
    with Lanes(1) as lanes:

        def more(left: int) -> None:
            total.append(left)
            if left:
                lanes.submit(lambda _: left - 1, more)

        lanes.submit(lambda _: 9, more)
        lanes.drain()
    assert total == list(range(9, -1, -1))


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
