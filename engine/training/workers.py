"""Many measurements on a few processes, each with tools of its own that are slow to make."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

from engine.training.tracks import Tools

#: What is done, and on what: a function of a module, and its first argument; the second are the tools.
Call = tuple[Callable[[Any, Tools], dict], Any]

_kept: Tools | None = None  # of a worker process: made at its first call, used for all


def results(calls: list[Call], make: Callable[[], Tools], jobs: int) -> Iterator[dict]:
    """What each of the calls returns, in their order, with the tools that `make` makes in each process.

    With jobs > 1 the calls and `make` must be picklable. What a call raises is raised here.
    """
    if jobs <= 1:
        tools = make()
        yield from (work(task, tools) for work, task in calls)
        return
    # Spawned, not forked: the landmarker has threads of its own.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        try:
            waiting = [pool.submit(_run, work, task, make) for work, task in calls]
            for future in waiting:
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run(work: Callable[[Any, Tools], dict], task: Any, make: Callable[[], Tools]) -> dict:
    global _kept
    if _kept is None:
        _kept = make()
    return work(task, _kept)
