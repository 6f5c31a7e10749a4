"""Calls of many threads, done together by one: how heads share a device that is best given much at once.

Nothing waits for company. Whatever was asked for while the last batch was at work is the next batch, so one caller is
served at once, and batches grow by themselves with the load.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

import numpy as np

Job = TypeVar("Job")
Result = TypeVar("Result")

#: Inputs by name -> outputs, as a network's session runs them.
Network = Callable[[dict[str, np.ndarray]], list[np.ndarray]]
CLOSE_SECONDS = 5.0


class _Call(Generic[Job, Result]):
    """A job that somebody may wait for. Lighter than a Future: there are thousands a second."""

    __slots__ = ("_done", "error", "job", "result")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.result: Result | None = None
        self.error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def settle(self, outcome: Result | BaseException) -> None:
        if isinstance(outcome, BaseException):
            self.error = outcome
        else:
            self.result = outcome
        self._done.release()

    def wait(self) -> Result:
        self._done.acquire()
        if self.error is not None:
            raise self.error
        return self.result


def together(run: Callable[[list[Job]], Sequence[Result]], jobs: list[Job]) -> list[Result | Exception]:
    """Results of jobs that are run at once. If that fails, of each on its own: what one did wrong is no fault of the
    others, and only that one gets an exception."""
    try:
        return list(run(jobs))
    except Exception as error:
        return [error] if len(jobs) == 1 else [together(run, [job])[0] for job in jobs]


class Gatherer(Generic[Job, Result]):
    """See the module. `call` and `post` are for any thread; the worker ends by `close`, or when nobody holds this."""

    def __init__(self, work: Callable[[list[Job]], Sequence[Result | Exception]], name: str, most: int):
        """work: jobs, at most `most`, in their order -> their results, or an exception in the place of one. It runs in
        one thread, of this name, and must not hold the gatherer."""
        self._waiting: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread = threading.Thread(target=_serve, args=(self._waiting, work, most), name=name, daemon=True)
        self._lock = threading.Lock()
        self._closed = False
        self._end = weakref.finalize(self, _stop, self._waiting, self._thread)

    def call(self, job: Job) -> Result:
        """Have a job done; waits. Raises what doing it raised, and RuntimeError if this is closed."""
        call: _Call[Job, Result] = _Call(job)
        with self._lock:
            if self._closed:
                raise RuntimeError("the backend is closed")
            if self._thread.ident is None:
                self._thread.start()
            self._waiting.put(call)
        return call.wait()

    def post(self, job: Job) -> None:
        """Have a job done after all that was asked for before; nobody waits. Also for finalizers: it takes no lock."""
        self._waiting.put(_Call(job))

    def close(self) -> None:
        """Finish what was asked for, and end. Whoever calls later is refused."""
        with self._lock:
            self._closed = True
        self._end()


def _stop(waiting: "SimpleQueue[_Call | None]", thread: threading.Thread) -> None:
    """End the worker after all that was asked for. Also when the interpreter ends, which it must not do while native
    code may come back to it: the process would be aborted."""
    waiting.put(None)
    if thread.ident is not None and thread is not threading.current_thread():
        thread.join(CLOSE_SECONDS)


def _serve(waiting: "SimpleQueue[_Call | None]", work: Callable, most: int) -> None:
    """The worker. It knows nothing of the gatherer, which could else never be forgotten."""
    while (call := waiting.get()) is not None:
        calls, last = [call], False
        while len(calls) < most and not last:
            try:
                call = waiting.get_nowait()
            except Empty:
                break
            last = call is None
            if call is not None:
                calls.append(call)
        try:
            outcomes = work([each.job for each in calls])
        except BaseException as error:  # for those who wait, whatever it is: they would wait for ever
            outcomes = [error] * len(calls)
        for each, outcome in zip(calls, outcomes, strict=True):
            each.settle(outcome)
        # what was done must not be kept until there is more to do
        del call, calls, outcomes, each, outcome
        if last:
            return


class GatheredNetwork:
    """A network that runs in a thread of its own, whoever calls it: on a GPU each thread that runs a session would keep
    handles and memory there."""

    def __init__(self, network: Network, name: str, most: int, batched: bool):
        """batched: calls that are equal in shape but for the first axis run as one, at most `most`."""
        run = run_batched if batched else run_each
        self._gatherer: Gatherer[dict[str, np.ndarray], list[np.ndarray]] = Gatherer(
            lambda jobs: run(network, jobs), name, most
        )

    def __call__(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self._gatherer.call(inputs)

    def close(self) -> None:
        self._gatherer.close()


def run_each(network: Network, jobs: list[dict[str, np.ndarray]]) -> list[list[np.ndarray] | Exception]:
    """Run calls of a network one after another."""
    return [outcome for job in jobs for outcome in together(lambda one: [network(one[0])], [job])]


def run_batched(network: Network, jobs: list[dict[str, np.ndarray]]) -> list[list[np.ndarray] | Exception]:
    """Run calls of a network whose inputs and outputs all have the batch as their first axis."""
    groups: dict[tuple, list[int]] = {}
    for number, job in enumerate(jobs):
        shapes = tuple(sorted((name, value.shape[1:], value.dtype) for name, value in job.items()))
        groups.setdefault(shapes, []).append(number)
    outcomes: list[list[np.ndarray] | Exception] = [[]] * len(jobs)
    for numbers in groups.values():
        found = together(lambda some: _concatenated(network, some), [jobs[number] for number in numbers])
        for number, outcome in zip(numbers, found, strict=True):
            outcomes[number] = outcome
    return outcomes


def _concatenated(network: Network, jobs: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
    if len(jobs) == 1:
        return [network(jobs[0])]
    outputs = network({name: np.concatenate([job[name] for job in jobs]) for name in jobs[0]})
    ends = np.cumsum([len(next(iter(job.values()))) for job in jobs])[:-1]
    # copies: a view would keep the whole batch
    return [[part.copy() for part in parts] for parts in zip(*(np.split(o, ends) for o in outputs), strict=True)]
