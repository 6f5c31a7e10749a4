"""Calls of many threads, done together: each gets its own result or its own failure, and nothing hangs."""

import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engine.gather import GatheredNetwork, Gatherer, run_batched, together


class Blocked:
    """Work that stops at its first job until it is released, so that a batch gathers meanwhile."""

    def __init__(self):
        self.batches: list[list[int]] = []
        self.begun, self.release = threading.Event(), threading.Event()

    def __call__(self, jobs):
        self.batches.append(list(jobs))
        self.begun.set()
        assert self.release.wait(10)
        return [ValueError(f"not {job}") if job < 0 else 10 * job for job in jobs]


def gathered(gatherer: Gatherer, work: Blocked, first: int, others: list[int]) -> dict[int, object]:
    """Call once, then the others while the first is at work; what each got."""
    with ThreadPoolExecutor(len(others) + 1) as pool:
        calls = {first: pool.submit(gatherer.call, first)}
        assert work.begun.wait(10)
        calls |= {job: pool.submit(gatherer.call, job) for job in others}
        while gatherer._waiting.qsize() < len(others):
            pass
        work.release.set()
        return {job: call.exception(10) or call.result() for job, call in calls.items()}


def test_what_waits_is_done_at_once_and_each_gets_its_own():
    work = Blocked()
    gatherer = Gatherer(work, "test", 4)
    found = gathered(gatherer, work, 1, [2, 3, 4, 5, 6, 7])
    assert found == {job: 10 * job for job in range(1, 8)}
    assert work.batches[0] == [1]
    assert [len(batch) for batch in work.batches] == [1, 4, 2]
    gatherer.close()
    assert not gatherer._thread.is_alive()


def test_a_failure_is_for_whoever_asked():
    work = Blocked()
    gatherer = Gatherer(work, "test", 64)
    found = gathered(gatherer, work, 1, [2, -3, 4])
    assert (found[2], found[4]) == (20, 40)
    assert isinstance(found[-3], ValueError)
    assert gatherer.call(5) == 50  # and it goes on
    gatherer.close()


def test_work_that_fails_altogether_fails_for_those_alone_that_it_was_for():
    def work(jobs):
        if 0 in jobs:
            raise MemoryError
        return jobs

    gatherer = Gatherer(work, "test", 64)
    with pytest.raises(MemoryError):
        gatherer.call(0)
    assert gatherer.call(1) == 1
    gatherer.close()


def test_what_fails_together_is_done_apart():
    def run(jobs):
        return [100 // job for job in jobs]

    good, bad, last = together(run, [5, 0, 4])
    assert (good, last) == (20, 25)
    assert isinstance(bad, ZeroDivisionError)
    assert together(run, []) == []


def test_a_closed_gatherer_finishes_what_it_was_asked_and_refuses_the_rest():
    work = Blocked()
    gatherer = Gatherer(work, "test", 1)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(gatherer.call, job) for job in range(3)]
        assert work.begun.wait(10)
        while gatherer._waiting.qsize() < 2:
            pass
        closing = pool.submit(gatherer.close)
        work.release.set()
        assert sorted(call.result(10) for call in calls) == [0, 10, 20]
        closing.result(10)
    with pytest.raises(RuntimeError, match="closed"):
        gatherer.call(1)
    gatherer.post(1)
    gatherer.close()


def test_one_that_was_never_asked_closes_and_one_that_is_forgotten_ends():
    Gatherer(lambda jobs: jobs, "test", 1).close()
    gatherer = Gatherer(lambda jobs: jobs, "test", 1)
    assert gatherer.call(1) == 1
    thread, gone = gatherer._thread, weakref.ref(gatherer)
    del gatherer
    gc.collect()
    assert gone() is None
    thread.join(10)
    assert not thread.is_alive()


def test_the_process_ends_with_a_worker_that_waits():
    code = "from engine.gather import Gatherer\nkept = Gatherer(lambda jobs: jobs, 'test', 2)\nprint(kept.call(7))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")


def double(inputs):
    if np.isnan(inputs["x"]).any():
        raise ValueError("nan")
    return [2 * inputs["x"] + inputs["y"][:, None], inputs["y"]]


def call(rows: int, width: int, value: float = 1.0) -> dict[str, np.ndarray]:
    return {"x": np.full((rows, width), value, np.float32), "y": np.arange(rows, dtype=np.float32)}


def test_calls_of_a_network_are_concatenated_where_they_are_alike():
    sizes = []

    def network(inputs):
        sizes.append(inputs["x"].shape)
        return double(inputs)

    jobs = [call(1, 3, 1.0), call(2, 3, 2.0), call(2, 5, 3.0), call(2, 3, np.nan), call(4, 3, 4.0)]
    outcomes = run_batched(network, jobs)
    assert sizes[0] == (9, 3) and (2, 5) in sizes
    assert isinstance(outcomes[3], ValueError)
    for number in (0, 1, 2, 4):
        expected = double(jobs[number])
        assert all(np.array_equal(*pair) for pair in zip(outcomes[number], expected, strict=True))


@pytest.mark.parametrize("batched", [True, False])
def test_a_gathered_network_is_the_network(batched):
    network = GatheredNetwork(double, "test", 8, batched)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(network, [call(1 + n % 2, 3, n) for n in range(60)]))
    for number, (x, y) in enumerate(found):
        expected = double(call(1 + number % 2, 3, number))
        assert np.array_equal(x, expected[0]) and np.array_equal(y, expected[1])
    with pytest.raises(ValueError, match="nan"):
        network(call(1, 3, np.nan))
    network.close()
