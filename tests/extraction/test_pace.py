import threading
import time

import pytest

from embedcache.extraction.pace import (
    CPU_DEFAULT,
    CPU_SIZES,
    REPEATS,
    Pace,
    pays_to_compile,
    workers_for,
)
from embedcache.extraction.prefetch import Gate


def run(pace: Pace, rates: dict[int, float]) -> list[int]:
    """Make every trial as if a batch of each size ran at these photos/s; the sizes in turn."""
    tried = []
    while pace.trying:
        tried.append(pace.trial)
        assert pace.wanted == pace.lanes * pace.trial
        pace.tried(pace.wanted, pace.wanted / rates[pace.trial])
    return tried


def test_a_long_run_tries_every_size_and_takes_the_smallest_of_the_best() -> None:
    pace = Pace.choose(n_photos=100_000, lanes=2, cuda=False)
    assert run(pace, {4: 15.0, 8: 16.1, 16: 16.4, 32: 13.0}) == list(CPU_SIZES) * REPEATS
    assert pace.size == pace.wanted == 8
    assert pace.rate == pytest.approx(16.1)


def test_the_better_of_two_trials_counts() -> None:
    pace = Pace(size=8, lanes=1, sizes=(4, 8))
    for seconds in (4.0, 1.0, 0.4, 1.0):  # the first pass of size 4 was slow to start
        pace.tried(pace.wanted, seconds)
    assert (pace.size, pace.rate) == (4, 10.0)


def test_a_short_run_tries_nothing() -> None:
    pace = Pace.choose(n_photos=500, lanes=2, cuda=False)
    assert not pace.trying
    assert (pace.size, pace.rate, pace.wanted) == (CPU_DEFAULT, None, CPU_DEFAULT)


def test_a_size_that_was_asked_for_is_only_timed() -> None:
    pace = Pace.choose(n_photos=100_000, lanes=1, cuda=True, asked=48)
    assert run(pace, {48: 900.0}) == [48] * REPEATS
    assert pace.size == 48
    assert pace.rate == pytest.approx(900.0)


def test_memory_that_ran_out_bounds_what_a_trial_may_choose() -> None:
    pace = Pace(size=64, lanes=1, sizes=(64, 128))
    pace.limit(100)
    run(pace, {64: 10.0, 128: 20.0})
    assert (pace.size, pace.most) == (100, 100)


def test_workers_follow_from_what_a_photo_costs_and_what_the_networks_take() -> None:
    # 16 photos/s on two cores: one thread would do, and one more is there to spare.
    assert workers_for([16.0], read_seconds=0.0002, decode_seconds=0.005, cores=2) == 2
    # A GPU at 2,000 photos/s: decoding is computing, so no more threads than cores.
    assert workers_for([2000.0], read_seconds=0.0002, decode_seconds=0.005, cores=16) == 16
    assert workers_for([2000.0], read_seconds=0.0002, decode_seconds=0.005, cores=64) == 17
    # A far disk: threads wait, so there may be more of them than cores.
    assert workers_for([2000.0], read_seconds=0.03, decode_seconds=0.005, cores=16) == 64
    # Two networks take turns: 100 and 100 photos/s are 50.
    assert workers_for([100.0, 100.0], read_seconds=0.0, decode_seconds=0.1, cores=64) == 9


def test_compiling_pays_only_in_long_runs() -> None:
    assert not pays_to_compile(2_000, 16.0, "inductor")
    assert pays_to_compile(100_000, 16.0, "inductor")
    assert pays_to_compile(2_000, 16.0, "openvino")
    assert not pays_to_compile(1_000, 16.0, "openvino")
    assert not pays_to_compile(100_000, 2_000.0, "inductor")


def test_a_gate_lets_in_so_many_and_nobody_while_it_is_shut() -> None:
    gate = Gate(None, most=4)
    gate.set(2)
    inside, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with gate:
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with lock:
                inside -= 1

    def all_at_once(n: int) -> None:
        nonlocal most
        most = 0
        threads = [threading.Thread(target=work) for _ in range(n)]
        for thread in threads:
            thread.start()
        with gate.shut():
            assert inside == 0
            time.sleep(0.03)
            assert inside == 0
        for thread in threads:
            thread.join()

    all_at_once(6)
    assert most == 2
    gate.set(9)
    assert gate.workers == 4
    all_at_once(8)
    assert most == 4
    gate.set(0)
    assert gate.workers == 1
    assert (Gate(3).workers, Gate(3).most, Gate(3).fixed) == (3, 3, True)


def test_threads_enter_a_gate_in_the_order_in_which_they_came() -> None:
    gate, order = Gate(1), list[int]()
    threads = []

    def work(number: int) -> None:
        for _ in range(2):  # whoever leaves and comes back stands behind the others
            with gate:
                order.append(number)

    with gate.shut():
        for number in range(5):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            while len(gate._line) <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order[:5] == [*range(5)]
    assert sorted(order) == sorted([*range(5)] * 2)
